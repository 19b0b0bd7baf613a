"""Trace: the W3C trace context of a request, by which its story can be followed over many machines.

Format: https://www.w3.org/TR/trace-context/ (version 00); a newer version is read as far as we know it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

__all__ = ["MAX_TRACE", "Trace", "read_trace"]

MAX_TRACE = 55
"""Characters of a `traceparent`."""
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_INVALID_VERSION = "ff"


@dataclass(frozen=True, slots=True)
class Trace:
    """`id` names the whole story (32 hex digits), `span` the step that asks (16), `flags` are W3C's."""

    id: str
    span: str
    flags: str = "01"

    def __str__(self) -> str:
        return f"00-{self.id}-{self.span}-{self.flags}"

    def step(self, span: str) -> Trace:
        """The same story, told on by another step."""
        return replace(self, span=span)


def read_trace(text: str) -> Trace | None:
    """What a `traceparent` says; None for one that is not valid, which W3C wants ignored."""
    found = _FORM.match(text)
    if found is None:
        return None
    version, id, span, flags, more = found.groups()
    known = version == "00" and more is None
    if version == _INVALID_VERSION or not (known or version != "00"):
        return None
    return None if not int(id, 16) or not int(span, 16) else Trace(id, span, flags)
