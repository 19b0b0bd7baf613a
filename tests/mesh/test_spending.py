"""What requests do to their caller's purse: held before they are sent, whatever becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.account import Purse
from llmesh.core.admission import Limits
from llmesh.core.amount import Amount
from llmesh.core.exchange import Accepted, Completed, Event
from llmesh.core.ids import RequestId
from llmesh.core.inference import InferenceRequest, Usage
from llmesh.core.reference import ModelRef
from llmesh.errors import InsufficientBalance, MeshError, ModelFailed, NodeBusy, RequestTimeout
from llmesh.journal.purse import DurablePurse
from llmesh.net.call import Call, Handler
from llmesh.runtime.echo import EchoRuntime
from llmesh.wire.inference import encode_event
from tests.core.receipts import costing
from tests.mesh.people import peer

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh

OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
ONE, TWO = "0.000001", "0.000002"
numbers = count(1)


def request(timeout: float = 30.0) -> InferenceRequest:
    return InferenceRequest(
        RequestId(f"{next(numbers):032x}"), ModelRef.parse("senti"), {"text": "good"}, timeout
    )


def purse_of(micro: int) -> DurablePurse:
    async def keep(mark: Amount) -> None:
        await trio.sleep(0.01)

    return DurablePurse(Purse(Amount(micro)), keep)


def saying(*events: Event | MeshError) -> Handler:
    """A peer that says just that and then hangs."""

    async def answer(call: Call, message: bytes) -> None:
        for event in events:
            if isinstance(event, MeshError):
                raise event
            await call.send(encode_event(event))
            await trio.sleep(0.1)
        await trio.sleep_forever()

    return answer


async def test_of_two_hundred_at_once_exactly_one_hundred_pass(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    purse, passed, refused = purse_of(100), 0, 0

    async def ask() -> None:
        nonlocal passed, refused
        try:
            await ann.router.infer(request(), None, purse)
        except InsufficientBalance:
            refused += 1
        else:
            passed += 1

    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        limits = Limits(running=300, per_peer=300)
        bob = await mesh.add("bob", runtime=EchoRuntime(delay=0.5), limits=limits)
        await bob.deploy("senti", "a", fee=ONE)
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(ask)
    assert (passed, refused) == (100, 100)
    assert (purse.committed, purse.left) == (Amount(100), Amount(0))


async def test_a_stream_pays_too_and_own_models_cost_nothing(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee=ONE)
        purse = purse_of(3)
        async with ann.router.stream(request(), None, purse) as events:
            assert [event async for event in events]
        assert purse.committed == Amount(1)
        await bob.router.infer(request(), None, purse)
        assert purse.committed == Amount(1)


@pytest.mark.parametrize("error", [NodeBusy("No place is free."), ModelFailed("It broke.")])
@pytest.mark.parametrize("before", [(), (Accepted(),)])
async def test_what_a_provider_refuses_costs_nothing(
    open_mesh: OpenMesh, autojump_clock: MockClock, error: MeshError, before: tuple[Event, ...]
) -> None:
    async with open_mesh() as mesh:
        ann, purse = await mesh.add("ann"), purse_of(2)
        await (await mesh.add("bob", answer=saying(*before, error))).deploy("senti", "a", fee=ONE)
        await (await mesh.add("cat")).deploy("senti", "a", fee=TWO)
        assert (await ann.router.infer(request(), None, purse)).provider == peer("cat")
        assert purse.committed == Amount(2)


@pytest.mark.parametrize("before", [(), (Accepted(),)])
async def test_what_may_still_be_charged_stays_held_until_the_provider_is_asked(
    open_mesh: OpenMesh, autojump_clock: MockClock, before: tuple[Event, ...]
) -> None:
    async with open_mesh() as mesh:
        ann, purse = await mesh.add("ann"), purse_of(1)
        await (await mesh.add("bob", answer=saying(*before))).deploy("senti", "a", fee=ONE)
        asked = request(timeout=5)
        for _ in range(2):  # also the same request again, as under an Idempotency-Key
            with pytest.raises((RequestTimeout, MeshError)):
                await ann.router.infer(asked, None, purse)
            assert purse.committed == Amount(1)
            await trio.sleep(5)
            assert purse.committed == Amount(0), "the provider says that it has charged nothing"


async def test_more_than_was_offered_is_not_paid(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        ann, purse = await mesh.add("ann"), purse_of(5)
        greedy = Completed(Usage(1, 1, 0.0), costing(5))
        await (await mesh.add("bob", answer=saying(Accepted(), greedy))).deploy("senti", "a", fee=ONE)
        await (await mesh.add("cat")).deploy("senti", "a", fee=TWO)
        result = await ann.router.infer(request(), None, purse)
        assert (result.provider, result.fee) == (peer("cat"), Amount(2))
        assert purse.committed == Amount(3), "what the greedy one may still claim of its quote is held"
