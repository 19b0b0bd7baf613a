"""The wallet over a real journal and ledger, and what it says of one charge."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from llmesh_sdk import AnswerReceipt
from quart_trio import QuartTrio

from llmesh.core.address import address_from_text, address_text
from llmesh.core.amount import Amount
from llmesh.core.channel import Deposit
from llmesh.core.encoding import canonical_json
from llmesh.core.evidence import Equivocation
from llmesh.core.ids import AttemptId, ModelId, PeerId, RequestId
from llmesh.core.operations import Slash, unsigned_to_json
from llmesh.core.receipt import (
    NO_CHARGE,
    NO_OFFER,
    Charge,
    Receipt,
    SignedReceipt,
    Work,
    check_receipt,
    read_receipt,
    sign_receipt,
)
from llmesh.core.typed import Chain
from llmesh.core.voucher import channel_id
from llmesh.gateway.app import GatewaySettings, application
from llmesh.gateway.callers import GRANTS, Scope
from llmesh.gateway.gate import Gate
from llmesh.gateway.receipts import receipts_routes
from llmesh.gateway.wallet import Wallet, wallet_route, wallet_routes
from llmesh.journal.channels import AddChannel, ChannelRow, Reservation, Reserve
from llmesh.journal.columns import Side
from llmesh.journal.open import Journal, open_journal
from llmesh.journal.outbox import AddIntent, Intent
from llmesh.journal.receipts import ReceiptRow, StoreReceipt
from llmesh.ledger.memory import MemoryLedger
from tests.core.banking import ALICE, BOB, CHAIN, GENESIS, ISSUER, SIGN, config

OWNER = PeerId("12D3KooW" + "A" * 44)
PEER = PeerId("12D3KooW" + "B" * 44)
MODEL = ModelId("ab" * 32)
CONFIG = config(ALICE, BOB)
ID = channel_id(CONFIG, CHAIN)
FREE, PAID, LOST = (RequestId(digit * 32) for digit in "abc")


def receipt(request: RequestId, charge: Charge, at: float, offer: bytes = NO_OFFER) -> SignedReceipt:
    work = Work(MODEL, "fp32-strict", b"i" * 32, b"o" * 32)
    return sign_receipt(Receipt(BOB, AttemptId(request, 1), offer, work, charge, int(at)), CHAIN, SIGN[BOB])


def accusation(first: SignedReceipt, at: float) -> Intent:
    """What a Teller leaves in the outbox for evidence."""
    other = replace(first.receipt, issued_at=1)
    second = sign_receipt(other, CHAIN, SIGN[BOB])
    body = canonical_json(unsigned_to_json(Slash(Equivocation(first, second))))
    return Intent("one", "ledger", f"{CHAIN.id} {ALICE.hex()}", 0, body, at, at)


@pytest.fixture
async def journal(tmp_path: Path):
    async with open_journal(tmp_path / "journal.db", OWNER) as journal:
        yield journal


@pytest.fixture
async def app(journal: Journal) -> QuartTrio:
    now = time.time()
    paid = receipt(PAID, Charge(ID, 3, Amount(1), Amount(30)), now, b"t" * 32)
    old = receipt(RequestId("d" * 32), NO_CHARGE, now - 40 * 86_400)
    forged = SignedReceipt(receipt(LOST, NO_CHARGE, now).receipt, paid.signature)
    await journal.commit(
        AddChannel(ChannelRow(Side.PAYER, ID, PEER, CONFIG, Deposit(Amount(500)), Amount(30))),
        StoreReceipt(ReceiptRow(Side.PAYER, PEER, paid)),
        StoreReceipt(ReceiptRow(Side.PAYER, PEER, receipt(FREE, NO_CHARGE, now))),
        StoreReceipt(ReceiptRow(Side.PAYER, PEER, old)),
        StoreReceipt(ReceiptRow(Side.PROVIDER, PEER, forged)),
        Reserve(Reservation(ID, AttemptId(LOST, 2), Amount(7), now)),
        AddIntent(accusation(paid, now)),
    )
    ledger = MemoryLedger(GENESIS, SIGN[ISSUER], trio.current_time)
    wallet = Wallet(journal, ledger, ALICE, {MODEL: "gpt-mini"}.get)  # type: ignore[arg-type]
    return application(
        (*wallet_routes(wallet), wallet_route(wallet), *receipts_routes(wallet)),
        GatewaySettings(Gate(guard=None)),
    )


async def ask(app: QuartTrio, path: str) -> tuple[int, dict[str, Any]]:
    answer = await app.test_client().get(path)
    return answer.status_code, json.loads(await answer.get_data(), parse_float=str)


async def test_it_shows_what_there_is(app: QuartTrio) -> None:
    status, told = await ask(app, "/owner/wallet")
    assert status == 200
    account = GENESIS.genesis.allocations
    assert told["account"] == address_text(ALICE)
    assert Amount.parse(str(told["balance"])) == dict(account)[ALICE]
    assert (told["chain"], told["unknown"]) == (CHAIN.id, "0.000007")
    [channel] = told["channels"]
    assert (channel["id"], channel["side"], channel["peer"]) == (ID.hex(), "payer", PEER)
    assert (channel["deposit"], channel["charged"], channel["unknown"]) == ("0.0005", "0.00003", "0.000007")
    [spent] = told["spending"]
    assert (spent["model"], spent["fees"], spent["count"]) == ("gpt-mini", "0.000001", 2)
    assert [row["count"] for row in told["earnings"]] == [1]
    [accused] = told["accused"]
    assert (accused["provider"], accused["request_id"], accused["attempt"]) == (address_text(BOB), PAID, 1)
    assert (accused["offence"], accused["state"], accused["refused"]) == ("equivocation", "waiting", "")
    _, longer = await ask(app, "/owner/wallet?days=50")
    assert len(longer["spending"]) == 2


async def test_what_waits_to_be_written_is_told_too(journal: Journal) -> None:
    paid = receipt(PAID, Charge(ID, 3, Amount(1), Amount(30)), time.time(), b"t" * 32)

    async def catch_up() -> None:
        await journal.commit(StoreReceipt(ReceiptRow(Side.PAYER, PEER, paid)))

    ledger = MemoryLedger(GENESIS, SIGN[ISSUER], trio.current_time)
    wallet = Wallet(journal, ledger, ALICE, str, catch_up)
    app = application(receipts_routes(wallet), GatewaySettings(Gate(guard=None)))
    status, told = await ask(app, f"/api/v1/receipts/{PAID}")
    assert status == 200
    assert len(told["receipts"]) == 1


async def test_it_is_told_over_the_network_too_but_not_to_every_key(app: QuartTrio) -> None:
    assert await ask(app, "/api/v1/wallet") == await ask(app, "/owner/wallet")
    wallet: Any = None
    assert wallet_route(wallet).scope is Scope.WALLET
    assert Scope.WALLET in GRANTS


async def test_it_explains_a_charge(app: QuartTrio) -> None:
    status, told = await ask(app, f"/owner/explain?id={PAID}")
    assert status == 200
    [charge] = told["charges"]
    assert (charge["price"], charge["cumulative"], charge["sequence"]) == ("0.000001", "0.00003", 3)
    assert (charge["model"], charge["model_id"], charge["peer"]) == ("gpt-mini", MODEL, PEER)
    assert (charge["channel"], charge["offer"]) == (ID.hex(), (b"t" * 32).hex())
    assert (charge["provider"], charge["genuine"]) == (address_text(BOB), True)
    _, free = await ask(app, f"/owner/explain?id={FREE}")
    assert (free["charges"][0]["channel"], free["charges"][0]["price"]) == ("", 0)


async def test_a_receipt_can_be_checked_by_whoever_gets_it(app: QuartTrio) -> None:
    status, told = await ask(app, f"/api/v1/receipts/{PAID}")
    kept = AnswerReceipt.kept(told)
    kept.verify()
    assert kept.request_id == PAID
    assert (status, told["request_id"]) == (200, PAID)
    [row] = told["receipts"]
    assert (row["charge"]["price"], row["charge"]["genuine"]) == ("0.000001", True)
    signed = read_receipt(bytes.fromhex(row["signed"]))
    check_receipt(signed, Chain(told["chain"]["id"], address_from_text(told["chain"]["contract"])))
    assert signed.attempt == AttemptId(PAID, 1)


@pytest.mark.parametrize(
    ("id", "status", "code"), [("e" * 32, 404, 4005), ("e" * 31, 422, 1004), ("E" * 32, 422, 1004)]
)
@pytest.mark.parametrize("path", ["/api/v1/receipts/", "/owner/explain?id="])
async def test_receipts_that_are_not_there(
    app: QuartTrio, path: str, id: str, status: int, code: int
) -> None:
    got, problem = await ask(app, path + id)
    assert (got, problem["code"]) == (status, code)


async def test_it_says_what_is_in_doubt_and_what_is_forged(app: QuartTrio) -> None:
    _, told = await ask(app, f"/owner/explain?id={LOST}")
    assert [charge["genuine"] for charge in told["charges"]] == [False]
    [doubt] = told["unknown"]
    assert (doubt["attempt"], doubt["quote"], doubt["channel"]) == (2, "0.000007", ID.hex())


@pytest.mark.parametrize("path", ["explain", "explain?id=x", "wallet?days=0", "wallet?days=x"])
async def test_bad_questions_are_refused(app: QuartTrio, path: str) -> None:
    status, problem = await ask(app, f"/owner/{path}")
    assert (status, problem["code"]) == (422, 1004)
