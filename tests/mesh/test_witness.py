"""Each inference is told once at either end, with its outcome; what is given up is not told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.inference import Attempt, Consumer, InferenceRequest, Result
from llmesh.core.reference import ModelRef
from llmesh.core.trace import Trace
from llmesh.errors import MeshError, ModelNotFound, NetworkError, RequestTimeout
from llmesh.mesh.events import EventName, Events, InferenceEnded, Served, Subscription
from llmesh.mesh.tracing import current_trace, traced
from llmesh.mesh.witness import asked, seen
from llmesh.net.inference import handler
from tests.mesh.people import peer

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh

OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
REQUEST = InferenceRequest(RequestId("a" * 32), ModelRef("senti"), {"text": "good day"})
MODEL = ModelId("c" * 64)


async def only(subscription: Subscription) -> InferenceEnded:
    """The one event there was."""
    with trio.fail_after(1):
        event = (await anext(subscription)).event
    with trio.move_on_after(0.1) as more:
        await anext(subscription)
    assert more.cancelled_caught
    assert isinstance(event, InferenceEnded)
    return event


async def fail_later(events: Events, error: MeshError) -> None:
    with asked(events, REQUEST):
        await trio.sleep(2)
        raise error


async def test_an_answer_and_a_failure_are_told_to_the_caller_side(autojump_clock: MockClock) -> None:
    events = Events()
    result = Result(REQUEST.id, "senti", MODEL, {}, Amount(7), PeerId("p"), 12.5)
    with events.subscribed({EventName.INFERENCE}) as told:
        with asked(events, REQUEST) as witness:
            witness.result = result
        assert await only(told) == InferenceEnded(
            REQUEST.id, Served.CALLER, "senti", MODEL, PeerId("p"), Amount(7), 12.5
        )
        error = ModelNotFound("none")
        with pytest.raises(ModelNotFound):
            await fail_later(events, error)
        assert await only(told) == InferenceEnded(
            REQUEST.id, Served.CALLER, "senti", None, None, Amount(0), pytest.approx(2000), error
        )


async def test_what_is_given_up_is_not_told(autojump_clock: MockClock) -> None:
    events = Events()
    with events.subscribed({EventName.INFERENCE}) as told:
        with trio.move_on_after(1), asked(events, REQUEST):
            await trio.sleep_forever()
        with trio.move_on_after(1) as nothing:
            await anext(told)
    assert nothing.cancelled_caught


async def test_a_provider_tells_of_what_it_serves(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    events, ann = Events(), Consumer(peer("ann"))
    async with open_mesh() as mesh:
        node = await mesh.add("node")
        await node.deploy("senti", "c")
        serve = seen(events, node.provider)
        attempt = Attempt(REQUEST.id, 1, MODEL, {"text": "hi"}, Amount.parse(1), 5.0)
        with events.subscribed({EventName.INFERENCE}) as told:
            async with serve(attempt, ann) as pieces:
                assert [piece async for piece in pieces]
            ended = await only(told)
            assert (ended.served, ended.model, ended.model_id) == (Served.PEER, "senti", MODEL)
            assert (ended.provider, ended.fee, ended.error) == (node.peer_id, Amount(0), None)
            late = Attempt(REQUEST.id, 2, MODEL, {"text": "hi"}, Amount.parse(1), 0)
            with pytest.raises(RequestTimeout):
                async with serve(late, ann):
                    pass
            ended = await only(told)
            assert isinstance(ended.error, RequestTimeout)
            assert ended.fee == Amount(0)


async def test_what_a_consumer_cuts_is_not_told_by_the_provider(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    """Its next piece finds the call over before the cancel arrives."""
    events, ann = Events(), Consumer(peer("ann"))
    async with open_mesh() as mesh:
        node = await mesh.add("node")
        await node.deploy("senti", "c")
        serve = seen(events, node.provider)

        async def cut() -> None:
            async with serve(Attempt(REQUEST.id, 1, MODEL, {"text": "hi"}, Amount.parse(1), 5.0), ann):
                raise NetworkError("The call is over.")

        with events.subscribed({EventName.INFERENCE}) as told:
            with pytest.raises(NetworkError):
                await cut()
            with trio.move_on_after(1) as nothing:
                await anext(told)
    assert nothing.cancelled_caught


async def test_a_trace_is_carried_over_the_mesh(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    steps: list[Trace | None] = []
    events = Events(lambda _: steps.append(current_trace()))
    story = Trace("4b" * 16, "0f" * 8)
    async with open_mesh() as mesh:
        answer = handler(lambda attempt, consumer: seen(events, node.provider)(attempt, consumer))
        node, asker = await mesh.add("node", answer=answer), await mesh.add("asker")
        await node.deploy("senti", "c")
        with traced(story):
            await asker.router.infer(REQUEST)
    (step,) = steps
    assert step is not None
    assert step.id == story.id
    assert step.span not in (story.span, "")
