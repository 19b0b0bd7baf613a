"""The same questions to every face, failures included: the same answers, the same codes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId
from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import (
    InsufficientBalance,
    InsufficientStake,
    MeshError,
    ModelFailed,
    ModelNotFound,
    NetworkError,
    NodeBusy,
    NodeUnreachable,
    RateLimited,
    RequestTimeout,
    TooLarge,
    TransactionFailed,
    Unauthorized,
    ValidationFailed,
)
from llmesh.gateway.app import GatewaySettings, create_app
from llmesh.gateway.batch import batch_routes
from llmesh.gateway.callers import Scope
from llmesh.gateway.gate import Gate
from llmesh.gateway.keys import Keys, open_keys
from llmesh.gateway.limits import Limits
from llmesh.gateway.rates import read_rates
from llmesh.gateway.server import bind, serve
from llmesh.journal.open import open_journal

from .asking import ALL, EMBEDDINGS, MESSAGE, STREAMS, TEXT_STREAMS, TEXTS, WHOLE, Ask, Asked, Door, Told
from .conftest import PROVIDER, FakeCatalogue, FakeNode, FakeRouter, label

# On trio the HTTP client leaves the generators of answers that it has read to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FAILURES: tuple[type[MeshError], ...] = (
    ModelNotFound, InsufficientStake, RequestTimeout, ValidationFailed, NetworkError, NodeUnreachable,
    NodeBusy, ModelFailed, InsufficientBalance, TransactionFailed, TooLarge,
)  # fmt: skip
_Serving = Callable[..., AbstractAsyncContextManager[int]]


@pytest.fixture
def serving(router: FakeRouter, node: FakeNode) -> _Serving:
    """A gateway on a real Hypercorn behind a gate; the block gets its port."""

    @asynccontextmanager
    async def opened(**gate: Any) -> AsyncIterator[int]:
        stop = trio.Event()
        settings = GatewaySettings(Gate(**gate))
        app = create_app(router, FakeCatalogue(), node, settings, batch_routes(router))
        async with trio.open_nursery() as nursery:
            url: str = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
            with trio.fail_after(20):
                yield int(url.rsplit(":", 1)[1])
            stop.set()
            nursery.cancel_scope.deadline = trio.current_time() + 5

    return opened


@pytest.fixture
async def keys(tmp_path: Path) -> AsyncIterator[Keys]:
    async with (
        open_journal(tmp_path / "journal.db", PROVIDER) as journal,
        open_keys(journal, b"s" * 32) as keys,
    ):
        yield keys


def saying(**output: Any) -> Callable[[InferenceRequest], Any]:
    async def answer(request: InferenceRequest) -> Result:
        return replace(await label(request), output=output)

    return answer


def failing(error: MeshError) -> Callable[[InferenceRequest], Any]:
    async def answer(request: InferenceRequest) -> Result:
        raise error

    return answer


def faces(*groups: dict[str, Ask]) -> pytest.MarkDecorator:
    every = {name: ask for group in groups for name, ask in group.items()}
    return pytest.mark.parametrize("ask", every.values(), ids=every)


@faces(WHOLE, STREAMS)
async def test_a_text_is_classified(serving: _Serving, router: FakeRouter, ask: Ask) -> None:
    router.answer = saying(label="positive", score=0.9876)
    async with serving() as port:
        told = await ask(Door(port), Asked())
    assert told == Told({"label": "positive", "score": 0.9876}, 0.1)


@faces(WHOLE, STREAMS, TEXTS, TEXT_STREAMS)
async def test_a_text_goes_on(serving: _Serving, router: FakeRouter, ask: Ask) -> None:
    router.answer = saying(text="Once upon 从前", finish_reason="length")
    async with serving() as port:
        told = await ask(Door(port), Asked())
    streamed = ask in (*STREAMS.values(), *TEXT_STREAMS.values())
    pieces = ("Once", " upon", " 从前") if streamed else ()
    assert told == Told({"text": "Once upon 从前", "finish_reason": "length"}, 0.1, pieces)


@faces(WHOLE, STREAMS, EMBEDDINGS)
async def test_a_text_becomes_a_vector(serving: _Serving, router: FakeRouter, ask: Ask) -> None:
    router.answer = saying(embedding=[0.5, -0.25])
    async with serving() as port:
        told = await ask(Door(port), Asked())
    assert told.values == {"embedding": [0.5, -0.25]}


@faces(ALL)
async def test_the_same_is_asked_of_the_mesh(serving: _Serving, router: FakeRouter, ask: Ask) -> None:
    router.answer = saying(text="x", embedding=[0.5])
    async with serving() as port:
        await ask(Door(port), Asked(model="name:1.2"))
    [request] = router.requests
    assert str(request.model) == "name:1.2"
    assert (request.timeout, request.max_fee) == (4.5, Amount.parse("0.5"))
    turns = request.input.get("messages")
    assert request.input == ({"messages": turns} if turns else {"text": "很好"})
    assert turns in (None, [{"role": "user", "content": "很好"}])


@faces(ALL)
async def test_failures_have_the_same_codes(serving: _Serving, router: FakeRouter, ask: Ask) -> None:
    async with serving() as port:
        for failure in FAILURES:
            wait = 7.0 if failure is NodeBusy else None
            router.answer = failing(failure(MESSAGE, retry_after=wait))
            assert await ask(Door(port), Asked()) == Told(code=failure.code, retry_after=wait), failure


@faces(STREAMS, TEXT_STREAMS)
async def test_failures_after_the_first_piece_are_told_in_the_stream(
    serving: _Serving, router: FakeRouter, ask: Ask
) -> None:
    router.after, router.answer = ["Once"], failing(ModelFailed(MESSAGE))
    async with serving() as port:
        assert await ask(Door(port), Asked()) == Told(pieces=("Once",), code=ModelFailed.code)


@faces(ALL)
async def test_what_makes_no_sense_is_not_run(serving: _Serving, router: FakeRouter, ask: Ask) -> None:
    models = [Asked(model=model) for model in ("m@zz", "m:", "m" * 129)]
    fees = [Asked(max_fee=fee) for fee in ("-1", "much", "0.0000001")]
    timeouts = [Asked(timeout=timeout) for timeout in (-1.0, 0.0, 3601.0)]
    async with serving() as port:
        for asked in (*models, *fees, *timeouts):
            assert await ask(Door(port), asked) == Told(code=ValidationFailed.code), asked
    assert not router.requests


@faces(ALL)
async def test_keys_open_what_their_scopes_say(
    serving: _Serving, router: FakeRouter, keys: Keys, ask: Ask
) -> None:
    router.answer = saying(text="x", embedding=[0.5])
    _, reading = await keys.create("reads", frozenset({Scope.READ}), None)
    row, running = await keys.create("runs", frozenset({Scope.READ, Scope.INFERENCE}), None)
    async with serving(keys=keys) as port:
        for key in ("", "llmesh_wrong", reading):
            assert await ask(Door(port, key), Asked()) == Told(code=Unauthorized.code)
        assert not router.requests
        assert (await ask(Door(port, running), Asked())).code == 0
        await keys.revoke(row.id)
        assert await ask(Door(port, running), Asked()) == Told(code=Unauthorized.code)
    assert len(router.requests) == 1


@faces(ALL)
async def test_a_budget_is_not_overdrawn(serving: _Serving, router: FakeRouter, keys: Keys, ask: Ask) -> None:
    given = saying(text="x", embedding=[0.5])

    async def pay(request: InferenceRequest) -> Result:
        purse, attempt = router.purses[-1], AttemptId(request.id, 1)
        assert purse is not None
        await purse.hold(attempt, Amount(1))
        purse.spend(attempt, Amount(1))
        result: Result = await given(request)
        return result

    router.answer = pay
    row, key = await keys.create("a", frozenset({Scope.READ, Scope.INFERENCE}), Amount(1))
    async with serving(keys=keys) as port:
        codes = [(await ask(Door(port, key), Asked())).code for _ in range(2)]
    assert codes == [0, InsufficientBalance.code]
    purse = keys.purse(row)
    assert purse is not None
    assert purse.left == Amount(0)


@faces(ALL)
async def test_each_is_one_inference_of_the_limit(serving: _Serving, router: FakeRouter, ask: Ask) -> None:
    router.answer = saying(text="x", embedding=[0.5])
    async with serving(limits=Limits(read_rates("inference=1/minute"))) as port:
        first, second = [await ask(Door(port), Asked()) for _ in range(2)]
    assert (first.code, second.code) == (0, RateLimited.code)
    assert second.retry_after is not None
    assert 0 < second.retry_after <= 60
    assert len(router.requests) == 1
