"""A trace is read as W3C has it, and whatever is not valid is ignored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.trace import Trace, read_trace

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEX = "0123456789abcdef"


def test_the_example_of_the_standard() -> None:
    trace = read_trace(f"00-{ID}-{SPAN}-01")
    assert trace == Trace(ID, SPAN, "01")
    assert str(trace) == f"00-{ID}-{SPAN}-01"
    assert trace.step("1" * 16) == Trace(ID, "1" * 16)


def test_a_newer_version_is_read_as_far_as_known() -> None:
    assert read_trace(f"01-{ID}-{SPAN}-03-what-comes-next") == Trace(ID, SPAN, "03")


@pytest.mark.parametrize(
    "text",
    [
        "", "00", f"ff-{ID}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{ID}-{'0' * 16}-01",
        f"00-{ID.upper()}-{SPAN}-01", f"00-{ID}-{SPAN}-01-more", f"00-{ID}-{SPAN}-1", f"00-{ID}-{SPAN}",
    ],
)  # fmt: skip
def test_what_is_not_valid_is_ignored(text: str) -> None:
    assert read_trace(text) is None


@given(st.text(max_size=80))
def test_any_text_is_read_or_ignored(text: str) -> None:
    trace = read_trace(text)
    assert trace is None or read_trace(str(trace)) == trace
