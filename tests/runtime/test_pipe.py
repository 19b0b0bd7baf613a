from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmesh.core.encoding import DTYPES, Tensor, Value
from llmesh.core.exchange import Accepted, Cancel
from llmesh.core.framing import HEADER, Splitter
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.core.model import EXECUTIONS, TASKS, ModelInfo, TensorSpec
from llmesh.errors import ModelFailed, ModelNotFound, TooLarge, ValidationFailed
from llmesh.runtime import pipe
from llmesh.runtime.orders import (
    Abilities,
    Alone,
    Event,
    GraphFacts,
    Infer,
    Load,
    Loaded,
    Probe,
    Scan,
    Whole,
)  # fmt: skip
from llmesh.runtime.pipe import Garbage, decode_event, decode_order, encode_event, encode_order
from llmesh.runtime.sandbox import SandboxLevel
from llmesh.runtime.settings import WorkerSettings

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
counts = st.integers(0, (1 << 31) - 1)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(-1e9, 1e9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = DTYPES[dtype]
    for length in shape:
        size *= length
    return Tensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


values = st.dictionaries(texts, plain | tensors(), max_size=4)
specs = st.builds(
    TensorSpec, texts, st.sampled_from([*DTYPES, "string"]), st.lists(counts | texts, max_size=4).map(tuple)
)
levels = st.sampled_from(SandboxLevel)
infos = st.builds(
    ModelInfo,
    st.just(ModelId("")),
    st.sampled_from(TASKS),
    st.lists(specs, max_size=3).map(tuple),
    st.lists(specs, max_size=3).map(tuple),
    st.lists(texts, max_size=3).map(tuple),
)
events = (
    st.builds(Chunk, counts, texts, st.lists(counts, max_size=3).map(tuple), values)
    | st.builds(Usage, counts, counts, st.floats(0, 1e9))
    | st.builds(Whole, values, st.builds(Usage, counts, counts, st.floats(0, 1e9)))
    | st.builds(Loaded, infos, levels, st.sampled_from(["cpu", "cuda"]), st.integers(1, 64), counts)
    | st.builds(GraphFacts, st.lists(texts, max_size=3).map(tuple), st.sampled_from(EXECUTIONS))
    | st.builds(Abilities, levels, st.sampled_from([(), ("cpu",), ("cpu", "cuda")]))
    | st.just(Accepted())
    | st.just(Cancel())
)


def body(frame: bytes) -> bytes:
    (only,) = Splitter(pipe.MAX_BODY).feed(frame)
    return only


@given(counts, values)
def test_orders_round_trip(call: int, content: dict[str, Value]) -> None:
    settings = WorkerSettings(2, 3, 100, 0.5, "cuda", None, SandboxLevel.LIMITS)
    for order in (
        Infer(content),
        Alone(),
        Cancel(),
        Load("/f", ("a", "b"), "a", 1 << 40, settings),
        Scan("/f", "a", 1 << 40, SandboxLevel.CONFINED),
        Probe(1 << 40),
    ):
        assert decode_order(body(encode_order(call, order))) == (call, order)


@given(counts, events)
def test_events_round_trip(call: int, event: Event) -> None:
    assert decode_event(body(encode_event(call, event))) == (call, event)


@pytest.mark.parametrize("error", [ValidationFailed("è"), ModelFailed("x"), TooLarge("x")])
def test_a_worker_may_say_these_errors(error: Event) -> None:
    call, event = decode_event(body(encode_event(7, error)))
    assert call == 7
    assert type(event) is type(error)
    assert getattr(event, "message", "") == getattr(error, "message", None)
    assert getattr(event, "remote", True) is False


def test_an_error_brings_no_control_characters() -> None:
    _, event = decode_event(body(encode_event(1, ModelFailed("红\x1b[2J\nforged log line"))))
    assert getattr(event, "message", "") == "红?[2J?forged log line"


def header(content: Any, blobs: bytes = b"") -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(HEADER, "big") + text + blobs


def loaded(
    info: Any = ("raw-tensors", [], [], []),
    level: Any = 3,
    provider: str = "cpu",
    batch: int = 1,
    resident: int = 1,
) -> bytes:
    return header([0, "loaded", [info, level, provider, batch, resident]])


def test_a_sound_load_is_none_of_these() -> None:
    assert isinstance(decode_event(loaded())[1], Loaded)


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\xff\xff\xff\xff",
        header(b"{"),
        header(b"[" * 100_000),
        header(None),
        header([1, "accepted"]),
        header([-1, "accepted", None]),
        header([True, "accepted", None]),
        header([1.0, "accepted", None]),
        header([1, "error", [ModelNotFound.code, "not its to say"]]),
        header([1, "error", [ModelFailed.code, "x" * 3_000]]),
        header([1, "error", [ModelFailed.code, "\ud800"]]),
        header([1, "usage", [0, 0, float("nan")]]),
        header([1, "usage", [0, 0, -1.0]]),
        header([1, "usage", [1 << 40, 0, 0.0]]),
        header([1, "whole", [[], None]]),
        header([1, "whole", [[["x", None, 1 << 70]], [0, 0, 0.0]]]),
        header([1, "whole", [[["x", ["uint8", [1]]]], [0, 0, 0.0]]]),
        header([1, ["usage"], [0, 0, 0.0]]),
        loaded(["own-task", [], [], []]),
        loaded(["raw-tensors", [["x", "object", []]], [], []]),
        loaded(["raw-tensors", [["x", "float32", [-1]]], [], []]),
        loaded(["raw-tensors", [["x" * 1_000, "float32", []]], [], []]),
        loaded(["raw-tensors", [["x", "float32", []]] * 5_000, [], []]),
        loaded(level=4),
        loaded(level=True),
        loaded(provider="quantum"),
        loaded(batch=0),
        loaded(resident=-1),
        loaded(resident=1 << 60),
        header([0, "facts", [["a"], "analogue"]]),
        header([0, "facts", [["a"] * 2_000, "fp16"]]),
        header([0, "facts", [[1], "fp16"]]),
        header([0, "abilities", [9, []]]),
        header([1, "chunk", [0, "", [], [["x", None, float("inf")]]]]),
        header(b'[1,"chunk",[0,"",[],[["x",null,1e999]]]]'),
        header([1, "chunk", [0, "", [], [["x", None, {"deep": ["\udfff"]}]]]]),
        header([1, "chunk", [0, "", [], [["x", None, 1 << 70]]]]),
        header([1, "chunk", [0, "", [], [["x", ["uint8", [2]]]]]], b"1"),
        header([1, "chunk", [0, "", [], [["x", ["uint8", [1 << 30, 1 << 30]]]]]], b"1"),
        header([1, "chunk", [0, "", [], [["x", ["uint8", [1]]]]]], b"12"),
        header([1, "chunk", [0, "", [], [["x", ["uint8", [1]], 5]]]], b"1"),
        header([1, "chunk", [0, "", [], [["x", None]]]]),
        header([1, "chunk", [0, "", [], [[["x"], None, 1]]]]),
        header([1, "chunk", [0, "", ["1"], []]]),
        header([1, "shutdown", None]),
        header([1, "chunk", [0, "", [], [["x", ["uint8", [0] * 17]]]]]),
        header([1, "chunk", [0, "x" * pipe.MAX_EVENT_HEADER, [], []]]),
    ],
    ids=lambda g: repr(bytes(g[4:60])),
)
def test_what_no_sound_worker_sends_is_garbage(garbage: bytes) -> None:
    with pytest.raises(Garbage):
        decode_event(garbage)


@given(
    st.binary(max_size=60)
    | plain.map(header)
    | st.tuples(counts, st.sampled_from(["loaded", "chunk", "usage", "whole", "error", "accepted"]), plain)
    .map(list)
    .map(header)
)
@example(b"\0\0\0\2[]")
def test_no_bytes_get_past_the_decoder(data: bytes) -> None:
    try:
        call, _ = decode_event(data)
    except Garbage:
        return
    assert call >= 0


def test_what_is_too_large_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "MAX_BODY", 100)
    with pytest.raises(TooLarge, match="takes and gives 100 at most"):
        encode_order(1, Infer({"x": Tensor("uint8", (100,), bytes(100))}))


def test_a_long_header_is_for_orders_only() -> None:
    text = "x" * pipe.MAX_EVENT_HEADER
    encode_order(1, Infer({"x": text}))
    with pytest.raises(TooLarge, match="of them JSON"):
        encode_event(1, Chunk(0, values={"x": text}))


def test_values_that_json_cannot_hold_are_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for odd in (deep, 10**5_000, {1, 2}):
        with pytest.raises(ValidationFailed):
            encode_order(1, Infer({"x": odd}))
