"""Telling never waits, whoever listens how slowly."""

from __future__ import annotations

import trio
import trio.testing

from llmesh.core.ids import PeerId
from llmesh.mesh.events import EventName, Events, MeshEvent, PeerChange, PeerUpdated, Subscription, Told


def news(number: int) -> MeshEvent:
    return PeerUpdated(PeerId(str(number)), PeerChange.UP)


async def read(subscription: Subscription, count: int) -> list[Told]:
    return [await anext(aiter(subscription)) for _ in range(count)]


async def test_each_subscriber_gets_what_it_wants_in_order() -> None:
    events = Events()
    with events.subscribed({EventName.PEER_UPDATE}) as peers, events.subscribed(()) as nothing:
        for number in range(3):
            events.tell(news(number))
        assert await read(peers, 3) == [Told(news(number), 0) for number in range(3)]
        nothing.names.add(EventName.PEER_UPDATE)
        events.tell(news(3))
        assert await read(nothing, 1) == [Told(news(3), 0)]
        peers.names.clear()
        events.tell(news(4))
        with trio.move_on_after(0) as waited:
            await read(peers, 2)
    assert waited.cancelled_caught
    events.tell(news(5))


async def test_a_slow_subscriber_loses_the_oldest_and_learns_how_many() -> None:
    events = Events()
    with events.subscribed({EventName.PEER_UPDATE}, capacity=2) as slow:
        for number in range(5):
            events.tell(news(number))
        assert await read(slow, 2) == [Told(news(3), 3), Told(news(4), 0)]


async def test_a_reader_is_woken() -> None:
    events, got = Events(), list[Told]()
    with events.subscribed({EventName.PEER_UPDATE}) as subscription:

        async def listen() -> None:
            got.extend(await read(subscription, 2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for number in range(2):
                await trio.testing.wait_all_tasks_blocked()
                events.tell(news(number))
    assert [told.event for told in got] == [news(0), news(1)]
