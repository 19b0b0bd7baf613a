"""Hostile graphs, refused by their files alone."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, TensorProto, helper, numpy_helper

from llmesh.errors import ValidationFailed
from llmesh.runtime import scan
from llmesh.runtime.orders import GraphFacts
from llmesh.runtime.scan import scan_graph


def graph_of(*nodes: onnx.NodeProto, initializers: list[TensorProto] | None = None) -> GraphProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_graph(list(nodes), "g", [x], [y], initializer=initializers or [])


def save(folder: Path, graph: GraphProto, **more: list[onnx.FunctionProto]) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **more)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def external(location: str, **entries: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(1, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def add(weights: TensorProto) -> GraphProto:
    return graph_of(helper.make_node("Add", ["x", "w"], ["y"]), initializers=[weights])


def nested(depth: int, inner: onnx.NodeProto) -> onnx.NodeProto:
    for _ in range(depth):
        body = helper.make_graph(
            [inner], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
        )
        inner = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    return inner


def test_a_good_model_passes(tmp_path: Path) -> None:
    facts = scan_graph(save(tmp_path, graph_of(helper.make_node("Relu", ["x"], ["y"]))), "model.onnx")
    assert facts == GraphFacts((), "fp32-strict")


def test_external_data_inside_the_bundle_passes_and_is_listed(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "w.bin").write_bytes(bytes(4))
    save(tmp_path / "onnx", add(external("w.bin", offset="0", length="4")))
    assert scan_graph(tmp_path, "onnx/model.onnx").external == ("onnx/w.bin",)


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "/dev/zero", "a/../../w.bin", "..", "", "a\\b", "x\0y", "missing"]
)
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(4))
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ValidationFailed, match=r"not a path inside|missing"):
        scan_graph(save(tmp_path / "bundle", add(external(location))), "model.onnx")


def test_a_location_that_is_no_text_is_refused(tmp_path: Path) -> None:
    data = (save(tmp_path, add(external("w.bin"))) / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(data.replace(b"w.bin", b"w\xffbin"))
    with pytest.raises(ValidationFailed, match="no text"):
        scan_graph(tmp_path, "model.onnx")


@pytest.mark.parametrize("kind", ["symlink", "hard link", "symlinked folder", "folder", "fifo"])
def test_external_data_behind_a_link_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(4))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    target, location = bundle / "w.bin", "w.bin"
    if kind == "symlink":
        target.symlink_to(tmp_path / "secret")
    elif kind == "hard link":
        target.hardlink_to(tmp_path / "secret")
    elif kind == "symlinked folder":
        target.symlink_to(tmp_path, target_is_directory=True)
        location = "w.bin/secret"
    elif kind == "folder":
        target.mkdir()
    else:
        os.mkfifo(target)
    with pytest.raises(ValidationFailed, match="link"):
        scan_graph(save(bundle, add(external(location))), "model.onnx")


@pytest.mark.parametrize("extent", [{"offset": "1"}, {"length": "5"}, {"offset": "-1"}, {"offset": "x"}])
def test_extents_beyond_the_file_are_refused(tmp_path: Path, extent: dict[str, str]) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(4))
    with pytest.raises(ValidationFailed, match=r"bytes|number"):
        scan_graph(save(tmp_path, add(external("w.bin", **{"length": "4"} | extent))), "model.onnx")


@pytest.mark.parametrize("domain", ["evil.ops", "ai.onnx.training", "com.microsoft.nchwc"])
def test_foreign_operators_are_refused_however_deep(tmp_path: Path, domain: str) -> None:
    node = helper.make_node("Run", ["x"], ["y"], domain=domain)
    for graph in (graph_of(node), graph_of(nested(3, node))):
        with pytest.raises(ValidationFailed, match=domain):
            scan_graph(save(tmp_path, graph), "model.onnx")


def test_opaque_provider_blobs_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")
    with pytest.raises(ValidationFailed, match="EPContext"):
        scan_graph(save(tmp_path, graph_of(node)), "model.onnx")


def test_functions_of_the_model_are_its_own_but_are_read(tmp_path: Path) -> None:
    call = helper.make_node("f", ["x"], ["y"], domain="own")
    opsets = [helper.make_opsetid("", 17)]
    good = helper.make_function("own", "f", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)
    assert scan_graph(save(tmp_path, graph_of(call), functions=[good]), "model.onnx").external == ()
    body = [helper.make_node("Run", ["a"], ["b"], domain="evil")]
    bad = helper.make_function("own", "f", ["a"], ["b"], body, opsets)
    with pytest.raises(ValidationFailed, match="evil"):
        scan_graph(save(tmp_path, graph_of(call), functions=[bad]), "model.onnx")


def test_external_data_hides_nowhere(tmp_path: Path) -> None:
    weights = external("../w.bin")
    constant = helper.make_node("Constant", [], ["y"], value=weights)
    listed = helper.make_node("Relu", ["x"], ["y"])
    listed.attribute.append(
        onnx.AttributeProto(name="a", type=onnx.AttributeProto.TENSORS, tensors=[weights])
    )
    sparse = onnx.SparseTensorProto(values=external("../v.bin"), indices=external("../i.bin"))
    graphs = [
        graph_of(constant),
        graph_of(nested(2, constant)),
        graph_of(listed),
        graph_of(helper.make_node("Relu", ["x"], ["y"])),
    ]
    graphs[-1].sparse_initializer.append(sparse)
    for graph in graphs:
        with pytest.raises(ValidationFailed, match="not a path inside"):
            scan_graph(save(tmp_path, graph), "model.onnx")


def test_depth_and_number_of_nodes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    monkeypatch.setattr(scan, "MAX_DEPTH", 4)
    with pytest.raises(ValidationFailed, match="deep"):
        scan_graph(save(tmp_path, graph_of(nested(6, relu))), "model.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(4))
    monkeypatch.setattr(scan, "MAX_EXTERNAL", 0)
    with pytest.raises(ValidationFailed, match="more than 0 files"):
        scan_graph(save(tmp_path, add(external("w.bin"))), "model.onnx")
    monkeypatch.setattr(scan, "MAX_NODES", 10)
    with pytest.raises(ValidationFailed, match="nodes"):
        scan_graph(save(tmp_path, graph_of(*[relu] * 11)), "model.onnx")
    monkeypatch.setattr(scan, "MAX_FILE", 10)
    with pytest.raises(ValidationFailed, match="bytes"):
        scan_graph(save(tmp_path, graph_of(relu)), "model.onnx")


def quantised(operator: str, domain: str = "") -> GraphProto:
    return graph_of(
        helper.make_node("Relu", ["x"], ["y"]), helper.make_node(operator, ["x"], ["z"], domain=domain)
    )


@pytest.mark.parametrize(
    ("graph", "execution"),
    [
        (quantised("Relu"), "fp32-strict"),
        (quantised("DynamicQuantizeLinear"), "int8-dynamic"),
        (quantised("QLinearMatMul"), "int8-static"),
        (quantised("MatMulNBits", "com.microsoft"), "int4"),
        (graph_of(initializers=[numpy_helper.from_array(np.ones(1, np.float16), "w")]), "fp16"),
    ],
)
def test_the_arithmetic_is_named(tmp_path: Path, graph: GraphProto, execution: str) -> None:
    assert scan_graph(save(tmp_path, graph), "model.onnx").execution == execution


@pytest.mark.parametrize("data", [b"", b"hello", b"\x08\x07", bytes(1000), b"\xff" * 100])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ValidationFailed, match="not an ONNX"):
        scan_graph(tmp_path, "model.onnx")


def test_mutations_are_refused_or_read_but_never_crash(tmp_path: Path) -> None:
    graph = graph_of(nested(2, helper.make_node("Relu", ["x"], ["y"])), initializers=[external("w.bin")])
    (tmp_path / "w.bin").write_bytes(bytes(4))
    good = (save(tmp_path, graph) / "model.onnx").read_bytes()
    rng = random.Random(1)
    for _ in range(1000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "model.onnx").write_bytes(data[: rng.randrange(1, len(data) + 1)])
        try:
            facts = scan_graph(tmp_path, "model.onnx")
        except ValidationFailed:
            continue
        assert set(facts.external) <= {"w.bin"}
