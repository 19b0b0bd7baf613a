"""What a node says of itself is current, paced, and taken back at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, read_packed
from llmesh.core.credentials import payee_of
from llmesh.core.model import Card
from llmesh.errors import InsufficientStake, ValidationFailed
from llmesh.mesh.gossip import BURST, PERIOD
from tests.mesh.discovery.conftest import clock
from tests.mesh.people import signer

if TYPE_CHECKING:
    from tests.mesh.discovery.conftest import Mesh, Node

OpenMesh: TypeAlias = "Callable[..., AbstractAsyncContextManager[Mesh]]"


def said(node: Node, by: Node) -> Announcement:
    """What `node` holds of what another says."""
    record = node.discovery.directory.held(by.peer_id)
    assert record is not None
    return record.announcement


async def test_below_the_networks_stake_nothing_is_announced(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        node = await m.node(0, min_stake="1000.5")
        with pytest.raises(InsufficientStake, match=r"at least 1000\.5 MESH.*has 1000 MESH"):
            node.announcer.offer(m.offer())
        assert node.announcer.offers == ()
        assert node.discovery.directory.held(node.peer_id) is None
        node.announcer.restake(Amount.parse(2000))
        node.announcer.offer(m.offer())
        with pytest.raises(InsufficientStake):
            node.announcer.restake(Amount.parse(1))
        assert said(node, node).stake == node.announcer.stake == Amount.parse(2000)


async def test_offers_that_do_not_fit_are_refused_and_change_nothing(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        node = await m.node(0)
        long = replace(m.offer(), card=Card("m", description="x" * 500))

        def offer_many() -> None:
            for number in range(64):
                node.announcer.offer(replace(long, card=replace(long.card, name=f"m{number}")))

        with pytest.raises(ValidationFailed):
            offer_many()
        offered = node.announcer.offers
        assert 10 < len(offered) < 64
        await trio.sleep(200)
        assert said(node, node).offers == offered


async def test_offers_come_change_and_go(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        a = await m.node(0)
        b = await m.node(1, a)
        await trio.sleep(1)
        for change in (
            lambda: a.announcer.offer(m.offer(fee="0.1")),
            lambda: a.announcer.offer(m.offer(fee="0.2")),
            lambda: a.announcer.offer(m.offer("other", model="other")),
            lambda: a.announcer.retract(m.offer().model_id),
        ):
            before = a.discovery.directory.held(a.peer_id)
            change()
            await trio.sleep(0.5)
            assert said(b, a).offers == a.announcer.offers
            assert before is None or said(b, a).sequence > before.announcement.sequence
        assert [offer.card.name for offer in said(b, a).offers] == ["other"]
        a.announcer.retract(m.offer().model_id)
        await trio.sleep(0.5)
        assert said(b, a).sequence == said(a, a).sequence, "retracting nothing announces nothing"


async def test_an_announcement_is_renewed_before_it_dies(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        a = await m.node(0)
        b = await m.node(1, a)
        a.announcer.offer(m.offer())
        await trio.sleep(1)
        first = said(b, a)
        assert first.expires_at - first.issued_at == 1800
        await trio.sleep(3600)
        assert b.providers() == {a.peer_id}
        assert 6 <= said(b, a).sequence - first.sequence <= 7, "every ten minutes, not more"


async def test_a_new_address_is_announced(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        a = await m.node(0)
        b = await m.node(1, a)
        a.announcer.offer(m.offer())
        await trio.sleep(1)
        a.host.addresses = ("/ip4/198.51.100.9/tcp/4001",)
        await trio.sleep(6)
        assert said(b, a).addresses == a.host.addresses


async def test_more_addresses_than_fit_harm_nothing(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        node = await m.node(0)
        node.announcer.offer(m.offer())
        node.host.addresses = tuple(f"/ip4/198.51.100.{n}/tcp/4001" for n in range(40))
        await trio.sleep(6)
        assert said(node, node).addresses == node.host.addresses[:16]
        sequence = said(node, node).sequence
        await trio.sleep(60)
        assert said(node, node).sequence == sequence
        node.host.addresses = ("nonsense",)
        await trio.sleep(6)
        assert said(node, node).sequence == sequence, "what nobody would take is not said, and harms nothing"


async def test_a_flood_of_changes_is_paced_and_its_end_arrives(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        a = await m.node(0)
        b = await m.node(1, a)
        await trio.sleep(1)
        for number in range(100):
            a.announcer.offer(m.offer(fee=f"0.{number + 1:03}"))
        await trio.sleep(0.5)
        early = said(b, a)
        assert early.sequence < BURST + 1
        await trio.sleep(2 * PERIOD)
        assert said(b, a).offers == a.announcer.offers
        assert said(b, a).offers[0].fee == Amount.parse("0.1")
        payee = payee_of(said(b, a), said(b, a).offers[0], clock())
        assert payee.account == signer("0").address


async def test_a_node_that_lost_its_counter_outdoes_its_earlier_life(
    mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with mesh() as m:
        a, b = [first := await m.node(0), await m.node(1, first)]
        for _ in range(5):
            b.announcer.offer(m.offer())
        await trio.sleep(1)
        m.kill(b)
        m.sequences = count(1).__next__
        again = await m.node(1, a)
        again.announcer.offer(m.offer("new"))
        await trio.sleep(15)
        assert [offer.card.name for offer in said(a, again).offers] == ["new"]


async def test_a_withdrawal_outlives_what_it_withdraws(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        nodes = [first := await m.node(0), await m.node(1, first), await m.node(2, first)]
        nodes[2].announcer.offer(m.offer())
        await trio.sleep(5)
        before = nodes[1].discovery.directory.held(nodes[2].peer_id)
        assert before is not None
        with trio.fail_after(0.5):
            await nodes[2].announcer.withdraw()
        stored = await first.host.dht.get(nodes[2].peer_id)
        assert stored is not None
        gone = read_packed(stored, now=before.announcement.issued_at + 10).announcement
        assert gone.offers == ()
        assert gone.sequence > before.announcement.sequence
        assert gone.expires_at >= before.announcement.expires_at
        m.kill(nodes[2])
        await trio.sleep(300)
        assert first.providers() == nodes[1].providers() == set()
        assert not first.discovery.is_down(gone.peer_id), "who has withdrawn is not missed"


async def test_withdrawing_nothing_says_nothing(mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with mesh() as m:
        node = await m.node(0)
        await node.announcer.withdraw()
        assert node.discovery.directory.held(node.peer_id) is None
