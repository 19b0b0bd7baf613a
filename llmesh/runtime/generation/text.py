"""From token ids to text as it grows: whole characters only, and never a part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from tokenizers import Tokenizer, decoders

__all__ = ["Span", "TextStream"]

_UNFINISHED = "\ufffd"
_PATIENCE = 8
"""So many tokens that are no character yet will not become one: they stay replacement signs."""


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text and its tokens; all spans but the last hold exactly the text of their tokens."""

    text: str
    token_ids: tuple[int, ...]


class TextStream:
    """One answer's text.  `hidden` tokens have none; the first of `stops` to be complete ends it.

    The texts of the spans together are what the tokenizer makes of all tokens at once, cut where
    the stop string begins, and without the part of a character that may be left at the end.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: Collection[int], stops: Sequence[str]) -> None:
        self._decoding = _decoding(tokenizer)
        self._hidden = hidden
        self._stops = stops
        self._text = ""
        self._ids: list[int] = []
        self._borders: list[tuple[int, int]] = []
        self.stopped = False

    def push(self, token: int) -> Span:
        """Add a token: what may be shown now, possibly nothing.  Sets `stopped` at a stop string."""
        self._ids.append(token)
        if token not in self._hidden:
            self._text += self._decoding.push(token)
        if self._decoding.whole:
            self._borders.append((len(self._text), len(self._ids)))
        return self._cut_at_stop() or self._release()

    def end(self) -> Span:
        """What is left when no token follows; of a character cut in two nothing is shown."""
        self._text += self._decoding.end()
        return self._cut_at_stop() or self._take(len(self._text), len(self._ids))

    def _cut_at_stop(self) -> Span | None:
        found = [(at + len(stop), at) for stop in self._stops if (at := self._text.find(stop)) >= 0]
        if not found:
            return None
        self.stopped = True
        return self._take(min(found)[1], len(self._ids))

    def _release(self) -> Span:
        """Hold back what may be the start of a stop string, and no token by halves."""
        safe = len(self._text) - self._risk()
        fit = [border for border in self._borders if border[0] <= safe]
        if not fit:
            return Span("", ())
        self._borders = [(c - fit[-1][0], n - fit[-1][1]) for c, n in self._borders[len(fit) :]]
        return self._take(*fit[-1])

    def _risk(self) -> int:
        """How many last characters begin a stop string that is not complete."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-length:]) for stop in self._stops):
                return length
        return 0

    def _take(self, characters: int, tokens: int) -> Span:
        span = Span(self._text[:characters], tuple(self._ids[:tokens]))
        self._text, self._ids = self._text[characters:], self._ids[tokens:]
        return span


class _Decoding(Protocol):
    whole: bool

    def push(self, token: int) -> str: ...

    def end(self) -> str: ...


class _ByteLevel:
    """Byte-level BPE (GPT-2): a token is bytes, spelled in printable characters; exact for any ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.whole = True

    def push(self, token: int) -> str:
        spelled = self._tokenizer.id_to_token(token) or ""
        text = self._utf8.decode(_bytes(spelled))
        self.whole = not self._utf8.getstate()[0]
        return text

    def end(self) -> str:
        return ""  # what the decoder still holds is no whole character


class _Window:
    """Any other tokenizer: decode the newest tokens with those before them, and take the difference."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._new: list[int] = []
        self.whole = True

    def push(self, token: int) -> str:
        self._new.append(token)
        text = self._grown()
        self.whole = not text.endswith(_UNFINISHED) or len(self._new) > _PATIENCE
        return self._commit(text) if self.whole else ""

    def end(self) -> str:
        return self._commit(self._grown().rstrip(_UNFINISHED))

    def _grown(self) -> str:
        """A first token may lose its leading space, so both sides start with the same tokens."""
        whole = self._tokenizer.decode(self._before + self._new, skip_special_tokens=False)
        return whole[len(self._tokenizer.decode(self._before, skip_special_tokens=False)) :]

    def _commit(self, text: str) -> str:
        # A window that shows nothing is no context for the next.
        self._before = self._new if text else self._before + self._new
        self._new = []
        return text


def _decoding(tokenizer: Tokenizer) -> _Decoding:
    if isinstance(tokenizer.decoder, decoders.ByteLevel):
        return _ByteLevel(tokenizer)
    return _Window(tokenizer)


def _spelling() -> dict[str, int]:
    """Printable Latin-1 spells itself; the other bytes are spelled by the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _spelling()


@lru_cache(maxsize=1 << 16)
def _bytes(spelled: str) -> bytes:
    try:
        return bytes([_BYTES[character] for character in spelled])
    except KeyError:
        return spelled.encode()
