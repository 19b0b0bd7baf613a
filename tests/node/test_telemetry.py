"""What is logged of an inference: who asked for what, how it went, and which trace it belongs to."""

from __future__ import annotations

import json
import logging

import pytest

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.trace import Trace
from llmesh.errors import NodeBusy
from llmesh.mesh.events import InferenceEnded, Served
from llmesh.mesh.tracing import traced
from llmesh.node import telemetry

ME = PeerId("12D3KooW" + "A" * 44)
DONE = InferenceEnded(
    RequestId("ab" * 16), Served.CALLER, "m", ModelId("cd" * 32), ME, Amount.parse("0.1"), 12.3456
)
TRACE = Trace("4b" * 16, "0f" * 8)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "llmesh")
    return caplog


def formatted(form: str, record: logging.LogRecord) -> str:
    return (telemetry._Lines() if form == "json" else telemetry._Text()).format(record)


def test_a_line_for_programs(records: pytest.LogCaptureFixture) -> None:
    with traced(TRACE):
        telemetry.log_event(DONE)
        told = json.loads(formatted("json", records.records[0]))
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "level": "info", "logger": "llmesh.inference", "message": "inference", "request_id": "ab" * 16,
        "served": "caller", "model": "m", "provider": ME, "outcome": "answered", "latency_ms": 12.346,
        "fee": "0.1", "trace_id": "4b" * 16,
    }  # fmt: skip


def test_a_line_for_people_and_a_failure(records: pytest.LogCaptureFixture) -> None:
    failed = InferenceEnded(
        RequestId("ab" * 16), Served.PEER, "m", None, None, Amount(0), 1, NodeBusy("Full")
    )
    telemetry.log_event(failed)
    line = formatted("text", records.records[0])
    assert "INFO llmesh.inference: inference request_id=" in line
    assert "outcome=NodeBusy" in line
    assert "trace_id" not in line


def test_nothing_is_made_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "llmesh")
    telemetry.log_event(DONE)
    assert not caplog.records


def test_a_fault_comes_with_its_traceback(records: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("llmesh").exception("It broke.")
    assert "ValueError: x" in json.loads(formatted("json", records.records[0]))["traceback"]
