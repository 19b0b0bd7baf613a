"""Joining a swarm by an invite: the genesis that it names is fetched from a member, and kept.

A node that has only ever had a swarm to itself may leave it; its old ledger is kept beside the new one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from llmesh.core.address import Address
from llmesh.core.genesis import SignedGenesis
from llmesh.core.ids import PeerId
from llmesh.core.invite import Invite
from llmesh.core.swarm import check_introduction
from llmesh.errors import MeshError
from llmesh.ledger.local import kept_genesis, kept_members, start_ledger
from llmesh.net.host import PeerAddress
from llmesh.net.ledger import ask_genesis
from llmesh.net.libp2p.addresses import peer_address
from llmesh.net.libp2p.host import open_libp2p_host
from llmesh.net.sessions import Sessions, open_sessions
from llmesh.node.faults import StartRefused
from llmesh.node.home import LEDGER, Home

__all__ = ["contacts", "join"]

ASKING = 15.0
"""Seconds for one member to be dialled and to answer."""


async def join(home: Home, invite: Invite, own: Address) -> None:
    """Make the swarm of the invite this node's, unless it is already.

    Raises StartRefused for an invite that has expired, where no member answers, and for a node that
    belongs to another swarm already; then nothing has changed.
    """
    path = home.folder / LEDGER
    kept = kept_genesis(path)
    if kept is not None and kept.hash == invite.genesis:
        home.remember_members(dict.fromkeys((*invite.addresses, *home.members)))  # they may have moved
        return
    _check_free(path, kept, own)
    if invite.expires_at <= time.time():
        raise StartRefused("The invite has expired; ask for a new one.")
    genesis = await _fetch_genesis(invite)
    home.remember_members(invite.addresses)
    if kept is not None:
        _put_aside(path, kept)
    start_ledger(path, genesis)


def contacts(addresses: Iterable[str]) -> list[PeerAddress]:
    """Who is at those addresses, in their order."""
    found: dict[PeerId, tuple[str, ...]] = {}
    for contact in map(peer_address, addresses):
        found[contact.peer_id] = (*found.get(contact.peer_id, ()), *contact.addresses)
    return [PeerAddress(peer, places) for peer, places in found.items()]


def _check_free(path: Path, kept: SignedGenesis | None, own: Address) -> None:
    if kept is None:
        return
    lone = kept.genesis.issuer == own and kept_members(path) <= {own}
    if not lone:
        raise StartRefused(
            f"This node belongs to the swarm {kept.hash.hex()[:16]} already, and others have money there"
            " or issue it. To join another one, start a second node with a --data-dir of its own."
        )


def _put_aside(path: Path, kept: SignedGenesis) -> None:
    path.replace(path.with_name(f"ledger-{kept.hash.hex()[:16]}.db"))


async def _fetch_genesis(invite: Invite) -> SignedGenesis:
    """From the first member that has it.  Raises StartRefused."""
    failures = []
    async with _visiting() as sessions:
        for contact in contacts(invite.addresses):
            try:
                with trio.fail_after(ASKING):
                    session = await sessions.to(contact.peer_id, contact.addresses)
                    said = await ask_genesis(session, invite.genesis)
                check_introduction(said, invite.genesis, contact.peer_id, time.time())
            except (MeshError, trio.TooSlowError) as error:
                failures.append(f"{contact.peer_id}: {error or 'no answer'}")
            else:
                return said.genesis
    raise StartRefused(
        "No member that the invite names could be asked for the swarm's beginning"
        f" ({'; '.join(failures)}). See that one of them runs and can be reached, or ask for a new invite."
    )


@asynccontextmanager
async def _visiting() -> AsyncGenerator[Sessions]:
    """Sessions of a host for the moment, under a name that nobody knows."""
    async with (
        open_libp2p_host(secrets.token_bytes(32), listen=(), judge=lambda record: None) as host,
        open_sessions(host, {}) as sessions,
    ):
        yield sessions
