"""Errors as a node tells them in JSON: by problem documents and by error frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmesh.errors import MeshError, error_from_code

__all__ = ["told_error"]


def told_error(code: int, words: str, told: Mapping[str, Any]) -> MeshError:
    """The error of that code, with what else the node says of it."""
    step = told.get("next_step")
    return error_from_code(
        code,
        words,
        request_id=told.get("request_id"),
        retry_after=told.get("retry_after"),
        next_step=step if isinstance(step, str) else None,
    )
