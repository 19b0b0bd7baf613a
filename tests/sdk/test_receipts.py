"""A receipt is checked offline, by the one method that a program calls."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import trio
from llmesh_sdk import AnswerReceipt, InferenceResult, MeshClient
from llmesh_sdk.transport import Transport

from llmesh.core.address import address_text
from llmesh.core.amount import Amount
from llmesh.core.digest import values_digest
from llmesh.core.encoding import Tensor
from llmesh.core.ids import AttemptId, ModelId, RequestId
from llmesh.core.inference import Result
from llmesh.core.receipt import NO_OFFER, Charge, Receipt, Work, receipt_digest, sign_receipt
from llmesh.core.voucher import ChannelId
from llmesh.errors import ValidationFailed
from llmesh.gateway.inference import render_result
from tests.mesh.people import CHAIN, peer, signer

REQUEST, MODEL = RequestId("1" * 32), ModelId("a" * 64)
ASKED = {"text": "good", "x": Tensor("uint8", (2,), b"ab")}
GOT = {"label": "positive", "score": 0.5}
PRICE = Amount.parse("0.1")
BOB = signer("bob")
SIGNED = sign_receipt(
    Receipt(
        BOB.address,
        AttemptId(REQUEST, 1),
        NO_OFFER,
        Work(MODEL, "fp16", values_digest(ASKED), values_digest(GOT)),
        Charge(ChannelId(bytes(32)), 1, PRICE, PRICE),
        7,
    ),
    CHAIN,
    BOB.sign,
)
RESULT = Result(REQUEST, "senti", MODEL, GOT, PRICE, peer("bob"), 1.0, receipt=SIGNED, chain=CHAIN)


@pytest.fixture
def receipt() -> AnswerReceipt:
    """As a client gets it from a gateway."""
    result = InferenceResult.read(json.loads(render_result(RESULT)))
    assert result.receipt is not None
    assert "signed" not in repr(result.receipt)
    return result.receipt


def test_a_receipt_comes_with_the_answer_and_holds(receipt: AnswerReceipt) -> None:
    assert (receipt.price, receipt.signed, receipt.request_id) == (PRICE, SIGNED.packed, REQUEST)
    receipt.verify()
    receipt.verify(ASKED, GOT)
    receipt.verify(output={"score": 0.5, "label": "positive"})


@pytest.mark.parametrize(
    "change",
    [
        {"price": Amount(1)},
        {"provider": "0x" + "00" * 20},
        {"chain": CHAIN.id + 1},
        {"contract": "0x" + "00" * 20},
        {"id": "00" * 32},
        {"request_id": RequestId("2" * 32)},
        {"signed": SIGNED.packed[:-1]},
        {"signed": SIGNED.packed[:-65] + bytes(65)},
        {"signed": b"\1" + SIGNED.packed[1:]},
    ],
    ids=range(9),
)
def test_nothing_of_it_can_be_changed(receipt: AnswerReceipt, change: dict[str, object]) -> None:
    with pytest.raises(ValidationFailed):
        replace(receipt, **change).verify()  # type: ignore[arg-type]


def test_it_is_for_this_input_and_this_output(receipt: AnswerReceipt) -> None:
    with pytest.raises(ValidationFailed, match="another input"):
        receipt.verify({"text": "bad"})
    with pytest.raises(ValidationFailed, match="another output"):
        receipt.verify(ASKED, {**GOT, "score": 0.25})


def test_without_the_extra_it_says_what_to_install(
    receipt: AnswerReceipt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llmesh.core.receipt", None)
    with pytest.raises(ImportError, match=r"llmesh-network\[verify\]"):
        receipt.verify()


def test_an_older_gateway_gives_none() -> None:
    fields = json.loads(render_result(replace(RESULT, receipt=None)))
    assert InferenceResult.read(fields).receipt is None


def test_a_client_asks_for_what_its_node_has_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    async def get(self: Transport, path: str, timeout: float, query: object) -> dict[str, Any]:
        asked.append(path)
        charge = {"provider": address_text(BOB.address), "price": 0.1}
        kept = {
            "id": receipt_digest(SIGNED.receipt, CHAIN).hex(),
            "charge": charge,
            "signed": SIGNED.packed.hex(),
        }
        ledger = {"id": CHAIN.id, "contract": address_text(CHAIN.contract)}
        return {"request_id": REQUEST, "chain": ledger, "receipts": [kept]}

    monkeypatch.setattr(Transport, "get", get)
    receipt = trio.run(MeshClient("http://localhost:1").receipt, REQUEST)
    receipt.verify(ASKED, GOT)
    assert (receipt.price, asked) == (PRICE, [f"/api/v1/receipts/{REQUEST}"])
    with pytest.raises(ValidationFailed):
        trio.run(MeshClient("http://localhost:1").receipt, "../status")
