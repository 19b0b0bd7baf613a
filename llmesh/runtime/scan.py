"""The static check: what an ONNX file must not contain, found before the runtime sees it.

Reads the graph with `onnx` alone, external data left where it is.  Refuses operators of foreign
domains, external data that is not a plain file inside the bundle, and graphs out of all
proportion.  It bounds what loading may touch, not what running may cost: memory limits, deadlines
and the sandbox do that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from llmesh.errors import ValidationFailed
from llmesh.runtime.orders import GraphFacts

__all__ = ["scan_graph"]

MAX_FILE = 2 << 30
MAX_NODES = 1_000_000
MAX_DEPTH = 32
MAX_EXTERNAL = 1_000
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
# EPContext hands an opaque blob to an execution provider's own loader.
REFUSED_OPERATORS = {("com.microsoft", "EPContext")}
_LFS = b"version https://git-lfs"

# The first that has one of the graph's operators says what its arithmetic is.
_EXECUTIONS = (
    ("int8-dynamic", {"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}),
    ("int4", {"MatMulNBits", "GatherBlockQuantized", "MatMulBnb4"}),
    ("int8-static", {"QuantizeLinear", "QLinearMatMul", "QLinearConv", "QAttention", "MatMulInteger"}),
)
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def scan_graph(folder: Path, graph: str) -> GraphFacts:
    """Check one ONNX file of a bundle.  Raises ValidationFailed that names file and reason."""
    path = folder / graph
    size = path.stat().st_size
    if size > MAX_FILE:
        raise ValidationFailed(f"{graph} has {size} bytes; an ONNX file may have {MAX_FILE}.")
    model = _parse(path, graph)
    own_domains = {function.domain for function in model.functions}
    operators: set[str] = set()
    for count, node in enumerate(_nodes(model, graph)):
        if count >= MAX_NODES:
            raise ValidationFailed(f"{graph} has more than {MAX_NODES} nodes.")
        _check_operator(node, own_domains, graph)
        operators.add(node.op_type)
    external = {_external_file(tensor, path.parent, graph) for tensor in _external_tensors(model)}
    if len(external) > MAX_EXTERNAL:
        raise ValidationFailed(f"{graph} keeps data in more than {MAX_EXTERNAL} files.")
    names = (os.path.relpath(path.parent / name, folder) for name in external)
    return GraphFacts(
        tuple(sorted({PurePosixPath(name).as_posix() for name in names})), _execution(model, operators)
    )


def _parse(path: Path, graph: str) -> ModelProto:
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise ValidationFailed(f"{graph} is a Git LFS pointer, not the model; run `git lfs pull`.")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, RecursionError):
        raise ValidationFailed(f"{graph} is not an ONNX file, or it is cut short.") from None
    if not model.ir_version or not model.graph.output:
        raise ValidationFailed(f"{graph} is not an ONNX model: it has no version or no outputs.")
    return model


def _execution(model: ModelProto, operators: Collection[str]) -> str:
    for execution, signs in _EXECUTIONS:
        if not signs.isdisjoint(operators):
            return execution
    halves = any(tensor.data_type in _HALVES for tensor in model.graph.initializer)
    return "fp16" if halves else "fp32-strict"


def _nodes(model: ModelProto, graph: str) -> Iterator[NodeProto]:
    pending: list[tuple[GraphProto | FunctionProto, int]] = [(model.graph, 0)]
    pending += [(function, 0) for function in model.functions]
    while pending:
        scope, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValidationFailed(f"{graph} nests graphs more than {MAX_DEPTH} deep.")
        for node in scope.node:
            yield node
            pending += [(inner, depth + 1) for a in node.attribute for inner in _subgraphs(a)]


def _subgraphs(attribute: AttributeProto) -> list[GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _check_operator(node: NodeProto, own_domains: set[str], graph: str) -> None:
    if node.domain not in DOMAINS | own_domains or (node.domain, node.op_type) in REFUSED_OPERATORS:
        raise ValidationFailed(
            f"{graph} uses the operator {node.domain or 'ai.onnx'}.{node.op_type}, which is not allowed:"
            " only the standard ones and those of com.microsoft are."
        )


def _external_tensors(model: ModelProto) -> Iterator[TensorProto]:
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            yield tensor


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    scopes: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while scopes:
        scope = scopes.pop()
        if isinstance(scope, GraphProto):
            yield from scope.initializer
            for sparse in scope.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for attribute in (a for node in scope.node for a in node.attribute):
            yield from _attribute_tensors(attribute)
            scopes += _subgraphs(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    for sparse in [
        *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
        *attribute.sparse_tensors,
    ]:
        yield from (sparse.values, sparse.indices)


def _external_file(tensor: TensorProto, folder: Path, graph: str) -> str:
    """The file a tensor lies in: relative, inside the folder, regular, with no second name."""
    entry: dict[str, object] = {item.key: item.value for item in tensor.external_data}
    location = entry.get("location", "")
    if not isinstance(location, str):  # protobuf hands over bytes where a text is not UTF-8
        raise ValidationFailed(f"{graph} keeps data in a file whose name is no text.")
    where = f"{graph} keeps {tensor.name[:80]!r} in {location[:200]!r}"
    name = PurePosixPath(location)
    if not location or name.is_absolute() or ".." in name.parts or "\\" in location or "\0" in location:
        raise ValidationFailed(f"{where}, which is not a path inside the bundle.")
    walk = folder
    for part in name.parts:
        walk = walk / part
        if walk.is_symlink():
            raise ValidationFailed(f"{where}, which is or lies behind a link.")
    try:
        found = walk.lstat()
    except OSError:
        raise ValidationFailed(f"{where}, which is missing from the bundle.") from None
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise ValidationFailed(f"{where}, which is not a file of its own (a link or a device).")
    _check_extent(entry, found.st_size, where)
    return location


def _check_extent(entry: dict[str, object], size: int, where: str) -> None:
    try:
        offset, length = int(str(entry.get("offset", "0"))), int(str(entry.get("length", "0")))
    except ValueError:
        raise ValidationFailed(f"{where} at an offset that is not a number.") from None
    if offset < 0 or length < 0 or offset + length > size:
        raise ValidationFailed(f"{where} at bytes {offset} to {offset + length}, but that file has {size}.")
