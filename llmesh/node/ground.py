"""Ground: what a node stands on before it knows anybody: its files, keys, host and worker runtime."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from llmesh import crypto
from llmesh.core import binding
from llmesh.core.announcement import read_packed
from llmesh.core.credentials import Credentials
from llmesh.core.ids import PeerId
from llmesh.core.meter import Meter
from llmesh.core.signer import Signer
from llmesh.errors import MeshError, ValidationFailed
from llmesh.gateway.keys import Keys, open_keys
from llmesh.gateway.webhooks.courier import Courier, CourierSettings, open_courier
from llmesh.journal.open import Journal, open_journal
from llmesh.journal.schema import channel_salt
from llmesh.ledger.log import LogLedger
from llmesh.mesh.events import Events, MeshEvent
from llmesh.mesh.metering import count
from llmesh.net.callout import Callout, read_allowed
from llmesh.net.host import Host
from llmesh.net.libp2p.host import open_libp2p_host
from llmesh.node.config import NodeConfig
from llmesh.node.faults import StartRefused
from llmesh.node.home import JOURNAL, Home
from llmesh.node.ports import listen_addresses
from llmesh.node.swarm import account_signer, open_log
from llmesh.node.telemetry import log_event
from llmesh.runtime.runtime import Runtime
from llmesh.runtime.sandbox import SandboxLevel
from llmesh.runtime.settings import WorkerSettings
from llmesh.runtime.workers import open_worker_runtime

__all__ = ["Ground", "open_ground", "worker_settings"]


@dataclass(frozen=True, slots=True)
class Ground:
    """The parts of a node that need no other node; `events` are told to `meter` and to the log."""

    config: NodeConfig
    home: Home
    signer: Signer
    meter: Meter
    events: Events
    runtime: Runtime
    host: Host
    journal: Journal
    log: LogLedger
    keys: Keys
    courier: Courier
    salt: bytes

    @property
    def credentials(self) -> Credentials:
        """The account in this node's name."""
        sign = partial(crypto.sign, self.home.seed, binding.DOMAIN)
        return Credentials(self.home.peer_id, self.log.chain, self.signer, sign, self.salt)


@asynccontextmanager
async def open_ground(config: NodeConfig, home: Home) -> AsyncIterator[Ground]:
    """Open all of it for as long as the block lasts.  Raises StartRefused for what will not do."""
    signer, meter = account_signer(home), Meter()
    events = Events(partial(_hear, meter))
    callout, hours = Callout(read_allowed(config.webhook_allow)), CourierSettings(config.webhook_hours)
    async with (
        open_worker_runtime(worker_settings(config)) as runtime,
        _open_host(config, home) as host,
        _open_journal(home, host.peer_id) as journal,
        open_log(home, signer, config.min_stake, config.join) as log,
        open_keys(journal, home.key_secret) as keys,
        open_courier(journal, events, callout, hours) as courier,
    ):
        mark = await journal.read(channel_salt)
        yield Ground(config, home, signer, meter, events, runtime, host, journal, log, keys, courier, mark)


def worker_settings(config: NodeConfig) -> WorkerSettings:
    """How this node runs models."""
    settings = WorkerSettings(provider=config.provider, require=SandboxLevel[config.require_sandbox.upper()])
    return replace(settings, threads=config.threads) if config.threads else settings


@asynccontextmanager
async def _open_journal(home: Home, owner: PeerId) -> AsyncIterator[Journal]:
    async with AsyncExitStack() as stack:
        try:
            journal = await stack.enter_async_context(open_journal(home.folder / JOURNAL, owner))
        except MeshError as error:
            raise StartRefused(f"{error.message} {error.next_step}") from error
        yield journal


@asynccontextmanager
async def _open_host(config: NodeConfig, home: Home) -> AsyncIterator[Host]:
    listen = listen_addresses(config, home)
    async with open_libp2p_host(home.seed, listen=listen, announce=config.announce, judge=_judge) as host:
        yield host


def _hear(meter: Meter, event: MeshEvent) -> None:
    count(meter, event)
    log_event(event)


def _judge(record: bytes) -> tuple[PeerId, int] | None:
    """Which announcements this node keeps for others in the hash table: the valid ones."""
    try:
        announcement = read_packed(record, now=time.time()).announcement
    except ValidationFailed:
        return None
    return announcement.peer_id, announcement.sequence
