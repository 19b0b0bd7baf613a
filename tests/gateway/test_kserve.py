"""The official client works unchanged against the routes of the Open Inference Protocol."""

from __future__ import annotations

import contextlib
import gzip
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest
import trio
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from llmesh.core.amount import Amount
from llmesh.core.encoding import Tensor, Value
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import ModelNotFound, ValidationFailed
from llmesh.gateway.kserve.tensors import DATATYPES, Named, named_of, pack_texts, texts_of, to_tensor

from .conftest import MODEL_ID, FakeCatalogue, offer


def result(request: InferenceRequest, output: dict[str, Value]) -> Result:
    return Result(
        request.id, request.model.name, ModelId("ab" * 32), output, Amount.parse("0.5"),
        PeerId("12D3KooW" + "A" * 44), 12.5,
    )  # fmt: skip


async def classify(request: InferenceRequest) -> Result:
    text = str(request.input["text"])
    output: dict[str, Value] = {"label": text.upper(), "score": 0.5, "scores": {"A": 0.5}}
    return result(request, output)


async def embed(request: InferenceRequest) -> Result:
    data = struct.pack("<2f", len(str(request.input["text"])), 0.5)
    return result(request, {"embedding": Tensor("float32", (2,), data)})


async def double(request: InferenceRequest) -> Result:
    given = request.input["x"]
    assert isinstance(given, Tensor)
    twice = np.frombuffer(given.data, given.dtype).reshape(given.shape) * 2
    return result(request, {"y": Tensor(given.dtype, twice.shape, twice.tobytes())})


Asked: TypeAlias = Callable[..., Any]


@pytest.fixture
async def ask(port: int) -> Asked:
    """Calls a method of the official client, which blocks, in a thread."""

    async def asked(method: str, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
                return getattr(client, method)(*args, **kwargs)

        return await trio.to_thread.run_sync(run)

    return asked


def texts(values: list[str], binary: bool) -> triton.InferInput:
    tensor = triton.InferInput("text", [len(values)], "BYTES")
    tensor.set_data_from_numpy(np.array(values, dtype=object), binary_data=binary)
    return tensor


@pytest.mark.parametrize("binary", [False, True])
async def test_texts_are_rows(ask: Asked, router, binary: bool) -> None:
    router.answer = classify
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "score", "scores")]
    done = await ask(
        "infer", "sentiment-analyzer", [texts(["好", "b"], binary)], outputs=outputs, request_id="7"
    )
    said = done.as_numpy("label").tolist()
    assert [each.decode() if isinstance(each, bytes) else each for each in said] == ["好", "B"]
    assert done.as_numpy("score").tolist() == [0.5, 0.5]
    told = done.get_response()
    assert (told["id"], told["model_name"]) == ("7", "sentiment-analyzer")
    assert told["parameters"]["fee"] == 1


@pytest.mark.parametrize("binary", [False, True])
async def test_vectors_are_stacked(ask: Asked, router, binary: bool) -> None:
    router.answer = embed
    wanted = [triton.InferRequestedOutput("embedding", binary_data=binary)]
    done = await ask("infer", "minilm", [texts(["a", "bb", "ccc"], binary)], outputs=wanted)
    assert done.as_numpy("embedding").dtype == np.float32
    assert done.as_numpy("embedding").tolist() == [[1, 0.5], [2, 0.5], [3, 0.5]]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("datatype", ["FP32", "INT64", "FP16", "UINT8"])
async def test_tensors_pass_as_they_are(ask: Asked, router, binary: bool, datatype: str) -> None:
    if datatype == "FP16" and not binary:
        pytest.skip("The client has FP16 in binary only.")
    router.answer = double
    given = np.array([[1, 2, 3], [4, 5, 6]], dtype=DATATYPES[datatype])
    tensor = triton.InferInput("x", [2, 3], datatype)
    tensor.set_data_from_numpy(given, binary_data=binary)
    done = await ask("infer", "doubler", [tensor], model_version="1.0.0")
    assert (done.as_numpy("y") == given * 2).all()
    assert router.requests[0].model.version == "1.0.0"


async def test_parameters_are_values_of_each_row(ask: Asked, router) -> None:
    router.answer = classify
    await ask(
        "infer",
        "m",
        [texts(["a", "b"], True)],
        timeout=3_000_000,
        parameters={"max_tokens": 5, "max_fee": "1"},
    )
    assert {str(asked.input["text"]) for asked in router.requests} == {"a", "b"}
    for asked in router.requests:
        assert (asked.input["max_tokens"], asked.timeout, asked.max_fee) == (5, 3, Amount.parse(1))
        assert set(asked.input) == {"text", "max_tokens"}


async def test_health_and_metadata(ask: Asked) -> None:
    assert await ask("is_server_live")
    assert await ask("is_server_ready")
    assert await ask("is_model_ready", "gpt-mini")
    assert not await ask("is_model_ready", "nothing")
    assert (await ask("get_server_metadata"))["name"] == "llmesh"
    told = await ask("get_model_metadata", "sentiment-analyzer", model_version="1.0.0")
    assert told["versions"] == ["1.0.0"]
    assert told["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert [each["name"] for each in told["outputs"]] == ["label", "score"]
    assert (await ask("get_model_metadata", MODEL_ID))["name"] == "sentiment-analyzer"
    assert await ask("is_model_ready", MODEL_ID)


@pytest.mark.parametrize("how", ["gzip", "deflate"])
async def test_a_body_may_come_compressed(ask: Asked, router, how: str) -> None:
    router.answer = embed
    asked = [texts(["a", "bb"], True)]
    done = await ask("infer", "minilm", asked, request_compression_algorithm=how)
    assert done.as_numpy("embedding").tolist() == [[1, 0.5], [2, 0.5]]


@pytest.mark.parametrize(
    ("encoding", "body", "status", "told"),
    [
        ("br", b"x", 415, "gzip or deflate"),
        ("gzip", b"x", 400, "is not gzip"),
        ("gzip", gzip.compress(b"{}")[:-3], 400, "is not gzip"),
        ("deflate", zlib.compress(b"{}") + b"more", 400, "is not deflate"),
        ("gzip", gzip.compress(bytes(64 << 20)), 413, ""),
    ],
)
async def test_what_is_badly_compressed_is_told(
    client, encoding: str, body: bytes, status: int, told: str
) -> None:
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    answer = await client.post("/v2/models/m/infer", data=body, headers=headers)
    assert answer.status_code == status
    assert told in json.loads(await answer.get_data())["error"]


async def test_failures_have_the_shape_of_the_protocol(ask: Asked, router) -> None:
    async def missing(request: InferenceRequest) -> Result:
        raise ModelNotFound("Nobody offers it.")

    router.answer = missing
    with pytest.raises(InferenceServerException, match="Nobody offers it") as told:
        await ask("infer", "m", [texts(["a", "b"], True)])
    assert told.value.status() == "404"
    wanted = [triton.InferRequestedOutput("other")]
    router.answer = classify
    with pytest.raises(InferenceServerException, match="no output 'other'"):
        await ask("infer", "m", [texts(["a"], True)], outputs=wanted)


async def test_the_tensors_of_an_own_graph_are_told(ask: Asked, app, monkeypatch: pytest.MonkeyPatch) -> None:
    made, said = offer("doubler", "0")
    raw = replace(made, task="raw-tensors")
    monkeypatch.setattr(FakeCatalogue, "offers", ((raw, said),))
    told = await ask("get_model_metadata", "doubler")
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert told["outputs"] == [{"name": "y", "datatype": "INT64", "shape": [1]}]


_TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [_TEXT | {"shape": [2]}]}, "2 elements"),
        ({"inputs": [_TEXT | {"shape": [0], "data": []}]}, "as many"),
        ({"inputs": [_TEXT | {"data": [1]}]}, "1 texts"),
        ({"inputs": [_TEXT | {"shape": [-1]}]}, "shape"),
        ({"inputs": [_TEXT | {"datatype": "BF16"}]}, "BF16"),
        ({"inputs": [_TEXT | {"datatype": "INT8", "data": [300]}]}, "not a int8"),
        ({"inputs": [_TEXT | {"data": None}]}, "neither"),
        ({"inputs": [_TEXT | {"parameters": {"binary_data_size": 9}}]}, "after its JSON"),
        ({"inputs": [_TEXT], "parameters": {"timeout": True}}, "timeout"),
        ({"inputs": [_TEXT], "parameters": {"max_fee": -1}}, "max_fee"),
    ],
)
async def test_bad_input_is_named_and_runs_nothing(client, router, body: dict[str, Any], word: str) -> None:
    answer = await client.post("/v2/models/m/infer", json=body)
    told = json.loads(await answer.get_data())
    assert (answer.status_code, list(told)) == (400, ["error"])
    assert word in told["error"]
    assert not router.requests


async def test_a_header_that_lies_is_refused(client) -> None:
    for size in ("999", "x", "-1", "9" * 5000):
        answer = await client.post(
            "/v2/models/m/infer", data=b"{}", headers={"Inference-Header-Content-Length": size}
        )
        assert answer.status_code == 400


@given(st.lists(st.text(max_size=20), max_size=8))
def test_texts_survive_binary(values: list[str]) -> None:
    assert texts_of("x", [len(values)], pack_texts(values)) == tuple(values)


@given(st.binary(max_size=40), st.integers(0, 5))
def test_any_bytes_are_texts_or_refused(data: bytes, count: int) -> None:
    with contextlib.suppress(ValidationFailed):
        assert len(texts_of("x", [count], data)) == count


@given(st.sampled_from(sorted(DATATYPES)), st.lists(st.integers(0, 1), min_size=1, max_size=6))
def test_numbers_survive_both_forms(datatype: str, values: list[int]) -> None:
    tensor = to_tensor("x", datatype, [len(values)], list(values))
    told = Named("x", datatype, tensor.shape, tensor)
    assert to_tensor("x", datatype, [len(values)], told.binary) == tensor
    assert told.numbers == values


def test_values_without_a_type_are_json() -> None:
    mixed = [Tensor("float32", (1,), b"\0" * 4), Tensor("float32", (0,), b"")]
    assert named_of("x", mixed).elements == ("[0.0]", "[]")
    assert named_of("x", [{"a": 1}]).elements == ('{"a":1}',)
