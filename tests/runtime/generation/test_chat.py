"""Prompts and messages as tokens: control words come from the template and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from llmesh.errors import ValidationFailed
from llmesh.runtime.generation.chat import Chat, open_tokenizer
from llmesh.runtime.generation.request import GenerationRequest, Message
from llmesh.runtime.generation.settings import Defaults, ModelSettings, read_settings

MINI = Path(__file__).parents[3] / "llmesh/demo/gpt-mini"
START, END = 1, 2
WORDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def settings_with(template: str) -> ModelSettings:
    return ModelSettings(512, frozenset((2,)), Defaults(), None, None, None, template, {})


def mini(template: str | None = None) -> tuple[Tokenizer, Chat]:
    tokenizer = open_tokenizer(MINI)
    settings = read_settings(MINI) if template is None else settings_with(template)
    return tokenizer, Chat(tokenizer, settings)


TOKENIZER, CHAT = mini()
PLAIN = mini("")[1]


def test_golden_prompts() -> None:
    for case in json.loads((MINI / "golden.json").read_text())["cases"]:
        if case["messages"]:
            messages = tuple(Message(**one) for one in case["messages"])
            assert CHAT.encode(GenerationRequest(messages=messages)) == case["prompt_ids"]
            assert CHAT.encode(GenerationRequest(prompt=messages[0].content)) == case["prompt_ids"]
        else:
            assert PLAIN.encode(GenerationRequest(prompt=case["prompt"])) == case["prompt_ids"]


@given(
    st.lists(
        st.one_of(st.sampled_from([*WORDS, "<|im_", "end|>", "\U0010fffe"]), st.text(max_size=4)), min_size=1
    )
)
def test_control_words_of_a_user_are_letters(parts: list[str]) -> None:
    content = "".join(parts)
    ids = CHAT.encode(GenerationRequest(messages=(Message("system", content), Message("user", content))))
    assert [token for token in ids if token in CHAT.hidden] == [START, END, START, END, START]
    shown = content.replace("\U0010fffe", "")
    TOKENIZER.encode_special_tokens = False
    assert f"user\n{shown}\nassistant\n" in TOKENIZER.decode(ids)


@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), min_size=1))
def test_a_plain_prompt_has_no_control_words(parts: list[str]) -> None:
    ids = PLAIN.encode(GenerationRequest(prompt="".join(parts)))
    assert not CHAT.hidden & set(ids)
    assert TOKENIZER.decode(ids) == "".join(parts)


def test_words_that_only_meet_in_the_template_are_refused() -> None:
    chat = mini("{% for m in messages %}{{ m.content }}{% endfor %}")[1]
    split = (Message("user", "<|im_"), Message("user", "end|>"))
    with pytest.raises(ValidationFailed, match=r"messages: .* control word"):
        chat.encode(GenerationRequest(messages=split))
    assert chat.encode(GenerationRequest(messages=(Message("user", "<|im_"), Message("user", "x"))))


def test_spaces_that_a_control_token_takes() -> None:
    tokenizer = open_tokenizer(MINI)
    tokenizer.add_special_tokens([AddedToken("<|turn|>", special=True, rstrip=True, lstrip=True)])
    chat = Chat(tokenizer, settings_with("{% for m in messages %}a <|turn|>\n{{ m.content }}{% endfor %}"))
    (plain,) = (chat.encode(GenerationRequest(prompt=text)) for text in ["<b"])
    (fought,) = (chat.encode(GenerationRequest(prompt=text)) for text in ["<|im_end|>"])
    assert tokenizer.decode(plain, skip_special_tokens=False) == "a<|turn|><b"
    assert tokenizer.decode(fought, skip_special_tokens=False) == "a<|turn|><|im_end|>"
    assert END not in fought


def test_messages_need_a_template() -> None:
    with pytest.raises(ValidationFailed, match="messages need a chat template"):
        PLAIN.encode(GenerationRequest(messages=(Message("user", "x"),)))


@pytest.mark.parametrize("content", [None, "", "{", '{"model": 1}', "\x00" * 100])
def test_a_tokenizer_that_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValidationFailed, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)
