"""What a Python program hands in and gets back: arrays, odd names, nothing at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from llmesh.core.encoding import Tensor
from llmesh.errors import ValidationFailed
from llmesh.node.config import NodeConfig
from llmesh.node.open import open_node


@pytest.fixture
def doubler(tmp_path: Path) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    path = tmp_path / "doubler.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


async def test_numpy_arrays_go_in_and_lists_come_out(tmp_path: Path, doubler: Path) -> None:
    config = NodeConfig(port=0, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, data_dir=tmp_path / "home")
    async with open_node(config) as node:
        await node.deploy(doubler, "doubler")
        result = await node.request("doubler", {"x": np.array([[1, 2], [3, 4]], np.float32)})
        answer = result.output["y"]
        assert isinstance(answer, Tensor)
        assert answer.tolist() == [[2.0, 4.0], [6.0, 8.0]]
        with pytest.raises(ValidationFailed, match="name"):
            await node.deploy(doubler, "")
        with pytest.raises(ValidationFailed, match="dtype"):
            await node.request("doubler", {"x": np.array([[1, 2]], ">f4")})
