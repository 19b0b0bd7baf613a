"""The rooms of a node, put together: each from what it needs, in the order in which they open."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from random import SystemRandom

import trio

from llmesh import crypto
from llmesh.core.amount import Amount
from llmesh.core.announcement import DOMAIN
from llmesh.core.credentials import Credentials
from llmesh.core.exchange import Event
from llmesh.core.inference import Attempt, Consumer
from llmesh.errors import TooLarge
from llmesh.mesh.announcer import Announcer, Author
from llmesh.mesh.discovery import Discovery, DiscoverySettings, open_discovery
from llmesh.mesh.fetcher import Fetcher
from llmesh.mesh.follower import Follower, Members
from llmesh.mesh.issuer import Issuing
from llmesh.mesh.market import Bonds, Market
from llmesh.mesh.payments import Payments, open_payments
from llmesh.mesh.provider import Provider
from llmesh.mesh.reachability import DialBacks, Reachability
from llmesh.mesh.reputation import Reputation
from llmesh.mesh.router import Router
from llmesh.mesh.seeder import Seeder, open_seeder
from llmesh.mesh.settlement import Settlement
from llmesh.mesh.tabs import PaymentSettings, Tabs
from llmesh.mesh.teller import Teller
from llmesh.mesh.till import Till
from llmesh.mesh.withdrawal import Withdrawal
from llmesh.mesh.witness import seen
from llmesh.net import artifact, inference, payment, reachability
from llmesh.net import ledger as swarm_ledger
from llmesh.net.call import Handler
from llmesh.net.host import Host, PeerAddress
from llmesh.net.libp2p.mdns import open_mdns
from llmesh.net.throttle import Throttle
from llmesh.node.config import NodeConfig
from llmesh.node.drain import Drain
from llmesh.node.faults import StartRefused
from llmesh.node.ground import Ground
from llmesh.node.home import Home
from llmesh.node.joining import contacts
from llmesh.node.running import Rooms
from llmesh.node.shelf import Shelf
from llmesh.node.swarm import Swarm, announce_stake, take_part
from llmesh.runtime.store import InUse, Store, open_store

__all__ = ["open_rooms"]

_NOTHING = Amount(0)


@dataclass(frozen=True, slots=True)
class _Trade:
    """What a node sells, and by which account."""

    swarm: Swarm
    credentials: Credentials
    till: Till
    provider: Provider


@asynccontextmanager
async def open_rooms(ground: Ground, drain: Drain) -> AsyncIterator[Rooms]:
    """Open everything that meets other nodes, and keep it going for as long as the block lasts."""
    trade = _trade(ground, lambda: discovery)
    store = await _open_store(ground, lambda: shelf.in_use)
    # Peers may come as soon as the sessions are open; the first checkpoint is later.
    handlers = _handlers(ground, trade, drain, lambda: dial_backs)
    async with (
        AsyncExitStack() as stack,
        open_seeder(trade.provider.bundle) as seeder,
        open_discovery(ground.host, handlers | _seeding(ground, seeder), _settings(ground)) as discovery,
    ):
        dial_backs = DialBacks(ground.host, discovery.sessions)
        announcer = _announcer(ground, discovery, trade.credentials)
        shelf = Shelf(store, trade.provider, announcer, ground.journal, ground.events)
        await shelf.recall()
        with suppress(TooLarge):  # the quota may be less than it was; what is over it now stays
            await store.make_room(0)
        swarm, sessions = trade.swarm, discovery.sessions
        tabs = Tabs(
            trade.credentials, swarm.ledger, ground.journal, swarm.teller, sessions, PaymentSettings()
        )
        payments = await stack.enter_async_context(open_payments(tabs))
        rooms = _rooms(ground, trade, discovery, shelf, payments)
        async with trio.open_nursery() as nursery:
            await _start(nursery, ground.config, trade, rooms, payments)
            try:
                yield rooms
            finally:
                trade.till.close()
            nursery.cancel_scope.cancel()


def _trade(ground: Ground, discovery: Callable[[], Discovery]) -> _Trade:
    """`discovery` opens later."""
    home, journal, log, credentials = ground.home, ground.journal, ground.log, ground.credentials
    members = Members(
        lambda: discovery().sessions, lambda: _members(home, discovery()), time.time, SystemRandom()
    )
    ledger = log if log.issuer else Follower(log, members)
    swarm = Swarm(ground.signer, log, ledger, Teller(ledger, journal, ground.signer, time.time))
    till = Till(credentials, journal, ledger, time.time)
    return _Trade(swarm, credentials, till, Provider(ground.host.peer_id, ground.runtime, till))


def _handlers(
    ground: Ground, trade: _Trade, drain: Drain, dial_backs: Callable[[], DialBacks]
) -> dict[str, Handler]:
    """What peers may ask, by protocol; `dial_backs` opens later."""
    issuing = Issuing(ground.log, lambda: trade.credentials.binding(time.time()))
    return {
        inference.PROTOCOL: inference.handler(_while_open(drain, seen(ground.events, trade.provider))),
        payment.PROTOCOL: payment.handler(trade.provider.answer),
        reachability.PROTOCOL: reachability.handler(lambda peer, asked: dial_backs().dial_back(peer, asked)),
        swarm_ledger.PROTOCOL: swarm_ledger.handler(issuing.serve),
    }


def _seeding(ground: Ground, seeder: Seeder) -> dict[str, Handler]:
    throttle = Throttle(ground.config.transfer_rate)
    return {artifact.PROTOCOL: artifact.handler(seeder.serve, throttle)}


def _rooms(ground: Ground, trade: _Trade, discovery: Discovery, shelf: Shelf, payments: Payments) -> Rooms:
    host, log, sessions = ground.host, ground.log, discovery.sessions
    reputation = Reputation(discovery.is_down)
    bonds = Bonds(log.chain, log.min_stake, log.stake_of)
    market = Market(host.peer_id, discovery, bonds, time.time)
    throttle = Throttle(ground.config.transfer_rate)
    return Rooms(
        events=ground.events,
        meter=ground.meter,
        courier=ground.courier,
        backlog=payments.tabs.backlog,
        host=host,
        journal=ground.journal,
        keys=ground.keys,
        swarm=trade.swarm,
        discovery=discovery,
        market=market,
        shelf=shelf,
        announcer=shelf.announcer,
        router=Router(trade.provider, sessions, market, reputation, payments),
        reachability=Reachability(lambda: host.addresses, sessions, SystemRandom()),
        runtime=ground.runtime,
        store=shelf.store,
        fetcher=Fetcher(host.peer_id, shelf.store, sessions, discovery, reputation, throttle),
    )


async def _start(
    nursery: trio.Nursery, config: NodeConfig, trade: _Trade, rooms: Rooms, payments: Payments
) -> None:
    """All that runs by itself; on return this node takes part in its swarm."""
    swarm = trade.swarm
    if isinstance(swarm.ledger, Follower):
        nursery.start_soon(swarm.ledger.run)
    settlement = Settlement(rooms.journal, swarm.ledger, swarm.teller)
    withdrawal = Withdrawal(rooms.journal, swarm.ledger, swarm.teller)
    for task in (swarm.teller.run, trade.till.run, payments.run, settlement.run, withdrawal.run):
        nursery.start_soon(task)
    await nursery.start(take_part, swarm, config.join, config.stake)
    await nursery.start(announce_stake, swarm, rooms.announcer)
    nursery.start_soon(rooms.announcer.run)
    nursery.start_soon(rooms.reachability.run)
    if config.mdns:
        nursery.start_soon(_meet_neighbours, rooms.host, rooms.discovery)


async def _open_store(ground: Ground, in_use: InUse) -> Store:
    folder = ground.home.folder / "store"
    try:
        return await open_store(folder, ground.config.store_quota, in_use)
    except OSError as error:
        raise StartRefused(f"The store {folder} cannot be used: {error.strerror}.") from error


def _settings(ground: Ground) -> DiscoverySettings:
    bootstrap = contacts((*ground.config.bootstrap, *ground.home.members))
    return DiscoverySettings(bootstrap=bootstrap, events=ground.events, meter=ground.meter)


def _members(home: Home, discovery: Discovery) -> list[PeerAddress]:
    """Where the members were when this node joined, and where they say that they are now."""
    known = []
    for contact in contacts(home.members):
        held = discovery.directory.held(contact.peer_id)
        now = held.announcement.addresses if held else ()
        known.append(PeerAddress(contact.peer_id, tuple(dict.fromkeys((*now, *contact.addresses)))))
    return known


def _announcer(ground: Ground, discovery: Discovery, credentials: Credentials) -> Announcer:
    author = Author(
        ground.host.peer_id,
        sign=partial(crypto.sign, ground.home.seed, DOMAIN),
        next_sequence=ground.home.next_sequence,
        addresses=lambda: ground.host.addresses,
        credentials=credentials,
    )
    return Announcer(author, discovery, stake=_NOTHING, min_stake=ground.log.min_stake)


async def _meet_neighbours(host: Host, discovery: Discovery) -> None:
    async with open_mdns(host) as found:
        async for contact in found:
            discovery.met(contact)


def _while_open(drain: Drain, serve: inference.Serve) -> inference.Serve:
    """Serve peers until the node shuts down."""

    @asynccontextmanager
    async def served(attempt: Attempt, consumer: Consumer) -> AsyncIterator[AsyncIterator[Event]]:
        with drain.entered():
            async with serve(attempt, consumer) as events:
                yield events

    return served
