"""From prompts and messages to token ids, so that a user's text is never read as a control token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from llmesh.errors import ValidationFailed
from llmesh.runtime.generation.request import GenerationRequest, Message
from llmesh.runtime.generation.settings import ModelSettings
from llmesh.runtime.generation.template import ChatTemplate

__all__ = ["Chat", "open_tokenizer"]

_MOST_TOKENIZER = 64 << 20
_SPLIT = "\U0010fffe"
"""A noncharacter, put into control words that a user wrote, and taken out again before tokenizing."""


def open_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json.  Raises ValidationFailed where it is missing, too large or malformed."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValidationFailed("The bundle has no tokenizer.json, which text generation needs.")
    if path.stat().st_size > _MOST_TOKENIZER:
        raise ValidationFailed(f"tokenizer.json is larger than {_MOST_TOKENIZER >> 20} MiB.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ValidationFailed(f"tokenizer.json does not load: {str(error)[:200]}.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


class Chat:
    """The tokenizer and, where the model has one, the chat template."""

    def __init__(self, tokenizer: Tokenizer, settings: ModelSettings) -> None:
        self._tokenizer = tokenizer
        self._control = {
            added.content: (number, added)
            for number, added in tokenizer.get_added_tokens_decoder().items()
            if added.special and added.content
        }
        # The longest first: one control word may begin another.
        words = sorted(self._control, key=len, reverse=True)
        self._words = re.compile(f"({'|'.join(map(re.escape, words)) or '(?!)'})")
        # Content without any character of which control words are made.
        letters = set("".join(words)) - set(" \n")
        self._blank = dict.fromkeys(map(ord, letters), "\ufffc")
        # No token stands for more text than this, so a text of so many characters has so many tokens.
        self._longest = max(map(len, tokenizer.get_vocab()), default=1)
        self._template = ChatTemplate(settings.template, settings.special) if settings.template else None

    @property
    def hidden(self) -> frozenset[int]:
        """The control tokens, which have no text."""
        return frozenset(number for number, _ in self._control.values())

    def fewest_tokens(self, request: GenerationRequest) -> int:
        """At least so many tokens the request has; known without reading it."""
        characters = len(request.prompt or "") + sum(len(one.content) for one in request.messages)
        return characters // self._longest

    def encode(self, request: GenerationRequest) -> list[int]:
        """Token ids of a request; a plain prompt to a model with a template is a user's message.

        Raises ValidationFailed where there is no template for messages, or it refuses them.
        """
        if self._template is None:
            if request.messages:
                raise ValidationFailed("messages need a chat template, which this model has not: send text.")
            return self._plain(request.prompt or "", special=True)
        return self._rendered(self._template, request.messages or (Message("user", request.prompt or ""),))

    def _plain(self, text: str, *, special: bool = False) -> list[int]:
        """A user's words: control words in them are letters like others."""
        self._tokenizer.encode_special_tokens = True
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def _rendered(self, template: ChatTemplate, messages: Sequence[Message]) -> list[int]:
        text = template.render(
            [{"role": one.role, "content": self._defused(one.content)} for one in messages]
        )
        marks = [self._control[word][0] for word in self._words.findall(text)]
        blank = template.render(
            [{"role": one.role, "content": one.content.translate(self._blank)} for one in messages]
        )
        if len(marks) > len(self._words.findall(blank)):
            raise ValidationFailed(
                "messages: their text makes up a control word together with what is around it."
            )
        if _SPLIT not in text:
            self._tokenizer.encode_special_tokens = False
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            if [number for number in ids if number in self.hidden] == marks:
                return ids
        return self._by_pieces(text)

    def _defused(self, content: str) -> str:
        """Content in which no control word can be found."""
        content = content.replace(_SPLIT, "")
        return self._words.sub(lambda found: found[0][0] + _SPLIT + found[0][1:], content)

    def _by_pieces(self, text: str) -> list[int]:
        """Control words where the template put them, everything else as plain letters."""
        parts = self._words.split(text)
        ids: list[int] = []
        for n in range(0, len(parts), 2):
            piece = parts[n].replace(_SPLIT, "")
            if n and self._control[parts[n - 1]][1].rstrip:
                piece = piece.lstrip()
            if n + 1 == len(parts):
                return ids + self._plain(piece)
            number, added = self._control[parts[n + 1]]
            ids += [*self._plain(piece.rstrip() if added.lstrip else piece), number]
        return ids
