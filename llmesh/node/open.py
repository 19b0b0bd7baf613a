"""open_node: every room of the house put together, for a trio program; MeshNode and the CLI wrap it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import replace
from functools import partial
from random import SystemRandom

import trio
from llmesh_sdk.serving import serving
from trio import TaskStatus  # type: ignore[attr-defined]  # libp2p brings stubs older than trio

from llmesh import crypto
from llmesh.core import binding
from llmesh.core.amount import Amount
from llmesh.core.announcement import DOMAIN, read_packed
from llmesh.core.credentials import Credentials
from llmesh.core.exchange import Event
from llmesh.core.ids import PeerId
from llmesh.core.inference import Attempt, Consumer
from llmesh.core.meter import Meter
from llmesh.core.signer import Signer
from llmesh.core.typed import Chain
from llmesh.demo import GPT_MINI, SENTIMENT_ANALYZER
from llmesh.errors import MeshError, TooLarge, ValidationFailed
from llmesh.gateway.keys import open_keys
from llmesh.gateway.server import serve
from llmesh.gateway.webhooks.courier import CourierSettings, open_courier
from llmesh.journal.open import Journal, open_journal
from llmesh.ledger.log import LogLedger
from llmesh.mesh.announcer import Announcer, Author
from llmesh.mesh.discovery import Discovery, DiscoverySettings, open_discovery
from llmesh.mesh.events import Events, MeshEvent
from llmesh.mesh.fetcher import Fetcher
from llmesh.mesh.follower import Follower, Members
from llmesh.mesh.issuer import Issuing
from llmesh.mesh.market import Bonds, Market
from llmesh.mesh.metering import count
from llmesh.mesh.payments import open_payments
from llmesh.mesh.provider import Provider
from llmesh.mesh.reachability import DialBacks, Reachability
from llmesh.mesh.reputation import Reputation
from llmesh.mesh.router import Router
from llmesh.mesh.seeder import open_seeder
from llmesh.mesh.settlement import Settlement
from llmesh.mesh.tabs import PaymentSettings, Tabs
from llmesh.mesh.teller import Teller
from llmesh.mesh.till import Till
from llmesh.mesh.witness import seen
from llmesh.net import artifact, inference, payment, reachability
from llmesh.net import ledger as swarm_ledger
from llmesh.net.callout import Callout, read_allowed
from llmesh.net.host import Host, PeerAddress
from llmesh.net.libp2p.host import open_libp2p_host
from llmesh.net.libp2p.mdns import open_mdns
from llmesh.net.throttle import Throttle
from llmesh.node.config import NodeConfig
from llmesh.node.drain import Drain
from llmesh.node.faces import network_app, owner_app
from llmesh.node.faults import StartRefused, lone_errors
from llmesh.node.home import JOURNAL, Home, open_home
from llmesh.node.joining import contacts
from llmesh.node.owner import owner_socket
from llmesh.node.ports import gateway_socket, listen_addresses
from llmesh.node.running import Node, Rooms
from llmesh.node.shelf import Shelf
from llmesh.node.swarm import Swarm, account_signer, announce_stake, open_log, take_part
from llmesh.node.telemetry import log_event
from llmesh.node.values import Deployment
from llmesh.runtime.sandbox import SandboxLevel
from llmesh.runtime.settings import WorkerSettings
from llmesh.runtime.store import InUse, Store, open_store
from llmesh.runtime.workers import open_worker_runtime, probe_workers

__all__ = ["BUDGET", "open_node"]

_log = logging.getLogger(__name__)

BUDGET = 5.0
"""Seconds that a shutdown may take in all."""
GRACE = 2.0
WITHDRAWAL = 0.5

_NOTHING = Amount(0)
_DEMO = (Deployment(SENTIMENT_ANALYZER, "sentiment-analyzer"), Deployment(GPT_MINI, "gpt-mini"))


@asynccontextmanager
async def open_node(config: NodeConfig) -> AsyncIterator[Node]:
    """Run a node for as long as the block lasts.

    Raises StartRefused for ports, keys, folders and models that will not do.  Leaving, also by a
    cancel, lets running inference finish for two seconds, withdraws the node's offers, and ends
    everything within five.
    """
    stop = trio.Event()
    with lone_errors():
        async with trio.open_nursery() as nursery:
            node: Node = await nursery.start(_run, config, stop)
            try:
                yield node
            finally:
                stop.set()


async def _run(config: NodeConfig, stop: trio.Event, *, task_status: TaskStatus[Node]) -> None:
    """The whole life of a node; once started it ends by `stop` alone, in order, within the budget."""
    drain = Drain()
    with (
        open_home(config.data_dir) as home,
        closing(gateway_socket(config)) as listener,
        owner_socket(home.folder) as owners,
        serving(),
        trio.CancelScope() as life,
    ):
        async with (
            _open_rooms(config, home, drain) as rooms,
            _withdrawing(rooms.announcer),
            trio.open_nursery() as nursery,
        ):
            node = Node(rooms, drain)
            await _deploy(config, node)
            await node.restore()
            nursery.start_soon(_probe, config, node)
            closed = trio.Event()
            network = network_app(config, node, rooms.keys, listener)
            node.url = await nursery.start(serve, network, listener, closed)
            own = owner_app(home, node, rooms.keys, node.wallet)
            await nursery.start(serve, own, owners, closed)
            with home.published({"pid": os.getpid(), **node.whereabouts()}):
                task_status.started(node)
                life.shield = True
                await stop.wait()
            life.deadline = trio.current_time() + BUDGET
            closed.set()
            with trio.move_on_after(GRACE):
                await drain.close()


async def _probe(config: NodeConfig, node: Node) -> None:
    """Learn what this machine's workers can do, beside the start, which need not wait for it."""
    try:
        node.abilities = await probe_workers(_worker_settings(config))
    except MeshError as error:
        _log.error("Models cannot be run on this machine: %s", error.message)


@asynccontextmanager
async def _withdrawing(announcer: Announcer) -> AsyncIterator[None]:
    """However the block ends, what was announced in it is withdrawn, for half a second at most."""
    try:
        yield
    finally:
        with trio.move_on_after(WITHDRAWAL) as cleanup:
            cleanup.shield = True
            await announcer.withdraw()


@asynccontextmanager
async def _open_rooms(config: NodeConfig, home: Home, drain: Drain) -> AsyncIterator[Rooms]:
    signer = account_signer(home)
    store = await _open_store(config, home, lambda: shelf.in_use)
    throttle = Throttle(config.transfer_rate)
    meter = Meter()
    events = Events(partial(_hear, meter))
    async with (
        open_worker_runtime(_worker_settings(config)) as runtime,
        _open_host(config, home) as host,
        _open_journal(home, host.peer_id) as journal,
        open_log(home, signer, config.min_stake, config.join) as log,
        open_keys(journal, home.key_secret) as keys,
        open_courier(
            journal,
            events,
            Callout(read_allowed(config.webhook_allow)),
            CourierSettings(config.webhook_hours),
        ) as courier,
    ):
        members = Members(
            lambda: discovery.sessions, lambda: _members(home, discovery), time.time, SystemRandom()
        )
        ledger = log if log.issuer else Follower(log, members)
        swarm = Swarm(signer, log, ledger, Teller(ledger, journal, signer, time.time))
        credentials = _credentials(home, signer, log.chain)
        issuing = Issuing(log, lambda: credentials.binding(time.time()))
        till = Till(credentials, journal, ledger, time.time)
        provider = Provider(host.peer_id, runtime, till)
        # Peers may come as soon as the sessions are open; the first checkpoint is later.
        handlers = {
            inference.PROTOCOL: inference.handler(_while_open(drain, seen(events, provider))),
            payment.PROTOCOL: payment.handler(provider.answer),
            reachability.PROTOCOL: reachability.handler(
                lambda peer, asked: dial_backs.dial_back(peer, asked)
            ),
            swarm_ledger.PROTOCOL: swarm_ledger.handler(issuing.serve),
        }
        async with (
            AsyncExitStack() as stack,
            open_seeder(provider.bundle) as seeder,
            open_discovery(
                host,
                handlers | {artifact.PROTOCOL: artifact.handler(seeder.serve, throttle)},
                _settings(config, home, events, meter),
            ) as discovery,
        ):
            dial_backs = DialBacks(host, discovery.sessions)
            reputation = Reputation(discovery.is_down)
            market = Market(host.peer_id, discovery, Bonds(log.chain, log.min_stake, log.stake_of), time.time)
            announcer = _announcer(home, host, discovery, log, credentials)
            shelf = Shelf(store, provider, announcer, journal, events)
            await shelf.recall()
            with suppress(TooLarge):  # the quota may be less than it was; what is over it now stays
                await store.make_room(0)
            tabs = Tabs(credentials, ledger, journal, swarm.teller, discovery.sessions, PaymentSettings())
            payments = await stack.enter_async_context(open_payments(tabs))
            rooms = Rooms(
                events=events,
                meter=meter,
                courier=courier,
                host=host,
                journal=journal,
                keys=keys,
                swarm=swarm,
                discovery=discovery,
                market=market,
                shelf=shelf,
                announcer=announcer,
                router=Router(provider, discovery.sessions, market, reputation, payments),
                reachability=Reachability(lambda: host.addresses, discovery.sessions, SystemRandom()),
                runtime=runtime,
                store=store,
                fetcher=Fetcher(
                    host.peer_id,
                    store,
                    discovery.sessions,
                    discovery,
                    reputation,
                    Throttle(config.transfer_rate),
                ),
            )
            async with trio.open_nursery() as nursery:
                if isinstance(ledger, Follower):
                    nursery.start_soon(ledger.run)
                nursery.start_soon(swarm.teller.run)
                nursery.start_soon(till.run)
                nursery.start_soon(payments.run)
                nursery.start_soon(Settlement(journal, ledger, swarm.teller).run)
                await nursery.start(take_part, swarm, config.join, config.stake)
                await nursery.start(announce_stake, swarm, rooms.announcer)
                nursery.start_soon(rooms.announcer.run)
                nursery.start_soon(rooms.reachability.run)
                if config.mdns:
                    nursery.start_soon(_meet_neighbours, host, discovery)
                try:
                    yield rooms
                finally:
                    till.close()
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_journal(home: Home, owner: PeerId) -> AsyncIterator[Journal]:
    async with AsyncExitStack() as stack:
        try:
            journal = await stack.enter_async_context(open_journal(home.folder / JOURNAL, owner))
        except MeshError as error:
            raise StartRefused(error.message) from error
        yield journal


async def _open_store(config: NodeConfig, home: Home, in_use: InUse) -> Store:
    try:
        return await open_store(home.folder / "store", config.store_quota, in_use)
    except OSError as error:
        raise StartRefused(f"The store {home.folder / 'store'} cannot be used: {error.strerror}.") from error


def _worker_settings(config: NodeConfig) -> WorkerSettings:
    settings = WorkerSettings(provider=config.provider, require=SandboxLevel[config.require_sandbox.upper()])
    return replace(settings, threads=config.threads) if config.threads else settings


@asynccontextmanager
async def _open_host(config: NodeConfig, home: Home) -> AsyncIterator[Host]:
    listen = listen_addresses(config, home)
    async with open_libp2p_host(home.seed, listen=listen, announce=config.announce, judge=_judge) as host:
        yield host


def _settings(config: NodeConfig, home: Home, events: Events, meter: Meter) -> DiscoverySettings:
    return DiscoverySettings(
        bootstrap=contacts((*config.bootstrap, *home.members)),
        events=events,
        meter=meter,
    )


def _hear(meter: Meter, event: MeshEvent) -> None:
    count(meter, event)
    log_event(event)


def _members(home: Home, discovery: Discovery) -> list[PeerAddress]:
    """Where the members were when this node joined, and where they say that they are now."""
    known = []
    for contact in contacts(home.members):
        held = discovery.directory.held(contact.peer_id)
        now = held.announcement.addresses if held else ()
        known.append(PeerAddress(contact.peer_id, tuple(dict.fromkeys((*now, *contact.addresses)))))
    return known


def _credentials(home: Home, signer: Signer, chain: Chain) -> Credentials:
    return Credentials(home.peer_id, chain, signer, partial(crypto.sign, home.seed, binding.DOMAIN))


def _announcer(
    home: Home, host: Host, discovery: Discovery, log: LogLedger, credentials: Credentials
) -> Announcer:
    author = Author(
        host.peer_id,
        sign=partial(crypto.sign, home.seed, DOMAIN),
        next_sequence=home.next_sequence,
        addresses=lambda: host.addresses,
        credentials=credentials,
    )
    return Announcer(author, discovery, stake=_NOTHING, min_stake=log.min_stake)


async def _deploy(config: NodeConfig, node: Node) -> None:
    """The models to serve from the start.  Raises StartRefused for one that will not do."""
    for model in (*(_DEMO if config.demo else ()), *config.deploy):
        try:
            await node.serve(model.path, model.name, model.fee, model.version)
        except MeshError as error:
            raise StartRefused(
                f"The model {model.path} cannot be served: {error.message} {error.next_step}"
            ) from error


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


def _judge(record: bytes) -> tuple[PeerId, int] | None:
    """Which announcements this node keeps for others in the hash table: the valid ones."""
    try:
        announcement = read_packed(record, now=time.time()).announcement
    except ValidationFailed:
        return None
    return announcement.peer_id, announcement.sequence
