"""What the worker makes of raw tensors, on small graphs in this process."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h

from llmesh.core.encoding import DTYPES, Tensor, Value
from llmesh.errors import ModelFailed, TooLarge, ValidationFailed
from llmesh.runtime import tensors
from llmesh.runtime.graph import Graph, Stop
from llmesh.runtime.tensors import RawTensors

from .conftest import Save, doubler, endless, model_of, value


def identity(kind: int) -> Any:
    return model_of(
        [h.make_node("Identity", ["x"], ["y"])], [value("x", kind, "n", 2)], [value("y", kind, "n", 2)]
    )


KINDS = {name: getattr(T, name.upper()) for name in DTYPES if name not in ("float32", "float64")} | {
    "float32": T.FLOAT, "float64": T.DOUBLE,
}  # fmt: skip


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RawTensors]:
    folder = tmp_path_factory.mktemp("graphs")
    opened: dict[str, RawTensors] = {}

    def get(dtype: str) -> RawTensors:
        if dtype not in opened:
            path = folder / f"{dtype}.onnx"
            path.write_bytes(identity(KINDS.get(dtype, T.STRING)).SerializeToString())
            opened[dtype] = RawTensors(Graph(path, "m", 1))
        return opened[dtype]

    return get


def run(model: RawTensors, x: Value) -> Value:
    return model.answer(model.check({"x": x}), Stop())["y"]


@given(st.sampled_from(sorted(set(DTYPES) - {"bool"})), st.data())
def test_tensors_come_through_bit_by_bit(
    raw: Callable[[str], RawTensors], dtype: str, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(0, 3))
    size = rows * 2 * DTYPES[dtype]
    tensor = Tensor(dtype, (rows, 2), data.draw(st.binary(min_size=size, max_size=size)))
    assert run(raw(dtype), tensor) == tensor


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=3))
def test_bools_come_through(raw: Callable[[str], RawTensors], rows: list[tuple[bool, bool]]) -> None:
    tensor = Tensor("bool", (len(rows), 2), bytes(b for row in rows for b in row))
    assert run(raw("bool"), tensor) == tensor
    assert run(raw("bool"), [list(row) for row in rows]) == tensor


@given(st.lists(st.lists(st.integers(-128, 127), min_size=2, max_size=2), min_size=1, max_size=3))
def test_nested_lists_become_what_the_graph_takes(
    raw: Callable[[str], RawTensors], rows: list[list[int]]
) -> None:
    for dtype in ("int8", "int16", "int32", "int64", "float16", "float32", "float64"):
        answer = run(raw(dtype), rows)
        assert isinstance(answer, Tensor)
        assert (answer.dtype, answer.shape) == (dtype, (len(rows), 2))
        assert np.frombuffer(answer.data, dtype).reshape(answer.shape).tolist() == rows


def test_nan_and_infinity_are_floats(raw: Callable[[str], RawTensors]) -> None:
    answer = run(raw("float32"), [[math.nan, -math.inf]])
    assert isinstance(answer, Tensor)
    assert str(np.frombuffer(answer.data, "<f4").tolist()) == "[nan, -inf]"


def test_texts_come_as_lists(raw: Callable[[str], RawTensors]) -> None:
    assert run(raw("string"), [["你好", ""], ["a", "😀"]]) == [["你好", ""], ["a", "😀"]]


@pytest.mark.parametrize(
    ("dtype", "given_value", "says"),
    [
        ("float32", Tensor("float64", (1, 2), bytes(16)), "x has the dtype float64"),
        ("float32", Tensor("float32", (2,), bytes(8)), "x has the shape [2]"),
        ("float32", Tensor("float32", (1, 3), bytes(12)), "x has the shape [1, 3]"),
        ("float32", [[1, 2], [3]], "x is ragged"),
        ("float32", "text", "x holds values that are no float32"),
        ("float32", [["a", "b"]], "x holds values that are no float32"),
        ("float32", [[True, False]], "x holds values that are no float32"),
        ("float32", [[None, 1]], "x holds values that are no float32"),
        ("float32", {"a": 1}, "x holds values that are no float32"),
        ("float32", [[1e39, 0]], "x holds a number out of the range of float32"),
        ("float16", [[70000, 0]], "x holds a number out of the range of float16"),
        ("float32", 1.5, "x has the shape []"),
        ("float32", [], "x has the shape [0]"),
        ("int64", [[1.0, 2.0]], "x holds values that are no int64"),
        ("int64", [[1, 1 << 70]], "x holds values that are no int64"),
        ("int8", [[128, 0]], "x holds a number out of the range of int8"),
        ("uint8", [[-1, 0]], "x holds a number out of the range of uint8"),
        ("bool", [[1, 0]], "x holds values that are no bool"),
        ("string", [["a", 1]], "x holds what is no text"),
        ("string", Tensor("uint8", (1, 2), b"ab"), "x has the dtype uint8"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_signature(
    raw: Callable[[str], RawTensors], dtype: str, given_value: Value, says: str
) -> None:
    with pytest.raises(ValidationFailed) as caught:
        raw(dtype).check({"x": given_value})
    assert f"takes x: {dtype}[n, 2]" in caught.value.message
    assert says in caught.value.message


def test_a_deep_list_is_refused(raw: Callable[[str], RawTensors]) -> None:
    deep: Any = 1.0
    for _ in range(200):
        deep = [deep]
    with pytest.raises(ValidationFailed):
        raw("float32").check({"x": deep})


@pytest.mark.parametrize(
    ("values", "says"), [({}, "nothing"), ({"X": 1}, "'X'"), ({"x": [[1, 2]], "z": 1}, "'x', 'z'")]
)
def test_names_must_be_those_of_the_graph(
    raw: Callable[[str], RawTensors], values: dict[str, Value], says: str
) -> None:
    with pytest.raises(ValidationFailed, match=says) as caught:
        raw("float32").check(values)
    assert "x: float32[n, 2]" in caught.value.message


def test_an_answer_has_bounds(raw: Callable[[str], RawTensors], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "MAX_BODY", 7)
    with pytest.raises(TooLarge):
        run(raw("float32"), [[1, 2]])


def graph(folder: Path) -> Graph:
    return Graph(folder / "model.onnx", "model.onnx", 1)


def test_a_fault_inside_the_graph_names_itself(save: Save) -> None:
    add = h.make_node("Add", ["a", "b"], ["y"])
    model = model_of([add], [value(n, T.FLOAT, n) for n in "ab"], [value("y", T.FLOAT, "n")])
    broken = RawTensors(graph(save(model)))
    with pytest.raises(ModelFailed, match="Add"):
        broken.answer(broken.check({"a": [1, 2], "b": [1, 2, 3]}), Stop())


def test_a_stop_set_before_the_run_ends_it(save: Save) -> None:
    loop = RawTensors(graph(save(endless())))
    stop = Stop()
    stop.set()
    with pytest.raises(ModelFailed):
        loop.answer(loop.check({"times": 1 << 62, "x": [0, 0, 0]}), stop)
    assert loop.answer(loop.check({"times": 1, "x": [1, 2, 3]}), Stop())["y"]


def sequence() -> Any:
    made = h.make_tensor_sequence_value_info("y", T.FLOAT, None)
    return model_of([h.make_node("SequenceConstruct", ["x"], ["y"])], [value("x", T.FLOAT, 1)], [made])


def unknown_op() -> Any:
    return model_of([h.make_node("Nope", ["x"], ["y"])], [value("x", T.FLOAT)], [value("y", T.FLOAT)])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (unknown_op(), "Nope"),
        (identity(T.BFLOAT16), "no place in a request"),
        (sequence(), "no place in a request"),
    ],
    ids=["unknown op", "bfloat16", "sequence"],
)
def test_what_cannot_be_run_is_refused(save: Save, model: Any, says: str) -> None:
    folder = save(model)
    with pytest.raises(ValidationFailed, match=says) as caught:
        graph(folder)
    assert str(folder) not in caught.value.message


def test_the_signature_is_the_graphs(save: Save) -> None:
    opened = graph(save(doubler()))
    assert [str(spec) for spec in opened.inputs] == ["x: float32[n, 3]"]
    assert [str(spec) for spec in opened.outputs] == ["y: float32[n, 3]"]
