"""Requests through a small mesh in memory, in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from llmesh.core.admission import Limits
from llmesh.core.amount import Amount
from llmesh.core.exchange import Accepted, Completed, Event
from llmesh.core.ids import PeerId, RequestId
from llmesh.core.inference import Chunk, InferenceRequest, Result, Usage
from llmesh.core.reference import ModelRef
from llmesh.core.wishes import Wishes
from llmesh.errors import (
    MeshError,
    ModelFailed,
    ModelNotFound,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    RequestTimeout,
    ValidationFailed,
)
from llmesh.mesh.router import RouterSettings, Streamed
from llmesh.net.call import Call, Handler
from llmesh.runtime.echo import EchoRuntime
from llmesh.wire.inference import encode_event
from tests.core.receipts import costing
from tests.mesh.people import CHAIN, peer

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh, Node

OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
A, B = "a" * 64, "b" * 64
ANN, BOB, CAT, DAN, EVE, GHOST = map(peer, ("ann", "bob", "cat", "dan", "eve", "ghost"))
numbers = count(1)


def request(
    model: str = "senti", text: str = "good day", timeout: float = 30.0, max_fee: str | None = None
) -> InferenceRequest:
    fee = None if max_fee is None else Amount.parse(max_fee)
    id = RequestId(f"{next(numbers):032x}")
    return InferenceRequest(id, ModelRef.parse(model), {"text": text}, timeout, fee)


def saying(*events: Event | MeshError | float) -> Handler:
    """A peer that says just that, legal or not; a number is a pause in seconds."""

    async def answer(call: Call, message: bytes) -> None:
        for event in events:
            if isinstance(event, float):
                await trio.sleep(event)
            elif isinstance(event, MeshError):
                raise event
            else:
                await call.send(encode_event(event))

    return answer


async def garbage(call: Call, message: bytes) -> None:
    await call.send(b"\xff\xff")


async def streamed(node: Node, asked: InferenceRequest) -> list[Streamed]:
    async with node.router.stream(asked) as events:
        return [event async for event in events]


# --- who answers ------------------------------------------------------------------------------


async def test_a_peer_answers_and_is_paid(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=0.5))
        await bob.deploy("senti", "a", fee="0.1")
        asked = request()
        result = await ann.router.infer(asked)
        assert result == Result(
            request_id=asked.id,
            model="senti",
            model_id=bob.provider.offers[0].model_id,
            output={"text": "good day"},
            fee=Amount.parse("0.1"),
            provider=BOB,
            latency_ms=pytest.approx(500),  # type: ignore[arg-type]
            usage=Usage(2, 2, 0.0),
            receipt=result.receipt,
            chain=CHAIN,
        )


async def test_the_answer_says_who_was_passed_over(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.2")
        await (await mesh.add("cat", answer=saying(NodeBusy("No place is free.")))).deploy(
            "senti", "a", fee="0.1"
        )
        await (await mesh.add("dan")).deploy("senti", "a", fee="3")
        await (await mesh.add("eve")).deploy("senti", "a")
        wishes = Wishes(deny=frozenset({EVE}))
        plan = await ann.router.plan(request(max_fee="1"), wishes)
        assert [c.peer_id for c in plan.candidates] == [CAT, BOB]
        assert [(s.peer_id, s.code) for s in plan.skipped] == [(EVE, 1001), (DAN, 1001)]
        assert ann.sessions.live() == []  # nothing was run
        result = await ann.router.infer(request(max_fee="1"), wishes)
        assert (result.provider, result.attempts) == (BOB, 2)
        assert [(s.peer_id, s.code) for s in result.skipped] == [(EVE, 1001), (DAN, 1001), (CAT, 2003)]


@pytest.mark.parametrize("timeout", [0, 1e9])
async def test_a_plan_takes_no_bad_request(open_mesh: OpenMesh, timeout: float) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        with pytest.raises(ValidationFailed):
            await ann.router.plan(request(timeout=timeout))


async def test_own_models_answer_without_money_or_network(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await ann.deploy("senti", "a", fee="5")
        await bob.deploy("senti", "a", fee="1")
        result = await ann.router.infer(request(max_fee="0"))
        assert (result.provider, result.fee) == (ANN, Amount(0))
        assert ann.sessions.live() == []


async def test_a_stream_gives_accepted_chunks_and_the_result(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(words=1))
        await bob.deploy("senti", "a")
        for node in (ann, bob):
            *events, result = await streamed(node, request())
            assert events == [
                Accepted(0, 0.0),
                Chunk(0, "good "),
                Chunk(1, "day", values={"text": "good day"}),
            ]
            assert isinstance(result, Result)
            assert result.output == {"text": "good day"}
            assert result.provider == BOB


async def test_a_name_unknown_here_is_searched_for_once(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a")
        bob.hide()
        assert (await ann.router.infer(request())).provider == BOB
        await ann.router.infer(request())
        assert mesh.board.searches == 1


async def test_a_model_nobody_has(
    open_mesh: OpenMesh, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        for model in ("senti", "senti:2.0.0", A):
            with pytest.raises(ModelNotFound, match=model):
                await ann.router.infer(request(model))

        async def never(ref: ModelRef) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(mesh.board, "find", never)
        for timeout, waited in ((30.0, 5.0), (1.0, 0.5)):
            start = trio.current_time()
            with pytest.raises(ModelNotFound):
                await ann.router.infer(request(timeout=timeout))
            assert trio.current_time() - start == pytest.approx(waited)


async def test_two_models_of_one_name_never_cross(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        bob, cat = await mesh.add("bob", stake=10), await mesh.add("cat", stake=20)
        await bob.deploy("senti", "a")
        await cat.deploy("senti", "b")
        answers: list[tuple[str, Result]] = []

        async def one(model: str) -> None:
            answers.append((model, await ann.router.infer(request(model))))

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                for model in ("senti", f"senti@{A}", f"senti@{B}", A):
                    nursery.start_soon(one, model)
        asked = {(model, result.model_id, result.provider) for model, result in answers}
        assert asked == {
            ("senti", B, CAT),
            (f"senti@{A}", A, BOB),
            (f"senti@{B}", B, CAT),
            (A, A, BOB),
        }


async def test_the_other_model_of_the_name_is_no_way_out(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", stake=10)
        cat = await mesh.add("cat", stake=20, answer=saying(NodeBusy("full")))
        await bob.deploy("senti", "a")
        await cat.deploy("senti", "b")
        with pytest.raises(NodeBusy):
            await ann.router.infer(request())
        assert bob.runtime.started == 0


async def test_the_name_before_a_pin_must_be_the_models(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob, cat = await mesh.add("ann"), await mesh.add("bob"), await mesh.add("cat")
        await bob.deploy("senti", "a", fee="0.2")
        await cat.deploy("mood", "a", fee="0.1", version="2.0.0")
        for asker in (ann, bob):  # bob has that model itself
            for pin in (f"joy@{A}", f"senti:2.0.0@{A}"):
                with pytest.raises(ModelNotFound, match=r"offered as mood:2\.0\.0, senti:1\.0\.0\."):
                    await asker.router.infer(request(pin))
        with pytest.raises(ModelNotFound, match=f"No valid offer of senti@{B} is known, here"):
            await ann.router.infer(request(f"senti@{B}"))
        for pin, name, provider in (
            (f"senti@{A}", "senti", BOB),
            (f"senti:1.0.0@{A}", "senti", BOB),
            (f"mood:2.0.0@{A}", "mood", CAT),
            (A, "mood", CAT),
        ):
            result = await ann.router.infer(request(pin))
            assert (result.model, result.provider) == (name, provider)


async def test_stake_of_nobody_does_not_take_a_name_for_good(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", stake=10)
        ghost = await mesh.add("ghost", stake=10**9)
        await bob.deploy("senti", "a")
        await ghost.deploy("senti", "b")
        mesh.network.kill(GHOST)
        with pytest.raises(NodeUnreachable, match=f"senti meant model {B}.* senti@{A}"):
            await ann.router.infer(request())
        assert bob.runtime.started == 0
        for _ in range(5):
            assert (await ann.router.infer(request())).model_id == A
            await trio.sleep(10)
        with pytest.raises(NodeUnreachable) as caught:
            await ann.router.infer(request(f"senti@{B}"))
        assert A not in caught.value.message


@pytest.mark.parametrize("timeout", [1.5, 30.0])
async def test_stake_that_hangs_does_not_either(
    open_mesh: OpenMesh, autojump_clock: MockClock, timeout: float
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", stake=10)
        ghost = await mesh.add("ghost", stake=10**9)
        await bob.deploy("senti", "a")
        await ghost.deploy("senti", "b")
        mesh.network.freeze(GHOST)
        with pytest.raises((NodeUnreachable, RequestTimeout)):
            await ann.router.infer(request(timeout=timeout))
        assert (await ann.router.infer(request(timeout=timeout))).model_id == A


async def test_a_short_timeout_says_nothing_of_a_peer(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", stake=10)
        cat = await mesh.add("cat", stake=20)
        await bob.deploy("senti", "a")
        await cat.deploy("senti", "b")
        mesh.network.weather = type(mesh.network.weather)(delay=0.05)
        with pytest.raises(RequestTimeout):
            await ann.router.infer(request(timeout=0.08))
        assert (await ann.router.infer(request())).model_id == B


async def test_a_name_means_what_somebody_serves(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", stake=10)
        cat = await mesh.add("cat", stake=20)
        await bob.deploy("senti", "a")
        await cat.deploy("senti", "b")
        mesh.down.add(CAT)
        assert (await ann.router.infer(request())).model_id == A
        mesh.down.add(BOB)  # with nobody present all compete as before
        assert (await ann.router.infer(request())).model_id == B


async def test_a_busy_provider_keeps_its_models_name(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", stake=10)
        cat = await mesh.add("cat", stake=20, answer=saying(NodeBusy("full", retry_after=8.0)))
        await bob.deploy("senti", "a")
        await cat.deploy("senti", "b")
        for _ in range(2):
            with pytest.raises(NodeBusy):
                await ann.router.infer(request())
        assert bob.runtime.started == 0


async def test_own_model_of_the_name_comes_before_the_most_bonded(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", stake=10**9)
        await ann.deploy("senti", "a")
        await bob.deploy("senti", "b", version="2.0.0")
        assert (await ann.router.infer(request())).model_id == A
        assert (await ann.router.infer(request("senti:2.0.0"))).model_id == B
        await ann.deploy("senti", "c", version="3.0.0")
        assert (await ann.router.infer(request())).model_id == "c" * 64


async def test_the_callers_wishes_decide(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob, cat = await mesh.add("ann"), await mesh.add("bob", stake=5), await mesh.add("cat", stake=50)
        await bob.deploy("senti", "a", fee="0.1")
        await cat.deploy("senti", "a", fee="0.2")
        for wishes, provider in (
            (None, BOB),
            (Wishes(min_stake=Amount(6)), CAT),
            (Wishes(deny=frozenset({BOB})), CAT),
            (Wishes(allow=frozenset({CAT})), CAT),
        ):
            assert (await ann.router.infer(request(), wishes)).provider == provider
        with pytest.raises(ModelNotFound, match=r"cheapest offer of senti costs 0\.1 MESH"):
            await ann.router.infer(request(max_fee="0.05"))
        with pytest.raises(ModelNotFound, match="None of the 2 known providers"):
            await ann.router.infer(request(), Wishes(min_stake=Amount(51)))


async def test_whoever_is_slow_is_asked_less(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        slow, quick = (
            await mesh.add("slow", runtime=EchoRuntime(delay=1.0)),
            await mesh.add("quick", runtime=EchoRuntime(delay=0.05)),
        )
        for node in (slow, quick):
            await node.deploy("senti", "a")
        for _ in range(20):
            await ann.router.infer(request())
        assert quick.runtime.started >= 19


# --- when it goes wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        NodeBusy("full", retry_after=3.0),
        ModelFailed("out of memory"),
        ModelNotFound("gone"),
        NetworkError("gave up"),
        RequestTimeout("too slow for me"),
    ],
    ids=lambda error: error.name,
)
async def test_the_next_candidate_answers(open_mesh: OpenMesh, failure: MeshError) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        cat = await mesh.add("cat", answer=saying(Accepted(), failure))
        await cat.deploy("senti", "a", fee="0.1")
        await bob.deploy("senti", "a", fee="0.2")
        result = await ann.router.infer(request())
        assert (result.provider, result.attempts, result.fee) == (BOB, 2, Amount.parse("0.2"))


async def test_a_bad_request_is_the_callers_wherever_it_is_found(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob, cat = await mesh.add("ann"), await mesh.add("bob"), await mesh.add("cat")
        for node in (bob, cat):
            await node.deploy("senti", "a")
        await ann.deploy("mood", "b")
        for model in ("senti", "mood"):
            asked = request(model, text="")
            with pytest.raises(ValidationFailed, match="not empty") as caught:
                await ann.router.infer(asked)
            assert caught.value.request_id == asked.id
        assert ann.reputation._standings == {}


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 3601])
async def test_a_timeout_is_a_number_of_seconds(open_mesh: OpenMesh, timeout: float) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        await ann.deploy("senti", "a")
        with pytest.raises(ValidationFailed, match="timeout"):
            await ann.router.infer(request(timeout=timeout))
        assert ann.runtime.started == 0


RUDE = {
    "garbage": garbage,
    "no accepted": saying(Chunk(0)),
    "wrong index": saying(Accepted(), Chunk(0), Chunk(2)),
    "fee above quote": saying(Accepted(), Chunk(0), Completed(Usage(), costing(10**12))),
    "early end": saying(Accepted(), Chunk(0)),
}


@pytest.mark.parametrize("rude", RUDE.values(), ids=RUDE.keys())
async def test_a_rude_peer_loses_its_standing(open_mesh: OpenMesh, rude: Handler) -> None:
    async with open_mesh() as mesh:
        ann, bob, cat = await mesh.add("ann"), await mesh.add("bob"), await mesh.add("cat", answer=rude)
        await cat.deploy("senti", "a", fee="0.1")
        await bob.deploy("senti", "a", fee="0.2")
        attempts = [(await ann.router.infer(request())).attempts for _ in range(3)]
        assert attempts == [2, 1, 1]
        with pytest.raises(ValidationFailed) as caught:
            await ann.router.infer(request(), Wishes(allow=frozenset({CAT})))
        assert caught.value.peer_id == CAT


async def test_a_fee_that_rose_is_not_paid(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob, cat = await mesh.add("ann"), await mesh.add("bob"), await mesh.add("cat")
        await cat.deploy("senti", "a", fee="0.3")
        cat.claim(fee=Amount.parse("0.1"))
        await bob.deploy("senti", "a", fee="0.2")
        result = await ann.router.infer(request())
        assert (result.provider, result.fee) == (BOB, Amount.parse("0.2"))
        assert cat.runtime.started == 0


async def test_a_killed_sole_provider_is_unreachable_at_once(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a")
        await ann.router.infer(request())
        mesh.network.kill(BOB)
        for _ in range(2):  # with the session that is left, and by a dial
            start = trio.current_time()
            with pytest.raises(NodeUnreachable):
                await ann.router.infer(request())
            assert trio.current_time() - start <= 2.0


@pytest.mark.parametrize("connected", [True, False])
async def test_a_frozen_sole_provider_costs_the_attempt_window(
    open_mesh: OpenMesh, autojump_clock: MockClock, connected: bool
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a")
        if connected:
            await ann.router.infer(request())
        mesh.network.freeze(BOB)
        start = trio.current_time()
        with pytest.raises(NodeUnreachable, match="did not accept the request within 2 s"):
            await ann.router.infer(request())
        assert trio.current_time() - start == pytest.approx(2.0)
        mesh.network.thaw(BOB)
        assert (await ann.router.infer(request())).provider == BOB


async def test_half_of_the_time_is_kept_for_the_others(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob, cat = await mesh.add("ann"), await mesh.add("bob"), await mesh.add("cat")
        await cat.deploy("senti", "a", fee="0.1")
        await bob.deploy("senti", "a", fee="0.2")
        mesh.network.freeze(CAT)
        result = await ann.router.infer(request(timeout=1.0))
        assert result.provider == BOB
        assert result.latency_ms == pytest.approx(500)


async def test_a_link_lost_before_the_answer_leads_on_and_after_accepting_says_so(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=1.0))
        await bob.deploy("senti", "a")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def kill() -> None:
                await trio.sleep(0.5)
                mesh.network.kill(BOB)

            with pytest.raises(NetworkError) as caught:
                await ann.router.infer(request())
            assert not isinstance(caught.value, NodeUnreachable)


@pytest.mark.parametrize(
    "failed",
    [
        NetworkError(f"The session with {BOB} is over: The link to peer {BOB} broke: it ended."),
        NodeUnreachable(f"Peer {BOB} opened no session: The link to peer {BOB} broke: it ended."),
    ],
    ids=lambda error: error.name,
)
async def test_who_failed_is_named_once(
    open_mesh: OpenMesh, monkeypatch: pytest.MonkeyPatch, failed: MeshError
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a")

        async def fails(peer: PeerId, addresses: object) -> None:
            raise failed

        monkeypatch.setattr(ann.sessions, "to", fails)
        with pytest.raises(NodeUnreachable) as caught:
            await ann.router.infer(request())
        assert caught.value.message.endswith(": it ended.")
        assert caught.value.message.count(BOB) == 1


async def test_all_failures_are_told_as_the_most_telling(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        cat = await mesh.add("cat", answer=saying(NodeBusy("All places are taken.", retry_after=3.0)))
        for node in (bob, cat):
            await node.deploy("senti", "a")
        mesh.network.kill(BOB)
        asked = request()
        with pytest.raises(NodeBusy, match="All places are taken") as caught:
            await ann.router.infer(asked)
        assert caught.value.retry_after == 3.0
        assert caught.value.request_id == asked.id
        assert "2 tried" in caught.value.message
        assert f"{BOB[-8:]}: NodeUnreachable" in caught.value.message


async def test_no_more_than_so_many_are_tried(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann", settings=RouterSettings(attempts=3))
        for number in range(6):
            node = await mesh.add(f"peer{number}", answer=saying(NodeBusy("full")))
            await node.deploy("senti", "a")
        with pytest.raises(NodeBusy, match="3 tried"):
            await ann.router.infer(request())


async def test_a_timeout_stops_the_provider(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=100))
        await bob.deploy("senti", "a", fee="1")
        for node in (ann, bob):
            start = trio.current_time()
            with pytest.raises(RequestTimeout):
                await node.router.infer(request(timeout=0.05))
            assert trio.current_time() - start == pytest.approx(0.05, abs=1e-3)
            await wait_all_tasks_blocked()
            assert (bob.runtime.running, bob.provider.running) == (0, 0)
        assert bob.runtime.cancelled == 2


async def test_the_shortest_timeouts_are_late_and_nothing_else(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=0.2))
        ann.runtime.delay = 0.2
        await ann.deploy("mood", "b")
        await bob.deploy("senti", "a")
        for model in ("mood", "senti"):
            for power in range(-40, -3):  # in real time, so that it passes between any two steps
                with pytest.raises(RequestTimeout):
                    await ann.router.infer(request(model, timeout=2.0**power))
            with pytest.raises(RequestTimeout):
                await streamed(ann, request(model, timeout=1e-9))
        await wait_all_tasks_blocked()
        assert ann.provider.running == bob.provider.running == 0


async def test_whoever_let_a_deadline_pass_is_known_as_slow(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=100))
        await bob.deploy("senti", "a")
        with pytest.raises(RequestTimeout):
            await ann.router.infer(request(timeout=7.0))
        cat = await mesh.add("cat")
        await cat.deploy("senti", "a")
        assert (await ann.router.infer(request())).provider == CAT


# --- streams ----------------------------------------------------------------------------------


async def test_after_a_chunk_was_seen_nobody_else_is_asked(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        cat = await mesh.add("cat", answer=saying(Accepted(), Chunk(0, "a"), ModelFailed("died")))
        await cat.deploy("senti", "a", fee="0.1")
        await bob.deploy("senti", "a", fee="0.2")
        async with ann.router.stream(request()) as events:
            assert [await anext(events), await anext(events)] == [Accepted(), Chunk(0, "a")]
            with pytest.raises(ModelFailed, match="died"):
                await anext(events)
        assert bob.runtime.started == 0


async def test_before_a_chunk_the_stream_goes_on_with_the_next(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        cat = await mesh.add("cat", answer=saying(Accepted(), ModelFailed("died")))
        await cat.deploy("senti", "a", fee="0.1")
        await bob.deploy("senti", "a", fee="0.2")
        kinds = [type(event) for event in await streamed(ann, request())]
        assert kinds == [Accepted, Accepted, Chunk, Result]


async def test_what_nobody_saw_can_be_asked_for_again(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        cat = await mesh.add("cat", answer=saying(Accepted(), Chunk(0, "half of"), ModelFailed("died")))
        await cat.deploy("senti", "a", fee="0.1")
        await bob.deploy("senti", "a", fee="0.2")
        result = await ann.router.infer(request())
        assert (result.provider, result.output) == (BOB, {"text": "good day"})


async def test_a_slow_reader_holds_back_its_provider(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        await ann.deploy("senti", "a")
        ann.runtime.words = 1
        async with ann.router.stream(request(text="one two three four")) as events:
            await anext(events)
            await trio.sleep(1)
            assert ann.runtime.running == 1
        assert (ann.runtime.running, ann.runtime.cancelled) == (0, 1)


async def test_the_deadline_of_a_stream_is_told_to_its_reader(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=2.0, words=1))
        await bob.deploy("senti", "a")
        async with ann.router.stream(request(timeout=3.0)) as events:
            assert [await anext(events), await anext(events)] == [Accepted(), Chunk(0, "good ")]
            with pytest.raises(RequestTimeout):
                await anext(events)
        await wait_all_tasks_blocked()
        assert bob.runtime.running == 0


async def test_what_the_reader_raises_comes_out_as_it_is(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        await ann.deploy("senti", "a")

        async def read() -> None:
            async with ann.router.stream(request()) as events:
                async for _ in events:
                    raise LookupError("of the reader")

        with pytest.raises(LookupError, match="of the reader"):
            await read()
        assert ann.runtime.running == 0


# --- many at once -----------------------------------------------------------------------------


# A stranger is trusted with one paid attempt at a time, then with four.
@pytest.mark.parametrize(("fee", "least", "longest"), [("0", 10, 2000), ("0.1", 2, 5000)])
async def test_one_of_two_providers_is_killed_and_every_request_is_answered(
    open_mesh: OpenMesh, autojump_clock: MockClock, fee: str, least: int, longest: float
) -> None:
    async with open_mesh() as mesh:
        mesh.network.weather = type(mesh.network.weather)(delay=0.01)
        ann = await mesh.add("ann")
        for name in ("bob", "cat"):
            node = await mesh.add(name, runtime=EchoRuntime(delay=0.2))
            await node.deploy("senti", "a", fee=fee)
        results: list[Result] = []

        async def one(number: int) -> None:
            await trio.sleep(number * 0.01)
            results.append(await ann.router.infer(request()))

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(one, number)
            await trio.sleep(1.0)
            mesh.network.kill(BOB)
        served = Counter(result.provider for result in results)
        assert sum(served.values()) == 200
        assert served[BOB] >= least
        assert any(result.attempts == 2 for result in results)
        assert max(result.latency_ms for result in results) < longest


async def test_many_at_once_share_the_providers(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        nodes = [
            await mesh.add(name, runtime=EchoRuntime(delay=0.1), limits=Limits(running=100, per_peer=100))
            for name in ("bob", "cat", "dan")
        ]
        for node in nodes:
            await node.deploy("senti", "a")
        answers: dict[str, Result] = {}

        async def one(text: str) -> None:
            answers[text] = await ann.router.infer(request(text=text))

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(one, f"text {number}")
        assert all(result.output == {"text": text} for text, result in answers.items())
        assert len(answers) == 300
        assert min(node.runtime.started for node in nodes) >= 60
        assert all(session.idle for session in ann.sessions.live())


async def test_one_that_is_taken_for_dead_comes_last_and_still_serves(open_mesh: OpenMesh) -> None:
    async with open_mesh() as mesh:
        ann, bob, cat = await mesh.add("ann"), await mesh.add("bob"), await mesh.add("cat")
        await cat.deploy("senti", "a", fee="0.1")
        await bob.deploy("senti", "a", fee="0.2")
        mesh.down.add(CAT)
        assert (await ann.router.infer(request())).provider == BOB
        assert (await ann.router.infer(request(max_fee="0.1"))).provider == CAT
        mesh.down.clear()
        assert (await ann.router.infer(request())).provider == CAT
