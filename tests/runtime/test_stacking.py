"""Raw tensors of several requests in one run: who may, and that each gets what it gets alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h

from llmesh.core.encoding import Value
from llmesh.core.model import TensorSpec
from llmesh.errors import ModelFailed
from llmesh.runtime import stacking
from llmesh.runtime.job import Job
from llmesh.runtime.orders import Whole
from llmesh.runtime.stacking import Feeds, split, stack, stackable

from .conftest import Save, doubler, giant, model_of, opened, value


def graph(*nodes: onnx.NodeProto, kind: int = T.FLOAT, shape: tuple[Any, ...] = ("n", "m")) -> Any:
    return model_of(list(nodes), [value("x", kind, *shape)], [value("y", kind, *shape)])


def answers(model: Any, *requests: list[Any]) -> list[dict[str, Value]]:
    jobs = [Job(n, model.check({"x": x})) for n, x in enumerate(requests)]
    said: dict[int, Any] = {}
    while len(said) < len(jobs):
        joining = model.take([job for job in jobs if job.call not in said])
        said |= {job.call: outcome for job, outcome in model.step(joining)}
    assert all(isinstance(outcome, Whole) for outcome in said.values())
    return [said[job.call].values for job in jobs]


@pytest.mark.parametrize("kind", [T.FLOAT, T.INT64, T.STRING, T.BOOL, T.FLOAT16])
def test_rows_that_are_apart_are_run_together(save: Save, kind: int) -> None:
    assert opened(save(graph(h.make_node("Identity", ["x"], ["y"]), kind=kind))).batch == 8


@pytest.mark.parametrize(
    "node",
    [
        h.make_node("Softmax", ["x"], ["y"], axis=0),
        h.make_node("CumSum", ["x", "axis"], ["y"]),
        h.make_node("LpNormalization", ["x"], ["y"], axis=0),
    ],
    ids=lambda node: node.op_type,
)
def test_rows_that_meddle_are_not(save: Save, node: onnx.NodeProto) -> None:
    axis = h.make_node("Constant", [], ["axis"], value_int=0)
    assert opened(save(graph(axis, node))).batch == 1


def test_scaling_over_the_batch_is_not_apart(save: Save) -> None:
    """Dynamic quantisation finds its scale in all that is run together."""
    model = model_of(
        [
            h.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            h.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        [value("x", T.FLOAT, "n", "m")],
        [value("y", T.FLOAT, "n", "m")],
    )
    assert opened(save(model)).batch == 1


def test_a_graph_that_cannot_be_tried_is_run_one_by_one(save: Save) -> None:
    assert opened(save(giant())).batch == 1
    assert opened(save(graph(h.make_node("Identity", ["x"], ["y"]), shape=("n", 1 << 21)))).batch == 1
    seven = h.make_tensor("seven", T.INT64, [2], [-1, 7])
    pick = graph(
        h.make_node("Constant", [], ["seven"], value=seven), h.make_node("Reshape", ["x", "seven"], ["y"])
    )
    assert opened(save(pick)).batch == 1  # neither of the lengths it is tried with


def test_each_gets_its_own_rows(save: Save) -> None:
    model = opened(save(doubler()))
    requests = [[[float(n), 0.0, 1.0]] * (1 + n % 3) for n in range(7)]
    for request, answer in zip(requests, answers(model, *requests), strict=True):
        y: Any = answer["y"]
        assert y.shape == (len(request), 3)
        assert np.frombuffer(y.data, np.float32).reshape(y.shape).tolist() == [
            [2 * value for value in row] for row in request
        ]


def test_only_like_shapes_meet(save: Save) -> None:
    model = opened(save(graph(h.make_node("Identity", ["x"], ["y"]))))
    model.take([Job(0, model.check({"x": [[1.0]]}))])  # so that it does not come from a rest
    jobs = [Job(n, model.check({"x": x})) for n, x in enumerate([[[1.0]], [[1.0, 2.0]], [[3.0]], [[4.0]]])]
    assert [job.call for job in model.take(jobs)] == [0, 2, 3]
    assert model.check({"x": [[0.0] * 600] * 600}).group is None  # over a mebibyte


@pytest.mark.parametrize(
    ("inputs", "outputs", "fits"),
    [
        ([("n", 3)], [("n", "m")], True),
        ([("n", 3)], [("batch",)], True),
        ([("?", "?")], [("?", "?")], True),
        ([("n", "n")], [("n", "n")], False),
        ([("n", 3)], [(3, "n")], False),
        ([("n", 3)], [()], False),
        ([("n", 3), ()], [("n",)], False),
        ([(1, 3)], [("n",)], False),
        ([], [("n",)], False),
    ],
)
def test_which_signatures_may_be_stacked(inputs: Any, outputs: Any, *, fits: bool) -> None:
    def specs(shapes: Any) -> list[TensorSpec]:
        return [TensorSpec(f"t{n}", "float32", shape) for n, shape in enumerate(shapes)]

    assert stackable(specs(inputs), specs(outputs)) == fits


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_what_is_stacked_comes_apart_again(lengths: list[int]) -> None:
    requests = [
        Feeds.of({"x": np.full((rows, 2), n, np.float32)}, stacked=True) for n, rows in enumerate(lengths)
    ]
    apart = split(stack(requests), requests)
    for request, own in zip(requests, apart, strict=True):
        assert np.array_equal(own["x"], request.arrays["x"])


def test_rows_that_do_not_add_up_are_the_models_fault() -> None:
    requests = [Feeds.of({"x": np.zeros((1, 2), np.float32)}, stacked=True)] * 2
    with pytest.raises(ModelFailed, match="rows"):
        split({"y": np.zeros((3, 2), np.float32)}, requests)


def test_requests_of_uneven_inputs_are_run_alone() -> None:
    assert Feeds.of({"a": np.zeros((1, 2)), "b": np.zeros((2, 2))}, stacked=True).group is None
    assert Feeds.of({"a": np.zeros((0, 2))}, stacked=True).group is None
    assert Feeds.of({"a": np.zeros((stacking._MOST_BYTES, 2))}, stacked=True).group is None
