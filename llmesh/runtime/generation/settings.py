"""What a model's folder says about text generation: context, end tokens, defaults, cache shape, template.

Only named keys of the JSON files are read.  A `genai_config.json` is a source of numbers like the
others and is never handed to onnxruntime-genai, which would run native code that it names.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from llmesh.core.encoding import Json
from llmesh.errors import ValidationFailed

__all__ = ["Defaults", "ModelSettings", "read_settings"]

_MOST_BYTES = 32 << 20
_MOST_CONTEXT = 1 << 20
_LEAST_CONTEXT = 16
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request gets that does not say: `temperature` 0 is greedy, `top_k` 0 and `top_p` 1 keep all."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """`context` in tokens, prompt and answer together; `heads` and `head_size` of the cache where known.

    `query_heads` are those of the queries, which may share keys and values; `special` are the words
    of tokenizer_config.json (`bos_token` and so on) that templates use.
    """

    context: int
    ends: frozenset[int]
    defaults: Defaults
    heads: int | None
    query_heads: int | None
    head_size: int | None
    template: str
    special: dict[str, str]


def read_settings(folder: Path) -> ModelSettings:
    """Read the folder's JSON files.  Raises ValidationFailed for a malformed one or without a context."""
    config = _read(folder / "config.json")
    generation = _read(folder / "generation_config.json")
    tokenizer = _read(folder / "tokenizer_config.json")
    genai = _object(_read(folder / "genai_config.json").get("model"))
    decoder = _object(genai.get("decoder"))
    return ModelSettings(
        context=_context(config, genai),
        ends=_ends(generation, genai, config),
        defaults=_defaults(generation),
        heads=_whole(decoder, "num_key_value_heads")
        or _whole(config, "num_key_value_heads")
        or _whole(config, "num_attention_heads")
        or _whole(config, "n_head"),
        query_heads=_whole(config, "num_attention_heads")
        or _whole(config, "n_head")
        or _whole(decoder, "num_attention_heads"),
        head_size=_whole(decoder, "head_size") or _head_size(config),
        template=_template(folder, tokenizer),
        special=_special(tokenizer),
    )


def _read(path: Path) -> dict[str, Json]:
    if not path.is_file():
        return {}
    if path.stat().st_size > _MOST_BYTES:
        raise ValidationFailed(f"{path.name} is larger than {_MOST_BYTES >> 20} MiB.")
    try:
        value: Json = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ValidationFailed(f"{path.name} is not JSON.") from None
    if not isinstance(value, dict):
        raise ValidationFailed(f"{path.name} is not a JSON object.")
    return value


def _object(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _whole(source: dict[str, Json], key: str) -> int | None:
    value = source.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _head_size(config: dict[str, Json]) -> int | None:
    size = _whole(config, "head_dim")
    width = _whole(config, "hidden_size") or _whole(config, "n_embd")
    heads = _whole(config, "num_attention_heads") or _whole(config, "n_head")
    return size or (width // heads if width and heads else None)


def _context(config: dict[str, Json], genai: dict[str, Json]) -> int:
    found = [n for key in _CONTEXT_KEYS if (n := _whole(config, key))]
    if n := _whole(genai, "context_length"):
        found.append(n)
    if not found:
        raise ValidationFailed(
            "config.json does not say how long the model's context is (max_position_embeddings)."
        )
    if min(found) < _LEAST_CONTEXT:
        raise ValidationFailed(f"A context of {min(found)} tokens is too short to generate text in.")
    # A sliding window counts columns of the cache, which are not positions in the layouts used here.
    window = _whole(config, "sliding_window") if config.get("use_sliding_window", True) else None
    return min([*found, window or _MOST_CONTEXT, _MOST_CONTEXT])


def _ends(*sources: dict[str, Json]) -> frozenset[int]:
    for source in sources:
        value = source.get("eos_token_id")
        listed = value if isinstance(value, list) else [value]
        if ends := frozenset(n for n in listed if isinstance(n, int) and not isinstance(n, bool)):
            return ends
    return frozenset()


def _defaults(generation: dict[str, Json]) -> Defaults:
    sampled = generation.get("do_sample") is True
    return Defaults(
        temperature=_number(generation, "temperature", 1.0, 0.0, 100.0) if sampled else 0.0,
        top_p=_number(generation, "top_p", 1.0, 0.0, 1.0) or 1.0,
        top_k=_whole(generation, "top_k") or (50 if sampled and "top_k" not in generation else 0),
        repetition_penalty=_number(generation, "repetition_penalty", 1.0, 0.01, 100.0),
        max_tokens=_whole(generation, "max_new_tokens"),
    )


def _number(source: dict[str, Json], key: str, default: float, low: float, high: float) -> float:
    value = source.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return default
    return float(value) if low <= value <= high else default


def _template(folder: Path, tokenizer: dict[str, Json]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        if file.stat().st_size > _MOST_BYTES:
            raise ValidationFailed(f"{file.name} is larger than {_MOST_BYTES >> 20} MiB.")
        try:
            return file.read_bytes().decode()
        except UnicodeDecodeError:
            raise ValidationFailed(f"{file.name} is not UTF-8.") from None
    value = tokenizer.get("chat_template")
    for one in value if isinstance(value, list) else []:
        if isinstance(one, dict) and one.get("name") == "default":
            value = one.get("template")
    return value if isinstance(value, str) else ""


def _special(tokenizer: dict[str, Json]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = tokenizer.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[key] = text
    return found
