"""Logging of a node that runs as a program; inside another program the logs are that program's."""

from __future__ import annotations

import logging
import sys

__all__ = ["log_to_stderr"]


def log_to_stderr(level: str) -> None:
    """Send our own messages from this level up, and warnings of libraries, to stderr."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("llmesh").setLevel(level.upper())
