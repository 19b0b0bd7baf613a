"""Logging of a node that runs as a program; inside another program the logs are that program's.

Every line says which trace it belongs to, so that a request can be followed over all the nodes that it
passed; an inference's own line, at `info`, has its request id and how it went.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from llmesh.core.encoding import Json
from llmesh.mesh.events import InferenceEnded, MeshEvent
from llmesh.mesh.tracing import current_trace

__all__ = ["log_event", "log_to_stderr"]

_log = logging.getLogger("llmesh.inference")
_FIELDS = "fields"
"""The attribute of a record that holds its figures by name."""


class _Text(logging.Formatter):
    """For people: the figures come after the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """One line; the trace's id at its end."""
        said = "".join(f" {name}={value}" for name, value in _figures(record).items())
        return super().formatMessage(record) + said


class _Lines(logging.Formatter):
    """For programs: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its figures."""
        told: dict[str, Json] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_figures(record),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def log_to_stderr(level: str, form: str) -> None:
    """Send our own messages from this level up, and warnings of libraries, to stderr as text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines() if form == "json" else _Text())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("llmesh").setLevel(level.upper())


def log_event(event: MeshEvent) -> None:
    """A line for each inference that is over, asked for here or served to a peer."""
    if not isinstance(event, InferenceEnded) or not _log.isEnabledFor(logging.INFO):
        return
    fields: dict[str, Json] = {
        "request_id": event.request_id,
        "served": event.served.value,
        "model": event.model,
        "provider": event.provider,
        "outcome": event.error.name if event.error else "answered",
        "latency_ms": round(event.latency_ms, 3),
        "fee": str(event.fee),
    }
    _log.info("inference", extra={_FIELDS: fields})


def _figures(record: logging.LogRecord) -> dict[str, Json]:
    trace = current_trace()
    fields: dict[str, Json] = dict(getattr(record, _FIELDS, {}))
    return fields if trace is None else {**fields, "trace_id": trace.id}
