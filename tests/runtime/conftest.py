"""Small models made on the spot, and a runtime to run them."""

from __future__ import annotations

import itertools
import json
import shutil
import string
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import trio
from onnx import TensorProto as T
from onnx import helper as h

from llmesh.core.encoding import Value
from llmesh.core.ids import ModelId
from llmesh.core.inference import Chunk, Usage
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.runtime.batches import BatchedModel
from llmesh.runtime.model import open_model
from llmesh.runtime.orders import Load
from llmesh.runtime.runtime import Runtime
from llmesh.runtime.settings import WorkerSettings
from llmesh.runtime.workers import open_worker_runtime

Save = Callable[..., Path]


def model_of(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: Any = ()
) -> onnx.ModelProto:
    graph = h.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


def value(name: str, kind: int, *shape: int | str) -> Any:
    return h.make_tensor_value_info(name, kind, list(shape))


def doubler(kind: int = T.FLOAT) -> onnx.ModelProto:
    """y = x + x, any number of rows of three."""
    return model_of(
        [h.make_node("Add", ["x", "x"], ["y"])], [value("x", kind, "n", 3)], [value("y", kind, "n", 3)]
    )


def endless() -> onnx.ModelProto:
    """Loops as often as it is told: 2**62 times is for ever."""
    body = h.make_graph(
        [h.make_node("Identity", ["go_in"], ["go_out"]), h.make_node("Add", ["v_in", "v_in"], ["v_out"])],
        "body",
        [value("i", T.INT64), value("go_in", T.BOOL), value("v_in", T.FLOAT, 3)],
        [value("go_out", T.BOOL), value("v_out", T.FLOAT, 3)],
    )
    return model_of(
        [h.make_node("Loop", ["times", "", "x"], ["y"], body=body)],
        [value("times", T.INT64), value("x", T.FLOAT, 3)],
        [value("y", T.FLOAT, 3)],
    )


def giant() -> onnx.ModelProto:
    """The 40th power of a square matrix in one node, which no terminate flag can stop."""
    letters = string.ascii_letters[:41]
    terms = ",".join(map("".join, itertools.pairwise(letters)))
    node = h.make_node("Einsum", ["x"] * 40, ["y"], equation=f"{terms}->{letters[0]}{letters[-1]}")
    return model_of([node], [value("x", T.FLOAT, "n", "n")], [value("y", T.FLOAT, "n", "n")])


def external(location: str) -> onnx.ModelProto:
    """y = x + w, with the three numbers of w in another file."""
    weight = T(name="w", data_type=T.FLOAT, dims=[3], data_location=T.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    node = h.make_node("Add", ["x", "w"], ["y"])
    return model_of([node], [value("x", T.FLOAT, "n", 3)], [value("y", T.FLOAT, "n", 3)], [weight])


def classifier(labels: int = 2, length: int | str = "s", axes: tuple[int, ...] = (1,)) -> onnx.ModelProto:
    """Scores the k-th label by k times the number of tokens; with axis 0, of those of all texts."""
    weights = h.make_tensor("k", T.FLOAT, [labels], [float(k) for k in range(labels)])
    over = h.make_tensor("axes", T.INT64, [len(axes)], axes)
    nodes = [
        h.make_node("Cast", ["attention_mask"], ["m"], to=T.FLOAT),
        h.make_node("ReduceSum", ["m", "axes"], ["n"], keepdims=1),
        h.make_node("Mul", ["n", "k"], ["logits"]),
    ]
    given = [value(name, T.INT64, "b", length) for name in ("input_ids", "attention_mask")]
    return model_of(nodes, given, [value("logits", T.FLOAT, "b", labels)], [weights, over])


def opened(folder: Path, graph: str = "model.onnx", **settings: Any) -> BatchedModel[Any]:
    """A model as the worker opens it, in this process and in no sandbox."""
    files = tuple(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    order = Load(str(folder), files, graph, 0, WorkerSettings(**{"threads": 1, **settings}))
    model = open_model(order)
    assert isinstance(model, BatchedModel)
    return model


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(model: onnx.ModelProto, name: str = "model.onnx", **configs: Any) -> Path:
        """A folder with the model, and JSON files of the given names beside it."""
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString())
        for config, content in configs.items():
            place = tmp_path / f"{config}.json"
            place.parent.mkdir(exist_ok=True)
            place.write_text(json.dumps(content))
        return tmp_path

    return write


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the demo model that a test may spoil."""
    return Path(shutil.copytree(SENTIMENT_ANALYZER, tmp_path / "demo"))


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with open_worker_runtime(WorkerSettings(threads=1)) as opened:
        yield opened


async def ask(
    runtime: Runtime, model: ModelId, values: Mapping[str, Value]
) -> tuple[Mapping[str, Value], Usage]:
    """The whole answer, within ten seconds."""
    with trio.fail_after(10):
        async with runtime.infer(model, values) as answer:
            chunk, usage = [event async for event in answer]
    assert isinstance(chunk, Chunk)
    assert isinstance(usage, Usage)
    return chunk.values, usage
