"""Decoders exported with plain attention, rewritten when they are loaded to keep their cache in place.

A plain export makes a longer copy of the whole cache in every step, and spends hundreds of small
operators on what onnxruntime has one for.  What is found to be attention over the cache becomes
GroupQueryAttention, with it rotary positions and RMS norms; logits of a prompt are taken of its
last token only.  A mask counts as causal when it was run and is; the whole counts as the same
decoder when its logits are.  Else the file is run as it came.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from llmesh.errors import ModelFailed, ValidationFailed
from llmesh.runtime.generation.graph import Array, Floats, Graph
from llmesh.runtime.generation.layout import distance
from llmesh.runtime.generation.patterns import (
    Attention,
    Norm,
    find_attention,
    find_norms,
    find_rotary,
    flat_source,
)
from llmesh.runtime.generation.settings import ModelSettings
from llmesh.runtime.generation.web import Web

__all__ = ["fuse", "open_graph"]

_MOST_BYTES = 512 << 20
"""A larger file is run as it came: for a while there are three copies of it in memory."""
_SAME = 0.05
"""Relative distance of two logits vectors that are the same but for rounding (4-bit models: 0.02)."""
_MOST_TABLE = 1 << 24
_HIDDEN = -1000.0
"""What is added to a score to hide it is lower than this."""
_DOMAIN = "com.microsoft"
_LAST, _TOTAL = "llmesh.last_columns", "llmesh.columns"
_TRIAL = 42
"""So many tokens are read to compare two graphs."""


def open_graph(path: Path, settings: ModelSettings, threads: int) -> Graph:
    """The graph of a file, rewritten where that is the same decoder.  Raises as Graph does."""
    plain = Graph(path, settings, threads)
    if plain.grouped or path.stat().st_size > _MOST_BYTES:
        return plain
    content = fuse(path, plain, settings)
    if content is None:
        return plain
    expected = _answers(plain)
    del plain  # two sessions at once are too much memory
    try:
        fused = Graph(path, settings, threads, content)
        if max(distance(*pair) for pair in zip(expected, _answers(fused), strict=True)) <= _SAME:
            return fused
    except (ModelFailed, ValidationFailed):
        pass
    return Graph(path, settings, threads)


def fuse(path: Path, plain: Graph, settings: ModelSettings) -> bytes | None:
    """The file rewritten, or None where its attention is not of a form that is known here."""
    if not (plain.mask and settings.query_heads) or plain.branch:
        return None
    model = onnx.load(path, load_external_data=False)
    if any(one.g.node or one.graphs for node in model.graph.node for one in node.attribute):
        return None
    if not any(one.domain == _DOMAIN for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    web = Web(model)
    pairs = zip(plain.past[::2], plain.past[1::2], strict=True)
    found = [find_attention(web, key, value) for key, value in pairs]
    attentions = [one for one in found if one is not None]
    try:
        if len(attentions) < len(found) or not _all_causal(web, plain, attentions):
            return None
        tables = _tables(web, plain, attentions)
    except (ModelFailed, ValidationFailed):
        return None
    for norm in list(find_norms(web, list(model.graph.node))):
        web.add([_norm(norm)])
    web.add(_lengths(web))
    for layer, attention in enumerate(attentions):
        web.add(_attention(web, plain, layer, attention, settings.query_heads, tables))
    _shorten(web)
    return web.write()


def _all_causal(web: Web, graph: Graph, attentions: list[Attention]) -> bool:
    """Whether the masks hide what comes later and nothing else."""
    masks = {_below(web, one.mask) for one in attentions}
    if not web.sources(masks) <= {"attention_mask", "position_ids"}:
        return False
    for had, count in ((0, min(64, graph.context)), (graph.context - 8, 8)):
        seen = np.arange(had + count) <= had + np.arange(count)[:, None]
        for mask in web.run(sorted(masks), _feed(web, graph, had, count)):
            if mask.size != seen.size:
                return False
            values = mask.reshape(seen.shape)
            if (values[seen] != 0).any() or (values[~seen] > _HIDDEN).any():
                return False
    return True


def _below(web: Web, name: str) -> str:
    """The same values before they were laid out anew."""
    while node := web.maker(name, "Unsqueeze", "Identity"):
        name = node.input[0]
    return name


def _feed(web: Web, graph: Graph, had: int, count: int) -> Callable[[str], Array]:
    """Inputs of one row that has read `had` tokens and reads `count` more."""

    def feed(name: str) -> Array:
        kind = helper.tensor_dtype_to_np_dtype(web.inputs[name].type.tensor_type.elem_type)
        if name == "attention_mask":
            return np.ones((1, had + count), kind)
        if name == "position_ids":
            return np.arange(had, had + count, dtype=kind)[None]
        shape = (1, count) if name == "input_ids" else (1, graph.heads, had, graph.head_size)
        return np.zeros(shape, kind)

    return feed


def _tables(web: Web, graph: Graph, attentions: list[Attention]) -> list[str]:
    """Cosines and sines `[context, size / 2]` as constants, or none where the operator cannot turn all."""
    turned = [find_rotary(web, name) for one in attentions for name in (one.query, one.key)]
    angles = {(one.cosines, one.sines) if one else None for one in turned}
    names = next(iter(angles))
    half, rows = graph.head_size // 2, graph.context
    if len(angles) > 1 or names is None or rows * half > _MOST_TABLE:
        return []
    if not web.sources(names) <= {"attention_mask", "position_ids"}:
        return []
    tables = web.run(list(names), _feed(web, graph, 0, rows))
    if any(one.size != 2 * rows * half for one in tables):
        return []
    whole = [one.reshape(rows, 2 * half).astype(graph.dtype) for one in tables]
    if any((one[:, :half] != one[:, half:]).any() for one in whole):
        return []
    return [
        web.add_constant(f"llmesh.{n}", np.ascontiguousarray(one[:, :half])) for n, one in enumerate(whole)
    ]


def _norm(norm: Norm) -> onnx.NodeProto:
    inputs, outputs = [norm.source, norm.weight], [norm.end]
    return helper.make_node("SimplifiedLayerNormalization", inputs, outputs, axis=-1, epsilon=norm.epsilon)


def _lengths(web: Web) -> list[onnx.NodeProto]:
    """What the operator wants to know: each row's last column, and the columns there are."""
    columns = web.add_constant("llmesh.axis", np.array([1], np.int64))
    integer = onnx.TensorProto.INT32
    kind = web.inputs["attention_mask"].type.tensor_type.elem_type
    one = web.add_constant("llmesh.one", np.array(1, helper.tensor_dtype_to_np_dtype(kind)))
    return [
        helper.make_node("ReduceSum", ["attention_mask", columns], ["llmesh.sum"], keepdims=0),
        helper.make_node("Sub", ["llmesh.sum", one], ["llmesh.less"]),
        helper.make_node("Cast", ["llmesh.less"], [_LAST], to=integer),
        helper.make_node("Shape", ["attention_mask"], ["llmesh.shape"], start=1, end=2),
        helper.make_node("Squeeze", ["llmesh.shape"], ["llmesh.width"]),
        helper.make_node("Cast", ["llmesh.width"], [_TOTAL], to=integer),
    ]


def _attention(
    web: Web, graph: Graph, layer: int, found: Attention, heads: int, tables: list[str]
) -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []
    flat = [_flat(web, nodes, _bare(web, name) if tables else name) for name in (found.query, found.key)]
    flat.append(_flat(web, nodes, found.value))
    cache = slice(2 * layer, 2 * layer + 2)
    (end,), shape = found.end.output, web.constant(found.end.input[1])
    wide = end if shape is None or shape.size == 3 else f"llmesh.{end}.wide"
    node = helper.make_node(
        "GroupQueryAttention",
        [*flat, *graph.past[cache], _LAST, _TOTAL, *tables],
        [wide, *graph.present[cache]],
        domain=_DOMAIN,
        num_heads=heads,
        kv_num_heads=graph.heads,
        scale=found.scale,
        do_rotary=int(bool(tables)),
    )
    if wide != end:  # the rows and tokens as one, as some projections take them
        return [*nodes, node, helper.make_node("Reshape", [wide, found.end.input[1]], [end])]
    return [*nodes, node]


def _bare(web: Web, name: str) -> str:
    turned = find_rotary(web, name)
    return turned.bare if turned else name


def _flat(web: Web, nodes: list[onnx.NodeProto], name: str) -> str:
    """The tensor with its heads side by side; nodes that lay it out so where there was none."""
    if (source := flat_source(web, name)) is not None:
        return source
    shape, end = f"llmesh.flat.{name}", f"llmesh.{name}"
    nodes.append(helper.make_node("Transpose", [name], [f"{end}.turned"], perm=[0, 2, 1, 3]))
    nodes.append(
        helper.make_node("Reshape", [f"{end}.turned", web.add_constant(shape, np.array([0, 0, -1]))], [end])
    )
    return end


def _shorten(web: Web) -> None:
    """Of a prompt's logits nobody asks for any but the last."""
    product = web.maker("logits", "MatMul", "MatMulNBits")
    if product is None:
        return
    last = web.add_constant("llmesh.last", np.array([-1], np.int64))
    short = onnx.NodeProto()
    short.CopyFrom(product)
    short.input[0] = "llmesh.newest"
    web.add([helper.make_node("Gather", [product.input[0], last], ["llmesh.newest"], axis=1), short])


def _answers(graph: Graph) -> list[Floats]:
    """The logits after pieces of a made-up prompt, read one after the other."""
    tokens = [(7 + 7919 * n) % graph.vocabulary for n in range(min(_TRIAL, graph.context - 1))]
    half, past, found = len(tokens) // 2, graph.empty(), []
    for piece in (tokens[:half], tokens[half:-1], tokens[-1:]):
        logits, past = graph.read(piece, past)
        found.append(logits)
    return found
