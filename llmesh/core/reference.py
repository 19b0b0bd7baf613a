"""ModelRef: what a caller writes to say which model is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from llmesh.core.ids import ModelId, model_id
from llmesh.errors import ValidationFailed

__all__ = ["ModelRef", "model_name", "model_version"]

_NAME = re.compile(r"[^\W_](?:[\w .+/-]{0,126}[\w+])?\Z")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")


def model_name(text: str) -> str:
    """Check a model's name: 1 to 128 letters, digits and ` . + / - _`, in any script."""
    if not isinstance(text, str):
        raise ValidationFailed(f"A model's name is a text, not {text!r}.")
    if not _NAME.match(text):
        raise ValidationFailed(
            f"{text[:80]!r} is not a model name: 1 to 128 letters, digits, spaces and any of . + / - _ are."
        )
    return text


def model_version(text: str) -> str:
    """Check a version label such as `1.0.0`."""
    if not isinstance(text, str) or not _VERSION.match(text):
        raise ValidationFailed(
            f"{str(text)[:80]!r} is not a version: 1 to 64 letters, digits and any of . _ + - are."
        )
    return text


@dataclass(frozen=True, slots=True)
class ModelRef:
    """`name`, `name:version` or `name@id`; a bare model id is allowed too."""

    name: str
    version: str = ""
    id: ModelId | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValidationFailed where the text is none of the three forms."""
        if not isinstance(text, str):
            raise ValidationFailed(f"A model is named by a text, not by {text!r}.")
        if re.fullmatch(r"[0-9a-f]{64}", text):
            return cls("", id=ModelId(text))
        name, at, pin = text.partition("@")
        name, colon, version = name.partition(":")
        return cls(
            model_name(name),
            version=model_version(version) if colon else "",
            id=model_id(pin) if at else None,
        )

    def __str__(self) -> str:
        version = f":{self.version}" if self.version else ""
        pin = f"@{self.id}" if self.id else ""
        return f"{self.name}{version}{pin}" if self.name else str(self.id)
