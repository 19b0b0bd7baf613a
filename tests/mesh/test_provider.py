from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.admission import Limits
from llmesh.core.amount import Amount
from llmesh.core.digest import values_digest
from llmesh.core.encoding import Value
from llmesh.core.exchange import Accepted, Completed, Event
from llmesh.core.ids import ModelId, RequestId
from llmesh.core.inference import Attempt, Chunk, Consumer, Usage
from llmesh.core.model import Card
from llmesh.core.pricing import FREE
from llmesh.core.receipt import Work, check_answer, check_receipt
from llmesh.errors import (
    Conflict,
    ModelFailed,
    ModelNotFound,
    NodeBusy,
    RequestTimeout,
    TooLarge,
    ValidationFailed,
)
from llmesh.ledger.memory import MemoryLedger
from llmesh.mesh.provider import Provider
from llmesh.mesh.till import Till
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.echo import EchoRuntime
from tests.mesh.journals import QuickJournal
from tests.mesh.people import BANK, CHAIN, GENESIS, START, credentials, peer, signer

ME, ANN, BOB = (Consumer(peer(name)) for name in ("me", "ann", "bob"))
FEE = Amount.parse("0.1")
MODEL, OTHER = ModelId("a" * 64), ModelId("b" * 64)


def bundle(model: ModelId = MODEL) -> Bundle:
    return Bundle(Path("/nowhere"), (), model, "model.onnx")


def attempt(
    request: str = "1",
    quote: Amount = FEE,
    timeout: float = 5.0,
    text: str = "good day",
    model: ModelId = MODEL,
) -> Attempt:
    return Attempt(RequestId(request * 32), 1, model, {"text": text}, quote, timeout)


def provider_of(runtime: EchoRuntime, limits: Limits) -> Provider:
    ledger = MemoryLedger(GENESIS, BANK.sign, lambda: START)
    till = Till(credentials("me"), QuickJournal(ME.peer_id), ledger, lambda: START)
    return Provider(ME.peer_id, runtime, till, limits)


async def deployed(
    runtime: EchoRuntime | None = None, limits: Limits | None = None, fee: Amount = FREE
) -> Provider:
    provider = provider_of(runtime or EchoRuntime(), limits or Limits())
    await provider.deploy(bundle(), Card("senti"), fee)
    return provider


async def served(provider: Provider, asked: Attempt, consumer: Consumer = ANN) -> list[Event]:
    async with provider.serve(asked, consumer) as events:
        return [event async for event in events]


def told(event: Event) -> tuple[Usage, Amount]:
    assert isinstance(event, Completed)
    return event.usage, event.fee


async def test_an_attempt_is_served_and_its_receipt_told() -> None:
    provider = await deployed(EchoRuntime(words=1))
    async with provider.serve(attempt(), ANN) as events:
        assert await anext(events) == Accepted(0, 0.0)
        assert (await anext(events), await anext(events)) == (
            Chunk(0, "good "),
            Chunk(1, "day", values={"text": "good day"}),
        )
        completed = await anext(events)
        assert told(completed) == (Usage(2, 2, 0.0), FREE)
        assert isinstance(completed, Completed)
        check_receipt(completed.receipt, CHAIN)
        work = Work(
            MODEL, "unstated", values_digest({"text": "good day"}), values_digest({"text": "good day"})
        )
        check_answer(completed.receipt.receipt, signer("me").address, attempt().id, work, FREE)
    assert provider.running == 0


async def test_own_requests_are_free() -> None:
    provider = await deployed()
    events = await served(provider, attempt(quote=Amount(0)), ME)
    assert isinstance(events[-1], Completed)
    assert events[-1].fee == Amount(0)


async def test_a_quote_below_the_fee_is_refused_before_any_work() -> None:
    runtime = EchoRuntime()
    provider = await deployed(runtime, fee=FEE)
    with pytest.raises(ModelNotFound, match=r"costs 0\.1 MESH here, above the quote of 0\.099999"):
        await served(provider, attempt(quote=Amount.parse("0.099999")))
    assert runtime.started == provider.running == 0


async def test_leaving_early_stops_the_work() -> None:
    runtime = EchoRuntime(words=1)
    provider = await deployed(runtime)
    async with provider.serve(attempt(), ANN) as events:
        await anext(events)
        await anext(events)
    assert (runtime.running, runtime.cancelled, provider.running) == (0, 1, 0)


async def test_the_deadline_stops_the_work(autojump_clock: MockClock) -> None:
    runtime = EchoRuntime(delay=1000)
    provider = await deployed(runtime)
    start = trio.current_time()
    with pytest.raises(RequestTimeout, match=r"0\.05 s passed"):
        await served(provider, attempt(timeout=0.05))
    assert trio.current_time() - start == pytest.approx(0.05)
    assert (runtime.running, runtime.cancelled, provider.running) == (0, 1, 0)


async def test_the_deadline_reaches_a_consumer_that_does_not_take(autojump_clock: MockClock) -> None:
    runtime = EchoRuntime()
    provider = await deployed(runtime)
    with pytest.raises(RequestTimeout):
        async with provider.serve(attempt(), ANN):
            await trio.sleep_forever()
    assert runtime.running == provider.running == 0


@pytest.mark.parametrize("timeout", [0.0, -1e-9, float("-inf"), float("nan")])
async def test_an_attempt_whose_time_is_over_is_late_and_starts_nothing(timeout: float) -> None:
    runtime = EchoRuntime()
    provider = await deployed(runtime)
    for consumer in (ANN, ME):
        with pytest.raises(RequestTimeout):
            await served(provider, attempt(timeout=timeout), consumer)
    assert runtime.started == provider.running == 0


async def test_no_attempt_may_run_for_ever(autojump_clock: MockClock) -> None:
    provider = await deployed(EchoRuntime(delay=1000), Limits(seconds=60))
    with pytest.raises(ModelFailed, match="60 s"):
        await served(provider, attempt(timeout=float("inf")))


async def test_a_consumers_own_timeout_inside_is_not_ours(autojump_clock: MockClock) -> None:
    provider = await deployed()

    async def give_up() -> None:
        async with provider.serve(attempt(), ANN):
            with trio.fail_after(1):
                await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError):
        await give_up()


async def test_what_is_full_refuses_and_says_when_to_come_back() -> None:
    provider = await deployed(limits=Limits(running=2, per_peer=1))
    async with provider.serve(attempt(), ANN) as events:
        with pytest.raises(NodeBusy, match="one peer"):
            await served(provider, attempt("2"))
        async with provider.serve(attempt("2"), BOB) as second:
            assert await anext(second) == Accepted(1, 0.5)
            with pytest.raises(NodeBusy) as caught:
                await served(provider, attempt("3"), ME)
            assert caught.value.retry_after
        assert len([event async for event in events]) == 3
    assert len(await served(provider, attempt("2"))) == 3


async def test_own_requests_share_all_places() -> None:
    provider = await deployed(limits=Limits(running=2, per_peer=1))
    async with provider.serve(attempt(), ME), provider.serve(attempt("2"), ME):
        with pytest.raises(NodeBusy, match="2 requests are running"):
            await served(provider, attempt("3"), ME)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (attempt(model=OTHER), ModelNotFound),
        (attempt(text=""), ValidationFailed),
        (attempt(text="x" * 101), TooLarge),
    ],
)
async def test_what_cannot_be_served_is_refused_and_holds_no_place(
    asked: Attempt, error: type[Exception]
) -> None:
    provider = await deployed(limits=Limits(running=1, per_peer=1, input_bytes=100))
    for _ in range(3):
        with pytest.raises(error):
            await served(provider, asked)
    assert len(await served(provider, attempt())) == 3


class OddRuntime(EchoRuntime):
    """Gives the pieces it was made with."""

    def __init__(self, *pieces: Chunk | Usage) -> None:
        super().__init__()
        self.pieces = pieces

    @asynccontextmanager
    async def infer(
        self, model: ModelId, values: Mapping[str, Value]
    ) -> AsyncGenerator[AsyncIterator[Chunk | Usage]]:
        async def play() -> AsyncGenerator[Chunk | Usage]:
            for piece in self.pieces:
                yield piece

        async with aclosing(play()) as pieces:
            yield pieces


async def test_nothing_delivered_nothing_charged() -> None:
    provider = await deployed(OddRuntime(Usage(5)))
    accepted, completed = await served(provider, attempt())
    assert (accepted, told(completed)) == (Accepted(), (Usage(5), Amount(0)))


async def test_a_worker_that_miscounts_has_failed() -> None:
    provider = await deployed(OddRuntime(Chunk(0), Chunk(2), Usage()))
    with pytest.raises(ModelFailed, match="chunk 2 where 1 was due"):
        await served(provider, attempt())


async def test_offers_come_change_and_go() -> None:
    provider = await deployed()
    await provider.deploy(bundle(OTHER), Card("senti", "2.0.0"), FEE)
    again = await provider.deploy(bundle(), Card("mood"), Amount(0))
    assert [(offer.card.name, offer.model_id) for offer in provider.offers] == [
        ("senti", OTHER),
        ("mood", MODEL),
    ]
    assert again == provider.offers[-1]
    assert again.task == "echo"
    await provider.remove(MODEL)
    assert [offer.model_id for offer in provider.offers] == [OTHER]
    with pytest.raises(ModelNotFound):
        await served(provider, attempt())
    with pytest.raises(ModelNotFound):
        await provider.remove(MODEL)


async def test_removing_a_model_fails_what_runs_on_it() -> None:
    provider = await deployed(EchoRuntime(words=1))
    async with provider.serve(attempt(), ANN) as events:
        await anext(events)
        await anext(events)
        await provider.remove(MODEL)
        with pytest.raises(ModelFailed):
            await anext(events)


@pytest.mark.parametrize(
    ("card", "error"),
    [(Card(""), ValidationFailed), (Card("x", "?"), ValidationFailed), (Card("senti"), Conflict)],
)
async def test_a_bad_card_or_a_taken_name_changes_nothing(card: Card, error: type[Exception]) -> None:
    provider = await deployed()
    with pytest.raises(error):
        await provider.deploy(bundle(OTHER), card, FEE)
    assert [offer.model_id for offer in provider.offers] == [MODEL]


async def test_a_cancelled_deploy_offers_nothing(autojump_clock: MockClock) -> None:
    class SlowToLoad(EchoRuntime):
        async def load(self, bundle: Bundle):  # type: ignore[no-untyped-def]
            await trio.sleep(10)
            return await super().load(bundle)

    provider = provider_of(SlowToLoad(), Limits())
    with trio.move_on_after(1):
        await provider.deploy(bundle(), Card("senti"), FEE)
    assert provider.offers == ()


async def test_another_graph_of_a_model_is_not_taken_for_the_one_that_runs(autojump_clock: MockClock) -> None:
    provider = provider_of(EchoRuntime(), Limits())
    offer = await provider.deploy(bundle(), Card("echo"), FEE)
    with pytest.raises(Conflict, match=r"model\.onnx of model .* remove that first"):
        await provider.deploy(replace(bundle(), graph="onnx/model_int8.onnx"), Card("echo"), FEE)
    assert provider.offers == (offer,)
    assert provider.bundle(MODEL) == bundle()
