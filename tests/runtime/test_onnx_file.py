from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper as h

from llmesh.errors import ValidationFailed
from llmesh.runtime import onnx_file
from llmesh.runtime.onnx_file import external_data

from .conftest import doubler, external, model_of, value

GOOD = external("w.bin").SerializeToString()


def weight(location: str) -> onnx.TensorProto:
    tensor = T(name="w", data_type=T.FLOAT, dims=[3], data_location=T.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def inner(location: str) -> onnx.GraphProto:
    return h.make_graph([h.make_node("Constant", [], ["c"], value=weight(location))], "inner", [], [])


def in_subgraph(location: str) -> onnx.ModelProto:
    node = h.make_node("If", ["c"], ["y"], then_branch=inner(location), else_branch=inner("else.bin"))
    return model_of([node], [value("c", T.BOOL)], [value("y", T.FLOAT, 3)])


def in_function(location: str) -> onnx.ModelProto:
    model = doubler()
    node = h.make_node("Constant", [], ["c"], value=weight(location))
    model.functions.append(h.make_function("own", "f", [], ["c"], [node], [h.make_opsetid("", 17)]))
    return model


def in_sparse(location: str) -> onnx.ModelProto:
    model = doubler()
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=weight(location), dims=[3]))
    return model


def in_list(location: str) -> onnx.ModelProto:
    model = doubler()
    attribute = onnx.AttributeProto(name="a", type=onnx.AttributeProto.TENSORS, tensors=[weight(location)])
    model.graph.node[0].attribute.append(attribute)
    return model


@pytest.mark.parametrize("build", [external, in_subgraph, in_function, in_sparse, in_list])
def test_external_data_is_found_wherever_it_hides(tmp_path: Path, build: Any) -> None:
    (tmp_path / "m").write_bytes(build("here.bin").SerializeToString())
    assert "here.bin" in external_data(tmp_path / "m")


def test_a_graph_without_external_data(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(doubler().SerializeToString())
    assert external_data(tmp_path / "m") == frozenset()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data())
def test_any_bytes_are_taken(tmp_path: Path, data: st.DataObject) -> None:
    spoilt = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        spoilt[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        spoilt = spoilt or bytearray(b"\0")
    (tmp_path / "m").write_bytes(spoilt)
    with contextlib.suppress(ValidationFailed):
        assert all(isinstance(name, str) for name in external_data(tmp_path / "m"))


@given(cut=st.integers(0, len(GOOD) - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_cut_in_the_graph_is_seen(tmp_path: Path, cut: int) -> None:
    whole = GOOD[
        : len(GOOD) - len(onnx.ModelProto(opset_import=[h.make_opsetid("", 17)]).SerializeToString())
    ]
    (tmp_path / "m").write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(ValidationFailed):
        external_data(tmp_path / "m")


def test_depth_and_work_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b""
    for _ in range(60):  # graph within attribute within node, over and over
        for key in (0x32, 0x2A, 0x0A):
            deep = bytes([key, *varint(len(deep))]) + deep
    (tmp_path / "m").write_bytes(b"\x3a" + bytes(varint(len(deep))) + deep)
    with pytest.raises(ValidationFailed, match="levels within"):
        external_data(tmp_path / "m")
    (tmp_path / "m").write_bytes(GOOD)
    monkeypatch.setattr(onnx_file, "_MAX_FIELDS", 3)
    with pytest.raises(ValidationFailed, match="more than 3 parts"):
        external_data(tmp_path / "m")


def varint(number: int) -> list[int]:
    return [number] if number < 128 else [number & 127 | 128, *varint(number >> 7)]
