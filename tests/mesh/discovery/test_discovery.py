"""Who offers what is found, through restarts, kills, squatters and partitions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, TypeAlias

import trio
from trio.testing import MockClock

from llmesh.core.announcement import DOMAIN, SignedAnnouncement, sign_announcement
from llmesh.core.query import Record
from llmesh.core.reference import ModelRef
from llmesh.crypto import sign
from llmesh.mesh.events import EventName, ModelAnnounced, ModelChange, PeerChange, PeerUpdated

if TYPE_CHECKING:
    from tests.mesh.discovery.conftest import Mesh

OpenMesh: TypeAlias = "Callable[..., AbstractAsyncContextManager[Mesh]]"
NAME = "sentiment-analyzer"


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until the condition holds, for so many virtual seconds at most."""
    started = trio.current_time()
    while not condition():
        assert trio.current_time() - started < seconds, f"not within {seconds} s"
        await trio.sleep(0.05)


def sign_again(record: SignedAnnouncement | None, sequence: int, seed: bytes) -> SignedAnnouncement:
    """The same announcement under a new number."""
    assert record is not None
    said = replace(record.announcement, sequence=sequence)
    return sign_announcement(said, lambda payload: sign(seed, DOMAIN, payload), now=said.issued_at)


async def test_an_offer_is_found_by_everyone_at_once_and_gone_at_once(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        first = await m.node(0)
        nodes = [first, *[await m.node(n, first) for n in (1, 2)]]
        await trio.sleep(1)
        last = nodes[2]
        last.announcer.offer(m.offer())
        await until(lambda: all(node.providers() == {last.peer_id} for node in nodes), 1)
        found = first.discovery.search("SENTI", None, 10)
        assert [(offer.card.name, announcement.peer_id) for offer, announcement in found] == [
            (NAME, last.peer_id)
        ]
        await last.announcer.withdraw()
        assert first.providers() == set(), "withdraw waits until every connected peer knows"
        await until(lambda: all(node.providers() == set() for node in nodes), 0.5)


async def test_what_peers_and_offers_do_is_told(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        first = await m.node(0)
        with first.events.subscribed(set(EventName)) as told:
            other = await m.node(1, first)
            await trio.sleep(1)
            other.announcer.offer(m.offer())
            await trio.sleep(1)
            other.announcer.offer(m.offer(fee="0.2"))
            other.announcer.offer(m.offer("second"))
            await trio.sleep(20)
            await other.announcer.withdraw()
            await trio.sleep(1)
            m.kill(other)
            await trio.sleep(30)
            heard = [(await anext(told)).event for _ in range(8)]
        peer, old, new = other.peer_id, m.offer(), m.offer(fee="0.2")
        assert heard == [
            PeerUpdated(peer, PeerChange.UP),
            PeerUpdated(peer, PeerChange.NEW),
            ModelAnnounced(old, peer, ModelChange.APPEARED),
            ModelAnnounced(new, peer, ModelChange.CHANGED),
            ModelAnnounced(m.offer("second"), peer, ModelChange.APPEARED),
            ModelAnnounced(new, peer, ModelChange.GONE),
            ModelAnnounced(m.offer("second"), peer, ModelChange.GONE),
            PeerUpdated(peer, PeerChange.DOWN),
        ]


async def test_offers_of_a_peer_that_is_heard_of_no_more_go(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        first, other = await m.node(0), await m.node(1)
        first.discovery.met(other.contact)
        other.announcer.offer(m.offer())
        await until(lambda: first.providers() == {other.peer_id}, 5)
        with first.events.subscribed({EventName.MODEL_ANNOUNCE}) as told:
            m.kill(other)
            with trio.fail_after(7200):
                assert (await anext(told)).event == ModelAnnounced(m.offer(), other.peer_id, ModelChange.GONE)


async def test_all_sixty_providers_of_one_name_are_found(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        first = await m.node(0)
        nodes = [first, *[await m.node(n, first) for n in range(1, 59)]]
        for node in nodes:
            node.announcer.offer(m.offer())
        await trio.sleep(3)
        joiner = await m.node(59, nodes[7])
        joiner.announcer.offer(m.offer())
        everyone = {node.peer_id for node in m.nodes.values()}
        await until(lambda: all(node.providers() == everyone for node in m.nodes.values()), 3)


async def test_sessions_that_nobody_uses_are_closed_down_to_a_few(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        first = await m.node(0)
        nodes = [first, *[await m.node(n, first) for n in range(1, 24)]]
        for node in nodes:
            node.announcer.offer(m.offer())
        await trio.sleep(5)
        assert len(first.discovery.sessions.live()) > 20, "everyone came in through it"

        def counts() -> list[int]:
            return [len(node.discovery.sessions.live()) for node in nodes]

        await until(lambda: max(counts()) <= 12, 200)
        await trio.sleep(20)
        assert min(counts()) >= 6
        assert not any(node.discovery.is_down(other.peer_id) for node in nodes for other in nodes)


async def test_directories_alone_converge_when_gossip_brings_nothing(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        first = await m.node(0)
        nodes = [first, *[await m.node(n, first) for n in range(1, 12)]]
        for node in nodes:
            node.announcer.offer(m.offer())
        await trio.sleep(100)
        assert all(len(node.providers()) == 12 for node in nodes)
        for node in nodes:
            node.discovery._gossip.spread = lambda record, giver=None: None  # type: ignore[method-assign]
        for node in nodes:
            node.announcer.offer(m.offer("other", model="other"))
        await until(lambda: all(len(node.providers("other")) == 12 for node in nodes), 8 * 30)


async def test_a_node_restarted_at_a_new_address_is_found_there(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        first = await m.node(0)
        nodes = [first, *[await m.node(n, first) for n in range(1, 8)]]
        nodes[5].announcer.offer(m.offer())
        await trio.sleep(60)
        peer, before = nodes[5].peer_id, nodes[5].host.addresses
        m.kill(nodes[5])
        others = [node for node in nodes if node.number != 5]
        await trio.sleep(20)
        again = await m.node(5, nodes[3])
        assert again.host.addresses != before
        again.announcer.offer(m.offer())

        def known_at(addresses: tuple[str, ...]) -> bool:
            found = [node.discovery.lookup(ModelRef(NAME)) for node in others]
            return all(pairs and pairs[0][1].addresses == addresses for pairs in found)

        await until(lambda: known_at(again.host.addresses), 5)
        for node in others:
            assert (await node.discovery.sessions.to(peer, again.host.addresses)).peer_id == peer


async def test_true_providers_are_found_among_squatters_and_the_dead(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    """20 peers hold all places of the name in the hash table and are mute; 30 % of the others die."""
    async with mesh() as m:
        squatters = [await m.squatter(100 + n, NAME) for n in range(20)]
        first = await m.node(0)
        nodes = [first, *[await m.node(n, first) for n in range(1, 30)]]
        for squatter in squatters:
            for node in Random(squatter.number).sample(nodes, 8):
                await squatter.sessions.to(node.peer_id, node.host.addresses)
        for node in nodes[:12]:
            node.announcer.offer(m.offer())
        await trio.sleep(30)
        for node in Random(7).sample(nodes, 9):
            m.kill(node)
        left = [node for node in nodes if node.number in m.nodes]
        true = {node.peer_id for node in left if node.announcer.offers}
        assert 0 < len(true) < 12
        dead = next(node for node in nodes if node.number not in m.nodes)
        joiner = await m.node(50, *squatters[:6], dead, left[-1])
        await until(lambda: joiner.providers() >= true, 120)


async def test_two_halves_that_meet_again_learn_from_each_other(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        first = await m.node(0)
        nodes = [first, *[await m.node(n, first) for n in range(1, 20)]]
        await trio.sleep(5)
        left, right = nodes[:10], nodes[10:]
        for a in left:
            for b in right:
                m.network.partition(a.peer_id, b.peer_id)
        nodes[0].announcer.offer(m.offer("left"))
        nodes[15].announcer.offer(m.offer("right"))
        await trio.sleep(60)
        assert all(node.providers("left") and not node.providers("right") for node in left)
        m.network.heal()
        bridge = await m.node(99, nodes[3], nodes[13])
        assert bridge.number == 99
        await until(lambda: all(n.providers("left") and n.providers("right") for n in nodes), 30)


async def test_a_killed_provider_is_down_at_once_and_back_when_it_returns(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        nodes = [first := await m.node(0), await m.node(1, first), await m.node(2, first)]
        nodes[2].announcer.offer(m.offer())
        await trio.sleep(30)
        peer = nodes[2].peer_id
        m.kill(nodes[2])
        await until(lambda: all(node.discovery.is_down(peer) for node in nodes[:2]), 1)
        assert first.discovery.search("senti", None, 10) == []
        await trio.sleep(40)
        assert first.discovery.is_down(peer)
        late = sign_again(first.discovery.directory.held(peer), m.sequences(), m.seed(2))
        first.discovery._take(Record.of(late), nodes[1].peer_id)
        assert first.discovery.is_down(peer), "what it said before it died is no sign of life"
        again = await m.node(2, first)
        again.announcer.offer(m.offer())
        await until(lambda: not any(node.discovery.is_down(peer) for node in nodes[:2]), 10)
        assert first.providers() == {peer}


async def test_a_frozen_provider_is_down_within_fifteen_seconds_and_up_when_thawed(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        nodes = [first := await m.node(0), await m.node(1, first), await m.node(2, first)]
        nodes[2].announcer.offer(m.offer())
        await trio.sleep(33)
        peer = nodes[2].peer_id
        m.network.freeze(peer)
        await until(lambda: all(node.discovery.is_down(peer) for node in nodes[:2]), 15.1)
        await trio.sleep(60)
        assert first.discovery.is_down(peer)
        m.network.thaw(peer)
        await until(lambda: not any(node.discovery.is_down(peer) for node in nodes[:2]), 10)


async def test_a_provider_that_others_only_hear_of_down_is_not_believed_down(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    """Down is what a node finds itself: losing a session that was closed by agreement is not that."""
    async with mesh() as m:
        a, b = [first := await m.node(0), await m.node(1, first)]
        b.announcer.offer(m.offer())
        await trio.sleep(1)
        a.discovery._peers._parted[b.peer_id] = trio.current_time()
        a.discovery.sessions.get(b.peer_id).close()  # type: ignore[union-attr]
        await trio.sleep(0.5)
        assert not a.discovery.is_down(b.peer_id)


async def test_find_asks_peers_and_a_lone_node_asks_the_hash_table(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        first = await m.node(0)
        second = await m.node(1, first)
        second.announcer.offer(m.offer())
        await trio.sleep(20)
        lone = await m.node(2)
        await lone.discovery.find(ModelRef(NAME))
        assert lone.providers() == {second.peer_id}
        by_id = await m.node(3)
        await by_id.discovery.find(ModelRef("", id=m.offer().model_id))
        assert by_id.providers() == {second.peer_id}
        started = trio.current_time()
        await first.discovery.find(ModelRef("nobody-has-this"))
        assert trio.current_time() - started < 0.1, "a node that knows its mesh does not wait for the table"


async def test_find_by_what_only_a_peer_knows(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        first = await m.node(0)
        second = await m.node(1, first)
        await trio.sleep(1)
        for node in (first, second):
            node.discovery._gossip.spread = lambda record, giver=None: None  # type: ignore[method-assign]
        second.announcer.offer(m.offer())
        assert first.providers() == set()
        await first.discovery.find(ModelRef(NAME))
        assert first.providers() == {second.peer_id}
