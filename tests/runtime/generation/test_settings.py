"""What the JSON files of a folder say, in the spellings that are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmesh.errors import ValidationFailed
from llmesh.runtime.generation.settings import Defaults, read_settings


def folder_with(folder: Path, **files: Any) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_defaults_come_from_the_generation_config(tmp_path: Path) -> None:
    generation = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "max_new_tokens": 9}
    generation |= {"eos_token_id": [2, 0], "repetition_penalty": 1.05}
    config = {"n_ctx": 64, "eos_token_id": 5, "n_embd": 48, "n_head": 6}
    found = read_settings(folder_with(tmp_path, generation_config=generation, config=config))
    assert found.defaults == Defaults(0.7, 0.9, 40, 1.05, 9)
    assert (found.context, found.ends, found.heads, found.head_size) == (64, {0, 2}, 6, 8)


def test_without_do_sample_the_default_is_greedy(tmp_path: Path) -> None:
    found = read_settings(
        folder_with(tmp_path, generation_config={"temperature": 0.6}, config={"n_positions": 16})
    )
    assert found.defaults == Defaults()


def test_a_genai_config_is_read_for_numbers(tmp_path: Path) -> None:
    decoder = {
        "head_size": 64,
        "num_key_value_heads": 3,
        "session_options": {"custom_ops_library": "evil.so"},
    }
    genai = {"model": {"context_length": 100, "eos_token_id": 7, "decoder": decoder}}
    found = read_settings(folder_with(tmp_path, genai_config=genai, config={"max_position_embeddings": 200}))
    assert (found.context, found.ends, found.heads, found.head_size) == (100, {7}, 3, 64)


def test_a_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    config = {"max_position_embeddings": 500, "sliding_window": 64}
    assert read_settings(folder_with(tmp_path, config=config)).context == 64
    config["use_sliding_window"] = False
    assert read_settings(folder_with(tmp_path, config=config)).context == 500


def test_templates_in_three_places(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, config={"n_ctx": 16})
    assert read_settings(folder).template == ""
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    folder_with(folder, tokenizer_config={"chat_template": named, "bos_token": {"content": "<s>"}})
    assert read_settings(folder).template == "d"
    assert read_settings(folder).special == {"bos_token": "<s>"}
    (folder / "chat_template.jinja").write_text("file")
    assert read_settings(folder).template == "file"


@pytest.mark.parametrize("bad", ["", "[]", "{", "[" * 100_000])
def test_what_is_not_an_object_is_named(tmp_path: Path, bad: str) -> None:
    (tmp_path / "config.json").write_text(bad)
    with pytest.raises(ValidationFailed, match=r"config\.json"):
        read_settings(tmp_path)


@pytest.mark.parametrize("context", [True, None, 0, -1, 8, "512"])
def test_no_context_is_an_error(tmp_path: Path, context: Any) -> None:
    with pytest.raises(ValidationFailed, match="context"):
        read_settings(folder_with(tmp_path, config={"max_position_embeddings": context}))
