"""Addresses as people see them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.address import Address, address, address_from_text, address_text, recipient
from llmesh.errors import ValidationFailed

# The examples of EIP-55.
CHECKED = [
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]


@pytest.mark.parametrize("text", CHECKED)
def test_the_case_is_the_checksum(text: str) -> None:
    raw = address_from_text(text.lower())
    assert address_text(raw) == text
    assert address_from_text(text) == address_from_text("0x" + text[2:].upper()) == raw


@given(st.binary(min_size=20, max_size=20))
def test_text_and_bytes_round_trip(raw: bytes) -> None:
    assert address_from_text(address_text(Address(raw))) == raw


@pytest.mark.parametrize(
    "text", ["", "0x", "5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", "0x" + "g" * 40, "0x" + "1" * 41]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValidationFailed, match="not an address"):
        address_from_text(text)


def test_a_mistyped_address_is_refused() -> None:
    with pytest.raises(ValidationFailed, match="mistyped"):
        address_from_text(CHECKED[0].replace("aA", "Aa"))


def test_the_size_is_checked() -> None:
    assert address(bytes(20)) == bytes(20)
    with pytest.raises(ValidationFailed):
        address(bytes(21))


def test_a_recipient_is_an_account_or_a_node() -> None:
    node = "12D3KooW" + "A" * 44
    assert recipient(node) == node
    assert recipient(CHECKED[0]) == address_from_text(CHECKED[0])
    mistyped = CHECKED[0][:-1] + "e"
    lower = CHECKED[0].lower()
    for text, why in (
        (lower, "lacks its checksum"),
        ("0x" + lower[2:].upper(), "lacks its checksum"),
        (mistyped, "checksum"),
        ("", "neither"),
        ("bob", "neither"),
        (CHECKED[0][2:], "neither"),
    ):
        with pytest.raises(ValidationFailed, match=why):
            recipient(text)
