"""The text stream: whole characters, exact stop strings, tokens and text always in step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from llmesh.runtime.generation.text import Span, TextStream

MINI = Tokenizer.from_file(str(Path(__file__).parents[3] / "llmesh/demo/gpt-mini/tokenizer.json"))
HIDDEN = frozenset((0, 1, 2))
# The first tokens are single bytes: any sequence of them, valid UTF-8 or not.
IDS = st.lists(st.one_of(st.integers(0, 300), st.integers(0, 10_300)), max_size=40)


def fallback() -> Tokenizer:
    """SentencePiece with byte fallback, the other family: spaces are U+2581, unknown bytes are tokens."""
    words = [
        "<unk>",
        *(f"<0x{n:02X}>" for n in range(256)),
        "▁",
        "▁the",
        "▁fox",
        "a",
        "b",
        "狐狸",
        "▁你好",
        "s",
    ]
    tokenizer = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True))
    replaced = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence(
        [replaced, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True)])
    return tokenizer


FALLBACK = fallback()


def spans(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[list[Span], bool]:
    stream = TextStream(tokenizer, HIDDEN, stops)
    found = []
    for token in ids:
        found.append(stream.push(token))
        if stream.stopped:
            return found, True
    return [*found, stream.end()], stream.stopped


def joined(found: list[Span]) -> str:
    return "".join(span.text for span in found)


@given(IDS)
def test_pieces_make_up_the_whole(ids: list[int]) -> None:
    found, _ = spans(MINI, ids, [])
    whole = MINI.decode(ids, skip_special_tokens=True)
    assert joined(found) == whole or joined(found) + "\ufffd" == whole
    assert [token for span in found for token in span.token_ids] == ids


@given(st.text(max_size=30))
def test_only_whole_characters_come_out(text: str) -> None:
    found, _ = spans(MINI, MINI.encode(text, add_special_tokens=False).ids, [])
    assert joined(found) == text
    assert "\ufffd" in text or not any("\ufffd" in span.text for span in found)


@pytest.mark.parametrize("tokenizer", [MINI, FALLBACK], ids=["byte level", "byte fallback"])
def test_a_character_cut_in_two_is_not_shown(tokenizer: Tokenizer) -> None:
    def token(byte: int) -> int:
        spelled = tokenizer.token_to_id(f"<0x{byte:02X}>")
        return int(spelled if spelled is not None else MINI.token_to_id({0xE7: "ç", 0x8B: "ĭ"}[byte]))

    found, _ = spans(tokenizer, [token(0xE7), token(0x8B)], [])
    assert joined(found) == ""


@given(IDS)
def test_each_span_is_the_text_of_its_tokens(ids: list[int]) -> None:
    found, _ = spans(MINI, ids, ["ab", "。\n"])
    for span in found[:-1]:
        assert span.text == MINI.decode(list(span.token_ids), skip_special_tokens=True)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """What a stream must give: up to where the stop string begins that is the first to be complete."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


@given(
    st.text("aab狐\n", max_size=30),
    st.lists(st.text("ab狐\n", min_size=1, max_size=5), max_size=4),
)
def test_stop_strings_are_exact_and_never_leak(text: str, stops: list[str]) -> None:
    ids = MINI.encode(text, add_special_tokens=False).ids
    found, stopped = spans(MINI, ids, stops)
    assert (joined(found), stopped) == cut(text, stops)


def test_a_stop_string_that_does_not_come_true_is_let_out() -> None:
    stream = TextStream(MINI, HIDDEN, ["abc"])
    ids = [MINI.token_to_id(letter) for letter in "xabd"]
    assert [stream.push(token).text for token in ids] == ["x", "", "", "abd"]


def test_control_tokens_show_nothing() -> None:
    found, _ = spans(MINI, [1, MINI.token_to_id("a"), 2], [])
    assert joined(found) == "a"


@given(st.text("the fox ab狐狸你好😀é", max_size=12))
def test_byte_fallback_holds_back_half_characters(text: str) -> None:
    ids = [token for byte in text.encode() for token in [1 + byte]]
    found, _ = spans(FALLBACK, [258, *ids], [])
    assert joined(found) == FALLBACK.decode([258, *ids])
    assert not any("\ufffd" in span.text for span in found)


@given(st.lists(st.integers(257, 264), max_size=12))
def test_words_with_leading_spaces(ids: list[int]) -> None:
    found, _ = spans(FALLBACK, ids, [])
    assert joined(found) == FALLBACK.decode(ids)


@pytest.mark.parametrize("tokenizer", [MINI, FALLBACK], ids=["byte-level", "byte-fallback"])
def test_ids_that_are_no_tokens_are_nothing(tokenizer: Tokenizer) -> None:
    found, _ = spans(tokenizer, [10_000_000], [])
    assert joined(found) == ""
