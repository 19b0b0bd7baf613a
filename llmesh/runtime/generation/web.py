"""A graph's nodes by the tensors that join them, with constants read and parts run for what they compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from llmesh.errors import ValidationFailed
from llmesh.runtime.generation.graph import Array, open_session, run_session

__all__ = ["Web"]

_MOST_CONSTANTS = 64 << 20
"""A part with larger constants is none of the small sums that are run here."""


class Web:
    """The top level of one model; what is added takes its place in `write`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self.inputs = {one.name: one for one in model.graph.input}
        self._constants = {one.name: one for one in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def maker(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        """The node that `name` comes from, if it is of one of the kinds."""
        node = self._makers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def users(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that take `name`."""
        return self._users.get(name, [])

    def constant(self, name: str) -> Array | None:
        """The value of a small constant held in the file itself."""
        tensor = self._constants.get(name)
        if tensor is None and (node := self.maker(name, "Constant")):
            tensor = next((one.t for one in node.attribute if one.name == "value"), None)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor) if tensor.ByteSize() <= _MOST_CONSTANTS else None

    def number(self, name: str) -> float | None:
        """The value of a constant of one element."""
        value = self.constant(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def sources(self, names: Iterable[str]) -> set[str]:
        """The inputs of the graph whose values, not only their shapes, `names` are made of."""
        taken = {name for node in self._above(names, end="Shape") for name in node.input}
        return (taken | set(names)) & self.inputs.keys()

    def run(self, names: list[str], feed: Callable[[str], Array]) -> list[Array]:
        """What the tensors `names` are where the graph's input `x` is `feed(x)`.

        Raises ValidationFailed where that is no small sum, and as onnxruntime does.
        """
        nodes = self._above(names)
        taken = {name for node in nodes for name in node.input}
        constants = [self._constants[name] for name in taken & self._constants.keys()]
        if any(one.data_location == onnx.TensorProto.EXTERNAL for one in constants):
            raise ValidationFailed("A part of the graph takes weights from beside the file.")
        if sum(one.ByteSize() for one in constants) > _MOST_CONSTANTS:
            raise ValidationFailed("A part of the graph is too large to be run by itself.")
        inputs = [self.inputs[name] for name in taken & self.inputs.keys()]
        outputs = [onnx.ValueInfoProto(name=name) for name in names]
        part = onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        part.graph.CopyFrom(helper.make_graph(nodes, "part", inputs, outputs, constants))
        session = open_session(Path("part"), 1, part.SerializeToString())
        return run_session(session, names, {one.name: feed(one.name) for one in inputs})

    def add(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Put nodes in the place of those that make the same tensors."""
        for node in nodes:
            self._makers |= dict.fromkeys(node.output, node)

    def add_constant(self, name: str, value: Array) -> str:
        """Keep a new constant with the model."""
        self._model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def write(self) -> bytes:
        """The model with the nodes that its outputs need now, in an order that can be run."""
        graph = self._model.graph
        nodes = self._above([one.name for one in graph.output])
        del graph.node[:]
        graph.node.extend(nodes)
        return self._model.SerializeToString()

    def _above(self, names: Iterable[str], end: str = "") -> list[onnx.NodeProto]:
        """The nodes that `names` are made by, makers first; nodes of the kind `end` and theirs left out."""
        found: dict[int, onnx.NodeProto] = {}
        stack = [(name, False) for name in names]
        begun: set[int] = set()
        while stack:
            name, over = stack.pop()
            node = self._makers.get(name)
            if node is None or node.op_type == end or id(node) in found:
                continue
            if over:
                found[id(node)] = node
            elif id(node) not in begun:
                begun.add(id(node))
                stack.append((name, True))
                stack += [(one, False) for one in node.input]
        return list(found.values())
