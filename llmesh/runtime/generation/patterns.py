"""What small operators of an exported decoder amount to: attention, rotary positions, RMS norms.

Exporters spell these out in forms of their own, but the sums are the same: Vaswani et al. 2017
(attention), Su et al. 2021 (rotary), Zhang and Sennrich 2019 (RMS norm).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import helper

from llmesh.runtime.generation.web import Web

__all__ = ["Attention", "Norm", "Rotary", "find_attention", "find_norms", "find_rotary", "flat_source"]

_LAYING_OUT = ("Transpose", "Unsqueeze", "Expand", "Reshape", "Identity")
_MOST_STEPS = 24


@dataclass(frozen=True, slots=True)
class Attention:
    """`query`, `key`, `value` `[rows, heads, tokens, size]` of the new tokens; `mask` is added to the scores.

    `end` is the Reshape that sets the heads of what comes of it side by side.
    """

    query: str
    key: str
    value: str
    mask: str
    end: onnx.NodeProto
    scale: float


@dataclass(frozen=True, slots=True)
class Rotary:
    """`bare` turned by the angles whose cosines and sines are these tensors, halves against halves."""

    bare: str
    cosines: str
    sines: str


@dataclass(frozen=True, slots=True)
class Norm:
    """`source` divided by its root mean square, times `weight`: the tensor `end`."""

    source: str
    weight: str
    end: str
    epsilon: float


def find_attention(web: Web, past_key: str, past_value: str) -> Attention | None:
    """The attention over these two parts of the cache, or None where it is of another form."""
    keys, values = _appended(web, past_key), _appended(web, past_value)
    if keys is None or values is None:
        return None
    product = _onward(web, keys.output[0])
    mixed = _onward(web, values.output[0])
    if product is None or mixed is None or mixed[1] != 1.0:
        return None
    query, before = _query(web, product[0].input[0])
    found = _scores(web, product[0].output[0])
    if found is None or _guarded(web, mixed[0].input[0]) != found[2]:
        return None
    mask, after, _ = found
    end = _merged(web, mixed[0].output[0])
    scale = product[1] * before * after
    return Attention(query, keys.input[1], values.input[1], mask, end, scale) if end else None


def find_rotary(web: Web, name: str) -> Rotary | None:
    """What `name` was before it was turned."""
    total = web.maker(name, "Add")
    for one, other in _orders(total):
        straight, turned = web.maker(one, "Mul"), web.maker(other, "Mul")
        for half, sines in _orders(turned):
            bare = _turned(web, half)
            if straight is not None and bare in straight.input:
                cosines = straight.input[1 - list(straight.input).index(bare)]
                return Rotary(bare, cosines, sines)
    return None


def find_norms(web: Web, nodes: list[onnx.NodeProto]) -> Iterator[Norm]:
    """Every RMS norm that ends in one of the nodes."""
    for node in nodes:
        for scaled, weight in _orders(node if node.op_type == "Mul" else None):
            value = web.constant(weight)
            found = _normed(web, scaled) if value is not None and value.ndim == 1 else None
            if found is not None:
                yield Norm(found[0], weight, node.output[0], found[1])
                break


def flat_source(web: Web, name: str) -> str | None:
    """The tensor `[rows, tokens, heads * size]` that `name` `[rows, heads, tokens, size]` is a view of."""
    turned = web.maker(name, "Transpose")
    if turned is None or _attribute(turned, "perm") != [0, 2, 1, 3]:
        return None
    split = web.maker(turned.input[0], "Reshape")
    return split.input[0] if split is not None else None


def _orders(node: onnx.NodeProto | None) -> list[tuple[str, str]]:
    """The two inputs of a node for which their order does not matter, both ways."""
    if node is None or len(node.input) != 2:
        return []
    one, other = node.input
    return [(one, other), (other, one)]


def _attribute(node: onnx.NodeProto, name: str) -> object:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), None)


def _appended(web: Web, past: str) -> onnx.NodeProto | None:
    """The node that puts the new keys or values after the old."""
    joins = [one for one in web.users(past) if one.op_type == "Concat"]
    if len(joins) != 1 or joins[0].input[0] != past or _attribute(joins[0], "axis") not in (2, -2):
        return None
    # Caches that are taken apart and put together again leave a join of one.
    return joins[0] if len(joins[0].input) == 2 else _appended(web, joins[0].output[0])


def _factor(web: Web, node: onnx.NodeProto, name: str) -> float | None:
    """By what the node multiplies `name`; None where it does something else."""
    if node.op_type in _LAYING_OUT:
        return 1.0 if node.input[0] == name else None
    if node.op_type == "Div" and node.input[0] == name:
        number = web.number(node.input[1])
        return 1 / number if number else None
    if node.op_type == "Mul":
        return web.number(node.input[1] if node.input[0] == name else node.input[0])
    return None


def _onward(web: Web, name: str) -> tuple[onnx.NodeProto, float] | None:
    """The product that `name` goes into as its second factor, and what it is multiplied by on the way."""
    for node in web.users(name):
        if node.op_type == "MatMul":
            return (node, 1.0) if node.input[1] == name else None
        factor = _factor(web, node, name)
        if factor is not None and (found := _onward(web, node.output[0])):
            return found[0], found[1] * factor
    return None


def _query(web: Web, name: str) -> tuple[str, float]:
    """The queries before they were scaled or grouped, and the scale."""
    scale = 1.0
    for _ in range(_MOST_STEPS):
        node = web.maker(name, "Reshape", "Mul", "Div", "Unsqueeze")
        factor = None if node is None else _factor(web, node, node.input[0])
        if node is None or factor is None:
            break
        name, scale = node.input[0], scale * factor
    return name, scale


def _next(web: Web, name: str) -> onnx.NodeProto | None:
    """The one node that takes the values of `name`."""
    users = [node for node in web.users(name) if node.op_type != "Shape"]
    return users[0] if len(users) == 1 else None


def _scores(web: Web, name: str) -> tuple[str, float, str] | None:
    """From the products to the weights: the mask, the scale before it, and the weights."""
    scale, mask = 1.0, ""
    for _ in range(_MOST_STEPS):
        node = _next(web, name)
        if node is None:
            return None
        if node.op_type == "Softmax" and mask and _attribute(node, "axis") in (-1, 3, 4, None):
            return mask, scale, node.output[0]
        factor = _factor(web, node, name)
        if node.op_type == "Add" and not mask:
            mask = node.input[1 - list(node.input).index(name)]
        elif factor is None or mask:
            return None
        scale *= factor or 1.0
        name = node.output[0]
    return None


def _guarded(web: Web, name: str) -> str:
    """The weights before rows of not-a-number, which hidden rows have, were made zeros."""
    if cast := web.maker(name, "Cast"):
        return _guarded(web, cast.input[0])
    choice = web.maker(name, "Where")
    question = choice and web.maker(choice.input[0], "IsNaN")
    return choice.input[2] if choice and question and question.input[0] == choice.input[2] else name


def _merged(web: Web, name: str) -> onnx.NodeProto | None:
    """Where the heads stand side by side again."""
    turned = False
    for _ in range(_MOST_STEPS):
        node = _next(web, name)
        if node is None or node.op_type not in ("Reshape", "Transpose"):
            return None
        if node.op_type == "Reshape" and turned:
            return node
        turned = turned or _attribute(node, "perm") == [0, 2, 1, 3]
        name = node.output[0]
    return None


def _turned(web: Web, name: str) -> str:
    """The tensor whose halves are exchanged, the second with its sign changed."""
    joined = web.maker(name, "Concat")
    negated = joined and len(joined.input) == 2 and web.maker(joined.input[0], "Neg")
    if not joined or not negated:
        return ""
    second = web.maker(negated.input[0], "Slice", "Split")
    first = web.maker(joined.input[1], "Slice", "Split")
    if second is None or first is None or first.input[0] != second.input[0]:
        return ""
    return second.input[0]


def _normed(web: Web, name: str) -> tuple[str, float] | None:
    """What `name` is before it was divided by its root mean square, and the epsilon."""
    quotient = web.maker(name, "Div")
    if quotient is not None:
        return _root(web, quotient.input[0], quotient.input[1])
    for source, inverse in _orders(web.maker(name, "Mul")):
        node = web.maker(inverse, "Div", "Reciprocal")
        if node is not None and (node.op_type == "Reciprocal" or web.number(node.input[0]) == 1.0):
            return _root(web, source, node.input[-1])
    return None


def _root(web: Web, source: str, name: str) -> tuple[str, float] | None:
    root = web.maker(name, "Sqrt")
    for mean, epsilon in _orders(web.maker(root.input[0], "Add") if root else None):
        number, average = web.number(epsilon), web.maker(mean, "ReduceMean")
        if number is not None and average is not None and _squared(web, average.input[0]) == source:
            return source, number
    return None


def _squared(web: Web, name: str) -> str:
    node = web.maker(name, "Mul", "Pow")
    if node is None:
        return ""
    double = node.input[0] == node.input[1] if node.op_type == "Mul" else web.number(node.input[1]) == 2.0
    return node.input[0] if double else ""
