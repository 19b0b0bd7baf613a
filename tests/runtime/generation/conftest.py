"""Tiny random decoders, built node by node, in every layout that the runtime tells apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llmesh.runtime.generation.generator import Generator, Limits

LAYERS, WIDTH, HEADS, SHARED, SIZE, CONTEXT = 2, 64, 4, 2, 16, 160
SPECIAL = ("<end>", "<user>", "<bot>")
TEMPLATE = "{% for m in messages %}<user>{{ m.content }}{% endfor %}<bot>"


def byte_tokenizer() -> Tokenizer:
    """One token a byte, a few merges of Chinese and English, and three control tokens before them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    vocabulary = [*SPECIAL, *letters, *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    return tokenizer


VOCABULARY = byte_tokenizer().get_vocab_size()


class _Builder:
    def __init__(self, kind: str, seed: int) -> None:
        self.kind = kind
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Any) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        value = self.random.normal(size=shape) * 1.5 / np.sqrt(shape[0])
        return self.constant(name, value.astype(np.float32))

    def op(
        self, kind: str, *inputs: str, out: tuple[str, ...] = (), domain: str = "", **attributes: Any
    ) -> str:
        outputs = list(out) or [f"{kind}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, domain=domain, **attributes))
        return outputs[0]

    def norm(self, x: str) -> str:
        scale = self.constant("ones", np.ones(WIDTH, np.float32))
        return self.op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=1e-5)

    def rotary(self) -> tuple[str, str]:
        angles = np.outer(np.arange(CONTEXT + 64), 100.0 ** -(np.arange(SIZE // 2) / (SIZE / 2)))
        return (
            self.constant("cosines", np.cos(angles).astype(np.float32)),
            self.constant("sines", np.sin(angles).astype(np.float32)),
        )

    def positions(self) -> str:
        if self.kind == "plain":
            return "position_ids"
        one = self.constant("one", np.array([1], np.int64))
        length = self.op("Shape", "input_ids", start=1, end=2)
        if self.kind == "masked":
            running = self.op("CumSum", "attention_mask", self.constant("axis", np.array(1, np.int64)))
            kept = self.op("Slice", self.op("Sub", running, one), self.op("Neg", length),
                           self.constant("far", np.array([1 << 40], np.int64)), one)  # fmt: skip
            return self.op("Max", kept, self.constant("none", np.array([0], np.int64)))
        total = self.op("Shape", "attention_mask", start=1, end=2)
        first = self.op("Squeeze", self.op("Sub", total, length))
        steps = self.op("Range", first, self.op("Squeeze", total), self.op("Squeeze", one))
        shape = self.op("Shape", "input_ids")
        return self.op(
            "Expand", self.op("Unsqueeze", steps, self.constant("zero", np.array([0], np.int64))), shape
        )

    def heads(self, x: str, count: int) -> str:
        shaped = self.op("Reshape", x, self.constant(f"h{count}", np.array([0, 0, count, SIZE], np.int64)))
        return self.op("Transpose", shaped, perm=[0, 2, 1, 3])

    def plain_attention(self, layer: int, q: str, k: str, v: str, positions: str, mask: str) -> str:
        tables = self.rotary()
        q, k, v = self.heads(q, HEADS), self.heads(k, SHARED), self.heads(v, SHARED)
        if self.kind != "learned":
            q = self.op("RotaryEmbedding", q, positions, *tables, domain="com.microsoft")
            k = self.op("RotaryEmbedding", k, positions, *tables, domain="com.microsoft")
        k = self.op("Concat", f"past_key_values.{layer}.key", k, out=(f"present.{layer}.key",), axis=2)
        v = self.op("Concat", f"past_key_values.{layer}.value", v, out=(f"present.{layer}.value",), axis=2)
        grouped = self.constant("grouped", np.array([0, SHARED, HEADS // SHARED, -1, SIZE], np.int64))
        two = self.constant("two", np.array([2], np.int64))
        k = self.op("Unsqueeze", self.op("Transpose", k, perm=[0, 1, 3, 2]), two)
        scores = self.op("MatMul", self.op("Reshape", q, grouped), k)
        scores = self.op("Mul", scores, self.constant("scale", np.float32(SIZE**-0.5)))
        weights = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        mixed = self.op("MatMul", weights, self.op("Unsqueeze", v, two))
        mixed = self.op("Reshape", mixed, self.constant("flat", np.array([0, HEADS, -1, SIZE], np.int64)))
        mixed = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.op("Reshape", mixed, self.constant("wide", np.array([0, 0, HEADS * SIZE], np.int64)))

    def grouped_attention(self, layer: int, q: str, k: str, v: str, lengths: str, total: str) -> str:
        name = f"attention_{layer}"
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        outputs = (name, f"present.{layer}.key", f"present.{layer}.value")
        return self.op("GroupQueryAttention", q, k, v, *past, lengths, total, *self.rotary(), out=outputs,
                       domain="com.microsoft", num_heads=HEADS, kv_num_heads=SHARED, do_rotary=1)  # fmt: skip

    def plain_mask(self) -> str:
        one, zero = (
            self.constant("one", np.array([1], np.int64)),
            self.constant("zero", np.array([0], np.int64)),
        )
        total = self.op("Shape", "attention_mask", start=1, end=2)
        past = self.op("Sub", total, self.op("Shape", "input_ids", start=1, end=2))
        start, end, step = (self.op("Squeeze", one_) for one_ in (past, total, one))
        columns = self.op("Range", self.op("Squeeze", zero), end, step)
        rows = self.op("Unsqueeze", self.op("Range", start, end, step), one)
        causal = self.op("LessOrEqual", self.op("Unsqueeze", columns, zero), rows)
        axes = self.constant("axes", np.array([1, 2, 3], np.int64))
        seen = self.op("Unsqueeze", self.op("Cast", "attention_mask", to=TensorProto.BOOL), axes)
        allowed = self.op(
            "And", seen, self.op("Unsqueeze", causal, self.constant("three", np.array([0, 1, 2], np.int64)))
        )
        return self.op(
            "Where", allowed, self.constant("in", np.float32(0)), self.constant("out", np.float32(-1e9))
        )

    def build(self) -> onnx.ModelProto:
        x = self.op("Gather", self.weight("embedding", VOCABULARY, WIDTH), "input_ids")
        if self.kind == "grouped":
            summed = self.op(
                "ReduceSum", "attention_mask", self.constant("one", np.array([1], np.int64)), keepdims=0
            )
            lengths = self.op("Sub", summed, self.constant("unit", np.int64(1)))
            width = self.op("Squeeze", self.op("Shape", "attention_mask", start=1, end=2))
            shared = [self.op("Cast", value, to=TensorProto.INT32) for value in (lengths, width)]
        else:
            shared = [self.positions(), self.plain_mask()]
        if self.kind == "learned":
            x = self.op("Add", x, self.op("Gather", self.weight("places", CONTEXT + 64, WIDTH), shared[0]))
        for layer in range(LAYERS):
            y = self.norm(x)
            q = self.op("MatMul", y, self.weight(f"q{layer}", WIDTH, HEADS * SIZE))
            k, v = (self.op("MatMul", y, self.weight(f"{n}{layer}", WIDTH, SHARED * SIZE)) for n in "kv")
            attention = self.grouped_attention if self.kind == "grouped" else self.plain_attention
            mixed = attention(layer, q, k, v, *shared)
            x = self.op("Add", x, self.op("MatMul", mixed, self.weight(f"o{layer}", HEADS * SIZE, WIDTH)))
            hidden = self.op(
                "Relu", self.op("MatMul", self.norm(x), self.weight(f"up{layer}", WIDTH, 2 * WIDTH))
            )
            x = self.op("Add", x, self.op("MatMul", hidden, self.weight(f"down{layer}", 2 * WIDTH, WIDTH)))
        self.op("MatMul", self.norm(x), self.weight("head", WIDTH, VOCABULARY), out=("logits",))
        return self.model()

    def model(self) -> onnx.ModelProto:
        info, integers, floats = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
        inputs = [info("input_ids", integers, ["b", "s"]), info("attention_mask", integers, ["b", "t"])]
        if self.kind == "plain":
            inputs.append(info("position_ids", integers, ["b", "s"]))
        names = [f"{n}.{part}" for part in ("key", "value") for n in range(LAYERS)]
        # Builders leave the head size as a word, and list all keys before all values.
        size: int | str = "d" if self.kind == "grouped" else SIZE
        inputs += [info(f"past_key_values.{name}", floats, ["b", SHARED, "p", size]) for name in names]
        outputs = [info("logits", floats, ["b", "s", VOCABULARY])]
        outputs += [info(f"present.{name}", floats, ["b", SHARED, "t", size]) for name in names]
        graph = helper.make_graph(self.nodes, "tiny", inputs, outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def write_bundle(folder: Path, kind: str, seed: int = 0) -> Path:
    """`plain` has position_ids, `masked` counts the mask, `learned` the cache, `grouped` is a builder's.

    `fused` is plain, with the number of heads that lets it be rewritten.
    """
    folder.mkdir(exist_ok=True)
    onnx.save(_Builder("plain" if kind == "fused" else kind, seed).build(), folder / "model.onnx")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"max_position_embeddings": CONTEXT, "eos_token_id": 0, "head_dim": SIZE}
    heads = {"num_attention_heads": HEADS} if kind == "fused" else {}
    (folder / "config.json").write_text(json.dumps(config | heads))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny model of a kind, written once a session."""
    root = tmp_path_factory.mktemp("tiny")

    def write(kind: str) -> Path:
        folder = root / kind
        return folder if folder.exists() else write_bundle(folder, kind)

    return write


@pytest.fixture(scope="session")
def opened(bundle: Callable[[str], Path]) -> Iterator[Callable[..., Generator]]:
    """A generator of a kind of tiny model, shared by tests that leave it idle."""
    found: dict[str, Generator] = {}

    def open_generator(kind: str, threads: int = 1) -> Generator:
        key = f"{kind} {threads}"
        if key not in found:
            found[key] = Generator(bundle(kind), "model.onnx", Limits(threads=threads, rows=6))
        return found[key]

    yield open_generator
    for generator in found.values():
        generator.close()
