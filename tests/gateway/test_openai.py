"""The official client works unchanged against the OpenAI-compatible routes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import trio

from llmesh.core.amount import Amount
from llmesh.core.encoding import Tensor, Value
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import InferenceRequest, Result, Usage
from llmesh.errors import MeshError, ModelFailed, ModelNotFound, NodeBusy, ValidationFailed

from .conftest import FakeCatalogue

# On trio the client leaves the generators of a stream that broke to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TURN: Any = [{"role": "user", "content": "Tell me a story"}]


def answering(output: dict[str, Value]) -> Any:
    async def answer(request: InferenceRequest) -> Result:
        return Result(
            request.id, request.model.name, ModelId("ab" * 32), output, Amount.parse("0.5"),
            PeerId("12D3KooW" + "A" * 44), 12.5, Usage(7, 3),
        )  # fmt: skip

    return answer


def failing(error: MeshError) -> Any:
    async def answer(request: InferenceRequest) -> Result:
        raise error

    return answer


@pytest.fixture
async def ai(router, port: int) -> AsyncIterator[openai.AsyncOpenAI]:
    router.answer = answering({"text": "Once upon a time", "finish_reason": "length"})
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


async def test_a_conversation_is_answered(ai: openai.AsyncOpenAI, router) -> None:
    done = await ai.chat.completions.create(
        model="gpt-mini",
        messages=TURN,
        max_completion_tokens=9,
        temperature=0.5,
        seed=1,
        stop=["."],
        user="u",
    )
    choice = done.choices[0]
    assert (choice.message.content, choice.message.role) == ("Once upon a time", "assistant")
    assert (choice.finish_reason, done.model) == ("length", "gpt-mini")
    assert done.usage
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (7, 3)
    assert done.usage.total_tokens == 10
    assert done.model_extra
    assert done.model_extra["llmesh"]["fee"] == 0.5
    (asked,) = router.requests
    assert asked.input == {
        "messages": TURN, "max_tokens": 9, "temperature": 0.5, "seed": 1, "stop": ["."],
    }  # fmt: skip


async def test_parts_of_a_message_are_joined(ai: openai.AsyncOpenAI, router) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    await ai.chat.completions.create(model="gpt-mini", messages=parts, extra_body={"top_k": 3, "timeout": 5})
    (asked,) = router.requests
    assert asked.input == {"messages": [{"role": "user", "content": "ab"}], "top_k": 3}
    assert asked.timeout == 5


async def test_a_conversation_streams(ai: openai.AsyncOpenAI) -> None:
    stream = await ai.chat.completions.create(
        model="gpt-mini", messages=TURN, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "Once upon a time"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens == 10
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_text_goes_on(ai: openai.AsyncOpenAI, router) -> None:
    done = await ai.completions.create(model="gpt-mini", prompt="Once", max_tokens=4)
    assert (done.choices[0].text, done.choices[0].finish_reason) == ("Once upon a time", "length")
    assert router.requests[0].input == {"text": "Once", "max_tokens": 4}
    stream = await ai.completions.create(model="gpt-mini", prompt=["Once"], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "Once upon a time"


async def test_texts_become_vectors(ai: openai.AsyncOpenAI, router) -> None:
    async def answer(request: InferenceRequest) -> Result:
        last = {"a": "0000803f", "b": "00000040"}[str(request.input["text"])]
        vector = Tensor("float32", (2,), bytes.fromhex(f"0000003f{last}"))
        done: Result = await answering({"embedding": vector})(request)
        return done

    router.answer = answer
    for encoding in ({}, {"encoding_format": "float"}):
        done = await ai.embeddings.create(model="minilm", input=["a", "b"], **encoding)  # type: ignore[arg-type]
        assert [each.embedding for each in done.data] == [[0.5, 1.0], [0.5, 2.0]]
        assert [each.index for each in done.data] == [0, 1]
        assert done.usage.prompt_tokens == 14
    assert sorted(str(asked.input["text"]) for asked in router.requests) == ["a", "a", "b", "b"]
    assert len({asked.id for asked in router.requests}) == 4


async def test_one_bad_text_fails_them_all_and_stops_the_rest(ai: openai.AsyncOpenAI, router) -> None:
    async def answer(request: InferenceRequest) -> Result:
        if request.input["text"] == "bad":
            raise ModelFailed("It broke.")
        await trio.sleep_forever()
        raise AssertionError

    router.answer = answer
    with pytest.raises(openai.APIStatusError, match="It broke") as told:
        await ai.embeddings.create(model="minilm", input=["good", "bad"])
    assert told.value.status_code == 502
    await router.cancelled.wait()


async def test_a_model_of_another_task_is_neither_run_nor_paid(ai: openai.AsyncOpenAI, router) -> None:
    for call in (
        ai.chat.completions.create(model="sentiment-analyzer", messages=TURN),
        ai.completions.create(model="sentiment-analyzer", prompt="Once"),
        ai.embeddings.create(model="gpt-mini", input="a"),
    ):
        with pytest.raises(openai.BadRequestError, match=r"does text-\w+, not"):
            await call
    assert not router.requests


async def test_a_question_looks_at_what_it_names_alone(ai: openai.AsyncOpenAI, monkeypatch) -> None:
    monkeypatch.delattr(FakeCatalogue, "search")
    await ai.chat.completions.create(model="gpt-mini", messages=TURN)
    assert (await ai.models.retrieve("gpt-mini")).id == "gpt-mini"


async def test_what_makes_no_vector_is_refused(ai: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="makes no embeddings"):
        await ai.embeddings.create(model="m", input="a")


async def test_models_are_listed_once_by_name(ai: openai.AsyncOpenAI) -> None:
    models = [model async for model in ai.models.list()]
    assert [model.id for model in models] == ["gpt-mini", "sentiment-analyzer", "sentiment-xl"]
    assert (await ai.models.retrieve("gpt-mini")).object == "model"
    with pytest.raises(openai.NotFoundError):
        await ai.models.retrieve("gpt")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ModelNotFound("Nobody offers it."), openai.NotFoundError, "model_not_found"),
        (ValidationFailed("The seed is odd."), openai.BadRequestError, "validation_failed"),
        (NodeBusy("Full.", retry_after=2), openai.InternalServerError, "node_busy"),
    ],
)
async def test_failures_have_the_shape_of_openai(
    ai: openai.AsyncOpenAI,
    router,
    error: MeshError,
    kind: type[openai.APIStatusError],
    code: str,
    stream: bool,
) -> None:
    router.answer = failing(error)
    with pytest.raises(kind, match=error.message[:4]) as told:
        await ai.chat.completions.create(model="m", messages=TURN, stream=stream)
    assert told.value.code == code
    assert told.value.response.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("tools", []),
        ("logprobs", True),
        ("presence_penalty", 1),
        ("messages", []),
        ("max_fee", "x"),
    ],
)
async def test_what_cannot_be_honoured_is_named(ai: openai.AsyncOpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=field):
        await ai.chat.completions.create(model="m", messages=TURN, extra_body={field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": None, "tool_choice": "none", "functions": None, "function_call": None, "audio": None},
        {"logprobs": False, "top_logprobs": None, "logit_bias": {}, "modalities": ["text"], "n": None},
        {"parallel_tool_calls": True, "prompt_cache_key": "a", "prediction": None, "verbosity": None},
        {"reasoning_effort": None, "web_search_options": None, "response_format": None, "seed": None},
    ],
)
async def test_what_holds_anyway_may_be_said(ai: openai.AsyncOpenAI, router, fields: dict[str, Any]) -> None:
    await ai.chat.completions.create(model="m", messages=TURN, extra_body=fields)
    assert router.requests[0].input == {"messages": TURN}


async def test_an_answer_is_a_turn_of_the_next_request(ai: openai.AsyncOpenAI, router) -> None:
    first = (await ai.chat.completions.create(model="m", messages=TURN)).choices[0].message
    said = {"role": "assistant", "content": "Once upon a time"}
    for turn in (first, first.model_dump()):
        messages: Any = [*TURN, turn]
        await ai.chat.completions.create(model="m", messages=messages)
        assert router.requests[-1].input == {"messages": [*TURN, said]}


async def test_neutral_fields_of_the_other_routes(ai: openai.AsyncOpenAI, router) -> None:
    given = {"best_of": 1, "echo": False, "suffix": None, "logprobs": None}
    await ai.completions.create(model="gpt-mini", prompt="Once", extra_body=given)
    for refused in ({"best_of": 2}, {"echo": True}, {"suffix": "s"}, {"logprobs": 1}):
        with pytest.raises(openai.BadRequestError, match=next(iter(refused))):
            await ai.completions.create(model="gpt-mini", prompt="Once", extra_body=refused)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        await ai.embeddings.create(model="minilm", input="a", dimensions=2)


async def test_a_failure_within_a_stream_is_told_there(ai: openai.AsyncOpenAI, router) -> None:
    async def answer(request: InferenceRequest) -> Result:
        raise ModelFailed("It broke midway.")

    router.after = ["Once"]
    router.answer = answer
    stream = await ai.chat.completions.create(model="m", messages=TURN, stream=True)
    with pytest.raises(openai.APIError, match="midway"):
        _ = [chunk async for chunk in stream]


async def test_hanging_up_stops_the_work(ai: openai.AsyncOpenAI, router) -> None:
    async def answer(request: InferenceRequest) -> Result:
        await trio.sleep_forever()
        raise AssertionError

    router.after = ["Once"]
    router.answer = answer
    stream = await ai.chat.completions.create(model="m", messages=TURN, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await router.cancelled.wait()


async def test_unknown_paths_and_methods_fail_in_this_shape(client) -> None:
    for method, path, status in (("get", "/v1/nothing", 404), ("get", "/v1/completions", 405)):
        answer = await getattr(client, method)(path)
        body = json.loads(await answer.get_data())
        assert (answer.status_code, body["error"]["type"]) == (status, "invalid_request_error")
