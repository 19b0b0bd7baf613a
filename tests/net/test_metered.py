"""What passes through is counted and otherwise untouched."""

from __future__ import annotations

from collections.abc import Sequence

from llmesh.core.ids import PeerId
from llmesh.core.meter import Meter, Metric
from llmesh.net.call import Call
from llmesh.net.host import PeerAddress
from llmesh.net.memory import MemoryNetwork
from llmesh.net.metered import MeteredDht
from llmesh.net.sessions import open_sessions

ALICE, BOB = PeerId("A"), PeerId("B")


class FakeDht:
    async def put(self, peer: PeerId, record: bytes) -> bool:
        return True

    async def get(self, peer: PeerId) -> bytes | None:
        return None

    async def provide(self, key: bytes) -> bool:
        return False

    async def find(self, key: bytes) -> Sequence[PeerAddress]:
        return ()


async def test_calls_of_the_table_are_counted_by_what_they_brought() -> None:
    meter = Meter()
    dht = MeteredDht(FakeDht(), meter)
    assert await dht.put(ALICE, b"x")
    assert await dht.get(ALICE) is None
    assert not await dht.provide(b"k")
    assert not await dht.find(b"k")
    counted = meter.counters[Metric.DHT_CALLS]
    assert counted == {
        ("put", "ok"): 1, ("get", "nothing"): 1, ("provide", "nothing"): 1, ("find", "nothing"): 1,
    }  # fmt: skip


async def echo(call: Call, message: bytes) -> None:
    await call.send(message)


async def test_bytes_of_both_directions_are_counted_at_both_ends() -> None:
    network, meters = MemoryNetwork(), (Meter(), Meter())
    async with (
        network.host(ALICE) as alice,
        network.host(BOB) as bob,
        open_sessions(alice, {}, meter=meters[0]) as asking,
        open_sessions(bob, {"/echo": echo}, meter=meters[1]),
    ):
        session = await asking.to(BOB, bob.addresses)
        async with session.call("/echo", b"x" * 100_000) as call:
            assert await call.receive() == b"x" * 100_000
        sent, received = (meters[0].value(Metric.SESSION_BYTES, way) for way in ("sent", "received"))
        assert 100_000 < sent < 110_000
        assert 100_000 < received < 110_000
        assert meters[1].value(Metric.SESSION_BYTES, "received") <= sent
