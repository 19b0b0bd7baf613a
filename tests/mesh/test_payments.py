"""A payer among providers that are honest, dishonest, forgetful or dead."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from llmesh.core.account import Purse
from llmesh.core.amount import Amount
from llmesh.core.digest import values_digest
from llmesh.core.exchange import Accepted, Completed
from llmesh.core.ids import RequestId
from llmesh.core.inference import Chunk, InferenceRequest, Usage
from llmesh.core.operations import Transfer
from llmesh.core.receipt import NO_CHARGE, NO_OFFER, Charge, Receipt, Work, sign_receipt
from llmesh.core.reference import ModelRef
from llmesh.core.wishes import Sort, Wishes
from llmesh.errors import (
    InsufficientBalance,
    MeshError,
    ModelNotFound,
    NodeUnreachable,
    RequestTimeout,
    TransactionFailed,
    ValidationFailed,
)
from llmesh.journal.channels import all_channels, reservations
from llmesh.journal.columns import Side
from llmesh.journal.purse import DurablePurse
from llmesh.journal.receipts import receipts_of
from llmesh.ledger.memory import MemoryLedger
from llmesh.mesh.payments import open_payments
from llmesh.mesh.router import Router
from llmesh.mesh.tabs import PaymentSettings, Tabs
from llmesh.mesh.teller import Teller
from llmesh.net.call import Call, Handler
from llmesh.runtime.echo import EchoRuntime
from llmesh.wire.inference import decode_request, encode_event
from tests.mesh.conftest import _open_mesh, clock
from tests.mesh.people import BANK, CHAIN, peer, signer

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh, Node

OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
FEE = Amount.parse("0.1")
numbers = count(1)


def request(timeout: float = 30.0) -> InferenceRequest:
    text = {"text": "one two three"}
    return InferenceRequest(RequestId(f"{next(numbers):032x}"), ModelRef("senti"), text, timeout)


def spent(node: Node) -> Amount:
    return Amount(sum(tab.channel.books.spent.micro for tab in node.payments.tabs._tabs.values()))


def charged(node: Node) -> Amount:
    return Amount(sum(a.channel.charged.micro for a in node.till._accounts._accounts.values()))


async def balance(mesh: Mesh, name: str) -> Amount:
    return (await mesh.ledger.account(signer(name).address)).balance


async def test_a_deposit_is_made_once_and_only_after_the_provider_has_confirmed(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await bob.provider.remove(bob.provider.offers[0].model_id)
        with pytest.raises(ModelNotFound):
            await ann.router.infer(request())
        assert await balance(mesh, "ann") == Amount.parse(1000)
        assert await ann.journal.read(all_channels, Side.PAYER) == []
        await bob.deploy("senti", "a", fee="0.1")
        for _ in range(3):
            assert (await ann.router.infer(request())).fee == FEE
        assert await balance(mesh, "ann") == Amount.parse(990)
        assert spent(ann) == charged(bob) == Amount.parse("0.3")


async def test_a_receipt_is_kept_and_anyone_can_check_it(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        result = await ann.router.infer(request())
        await trio.sleep(1)
        [row] = await ann.journal.read(receipts_of, result.request_id)
        assert (row.signed, row.peer, result.chain) == (result.receipt, bob.peer_id, CHAIN)


async def test_an_empty_account_says_where_money_comes_from(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        poor, bob = await mesh.add("poor"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        with pytest.raises(InsufficientBalance, match=r"llmesh invite --credit.*issuer.*--join") as caught:
            await poor.router.infer(request())
        assert caught.value.code == 3001
        assert bob.runtime.started == 0


async def test_of_a_foreign_swarm_only_free_offers_are_used(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        own = replace(mesh.ledger.genesis.genesis, created_at=5)
        from llmesh.core.genesis import sign_genesis

        foreign = MemoryLedger(sign_genesis(own, BANK.sign), BANK.sign, clock)
        ann, bob = await mesh.add("ann"), await mesh.add("bob", ledger=foreign)
        await bob.deploy("senti", "a", fee="0.1")
        with pytest.raises(ModelNotFound, match="another swarm"):
            await ann.router.infer(request())
        await (await mesh.add("cat")).deploy("senti", "a", fee="3")
        result = await ann.router.infer(request())
        assert (result.provider, [s.peer_id for s in result.skipped]) == (peer("cat"), [bob.peer_id])
        await bob.deploy("senti", "a")
        result = await ann.router.infer(request())
        assert (result.provider, result.chain) == (bob.peer_id, foreign.chain)


def lying(node: Callable[[], Node], **changes: object) -> Handler:
    """A provider that answers at once, with a receipt that is changed so before it is signed."""

    async def answer(call: Call, message: bytes) -> None:
        attempt = decode_request(message, 5.0)
        own, fee = node().till.credentials, node().provider.offers[0].fee
        digest = values_digest(attempt.input)
        work = Work(attempt.model_id, "unstated", digest, digest)
        offer, charge = NO_OFFER, NO_CHARGE
        if attempt.payment is not None:
            offer, charge = attempt.payment.offer, Charge(attempt.payment.channel, 1, fee, fee)
        receipt = Receipt(own.signer.address, attempt.id, offer, work, charge, 5)
        kind = {k: v for k, v in changes.items() if k != "by"}
        receipt = replace(receipt, **{k: v(receipt) for k, v in kind.items()})  # type: ignore[operator]
        by = str(changes.get("by", "bob"))
        await call.send(encode_event(Accepted()))
        await call.send(encode_event(Chunk(0, values=attempt.input)))
        await call.send(encode_event(Completed(Usage(), sign_receipt(receipt, own.chain, signer(by).sign))))

    return answer


LIES = {
    "signed by another": {"by": "cat"},
    "of another provider": {"provider": lambda _: signer("cat").address},
    "of another attempt": {"attempt": lambda r: r.attempt._replace(number=7)},
    "of another offer": {"offer": lambda _: bytes(31) + b"x"},
    "of another model": {"work": lambda r: replace(r.work, model="b" * 64)},
    "of another class": {"work": lambda r: replace(r.work, execution_class="fp16")},
    "of another input": {"work": lambda r: replace(r.work, input_digest=bytes(32))},
    "of another output": {"work": lambda r: replace(r.work, output_digest=bytes(32))},
    "of another channel": {"charge": lambda r: replace(r.charge, channel=b"x" * 32)},
    "with more charged in all": {"charge": lambda r: replace(r.charge, cumulative=Amount(10**9))},
}


@pytest.mark.parametrize("fee", ["0.1", "0"])
@pytest.mark.parametrize("lie", LIES)
async def test_an_answer_whose_receipt_lies_is_not_believed(
    open_mesh: OpenMesh, autojump_clock: MockClock, lie: str, fee: str
) -> None:
    if fee == "0" and lie in ("of another offer", "of another channel", "with more charged in all"):
        return  # nothing is paid, so nobody asks
    async with open_mesh() as mesh:
        nodes: list[Node] = []
        ann, bob = await mesh.add("ann"), await mesh.add("bob", answer=lying(lambda: nodes[0], **LIES[lie]))
        nodes.append(bob)
        await bob.deploy("senti", "a", fee=fee)
        with pytest.raises(ValidationFailed) as caught:
            await ann.router.infer(request())
        assert (caught.value.code, caught.value.peer_id) == (1004, bob.peer_id)
        assert ann.reputation.trust(bob.peer_id).name == "DISGRACED"
        assert spent(ann) == Amount(0)
        await (await mesh.add("cat")).deploy("senti", "a", fee="0.1")
        assert (await ann.router.infer(request())).provider == peer("cat")


async def test_the_lies_are_lies_only_by_what_they_change(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        nodes: list[Node] = []
        ann, bob = await mesh.add("ann"), await mesh.add("bob", answer=lying(lambda: nodes[0]))
        nodes.append(bob)
        await bob.deploy("senti", "a", fee="0.1")
        assert (await ann.router.infer(request())).fee == FEE


async def hang_up(node: Node, after: float) -> None:
    await trio.sleep(after)
    for session in node.sessions.live():
        session.close()


async def test_a_provider_that_dies_between_commit_and_answer_is_paid_once(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        mesh.network.weather = replace(mesh.network.weather, delay=0.05)
        bob.journal.delay = 1.0  # the charge is in the journal, the answer has not left
        asked = request()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up, bob, 0.6)
            with pytest.raises(MeshError):
                await ann.router.infer(asked)
        assert spent(ann) == FEE
        assert charged(bob) == FEE + FEE
        bob.journal.delay = 0.0
        await trio.sleep(3)
        assert spent(ann) == charged(bob) == FEE + FEE
        [row] = await ann.journal.read(receipts_of, asked.id)
        assert row.signed.charge.price == FEE
        assert await ann.journal.read(reservations) == []


async def test_what_is_not_known_is_kept_over_a_restart_and_shown(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=5.0))
        await bob.deploy("senti", "a", fee="0.1")
        with pytest.raises(RequestTimeout):
            await ann.router.infer(request(timeout=1.0))
        mesh.network.freeze(bob.peer_id)
        await trio.sleep(0.6)
        [held] = await ann.journal.read(reservations)
        assert held.quote == FEE
        ann.nursery.cancel_scope.cancel()
        mesh.network.thaw(bob.peer_id)
        bob.runtime.delay = 0.0
        teller = Teller(mesh.ledger, ann.journal, ann.credentials.signer, clock)
        settings = PaymentSettings(clock=clock)
        tabs = Tabs(ann.credentials, mesh.ledger, ann.journal, teller, ann.sessions, settings)
        async with open_payments(tabs) as payments:
            assert [tab.peer for tab in tabs.doubtful()] == [bob.peer_id]
            router = Router(ann.provider, ann.sessions, mesh.board, ann.reputation, payments)
            assert (await router.infer(request())).fee == FEE
            assert list(tabs.doubtful()) == []
        assert await ann.journal.read(reservations) == []
        assert charged(bob) == FEE


async def test_what_still_runs_for_an_earlier_life_makes_room_when_it_ends(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=3.0))
        await bob.deploy("senti", "a", fee="0.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ann.router.infer, request())
            await trio.sleep(1)
            async with second_life(ann, mesh) as (router, tabs):
                assert (await router.infer(request())).fee == FEE
                assert list(tabs.doubtful()) == []


@asynccontextmanager
async def second_life(node: Node, mesh: Mesh) -> AsyncGenerator[tuple[Router, Tabs]]:
    """A payer that knows no more than its journal, and forgot what it had begun last."""
    teller = Teller(mesh.ledger, node.journal, node.credentials.signer, clock)
    settings = PaymentSettings(clock=clock)
    tabs = Tabs(node.credentials, mesh.ledger, node.journal, teller, node.sessions, settings)
    async with open_payments(tabs) as payments, trio.open_nursery() as nursery:
        nursery.start_soon(payments.run)
        yield Router(node.provider, node.sessions, mesh.board, node.reputation, payments), tabs
        nursery.cancel_scope.cancel()


async def test_a_stranger_is_trusted_with_one_attempt_at_a_time(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=1.0))
        await bob.deploy("senti", "a", fee="0.1")
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, bob.runtime.running)
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as askers:
                for _ in range(3):
                    askers.start_soon(ann.router.infer, request())
            nursery.cancel_scope.cancel()
        assert most == 1
        assert trio.current_time() == pytest.approx(3.0, abs=0.2)


async def test_a_provider_that_forgot_its_channel_is_reminded(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        bob.till._accounts._accounts.clear()
        bob.journal.db.execute("DELETE FROM channel; DELETE FROM receipt")
        await hang_up(bob, 0)
        await trio.sleep(1)
        result = await ann.router.infer(request())
        assert result.receipt is not None
        assert result.receipt.charge.cumulative == FEE, "on another channel, as it may have forgotten more"
        assert charged(bob) == FEE + FEE


async def test_a_payer_that_forgot_its_channel_finds_its_deposit_again(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        ann.payments.tabs._tabs.clear()
        ann.journal.db.execute("DELETE FROM channel; DELETE FROM receipt")
        await ann.router.infer(request())
        assert spent(ann) == charged(bob) == FEE + FEE
        assert await balance(mesh, "ann") == Amount.parse(990)


async def test_a_purse_and_an_account_are_topped_up_no_further_than_they_go(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="300")
        for _ in range(3):
            await ann.router.infer(request())
        with pytest.raises(InsufficientBalance, match="this node has 100 MESH"):
            await ann.router.infer(request())
        assert (await balance(mesh, "ann"), spent(ann)) == (Amount.parse(100), Amount.parse(900))


async def test_one_provider_gets_no_more_than_half_of_what_there_is_in_advance(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob, cat = [await mesh.add(name) for name in ("ann", "bob", "cat")]
        await bob.deploy("senti", "a", fee="300")
        await ann.router.infer(request())
        assert await balance(mesh, "ann") == Amount.parse(500)
        mesh.network.freeze(bob.peer_id)
        await cat.deploy("senti", "a", fee="300")
        assert (await ann.router.infer(request())).provider == cat.peer_id


async def test_an_offer_that_became_free_is_used_for_nothing(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        said = mesh.board.known[bob.peer_id]
        await bob.deploy("senti", "a", fee="0")
        mesh.board.known[bob.peer_id] = said  # nobody has heard of it yet
        result = await ann.router.infer(request())
        assert (result.fee, spent(ann), charged(bob)) == (Amount(0), FEE, FEE)
        assert ann.reputation.trust(bob.peer_id).name != "DISGRACED"


@pytest.mark.parametrize("away", [True, False])
async def test_where_no_deposit_can_be_made_those_who_have_one_are_asked(
    open_mesh: OpenMesh, autojump_clock: MockClock, away: bool
) -> None:
    """The issuer is away, or the account is empty: open channels go on."""
    async with open_mesh() as mesh:
        ann, bob, cat, dan = [await mesh.add(name) for name in ("ann", "bob", "cat", "dan")]
        await bob.deploy("senti", "a", fee="3")
        await ann.router.infer(request())
        if away:
            mesh.ledger.submit = _nobody  # type: ignore[method-assign]
        else:
            teller = Teller(mesh.ledger, ann.journal, ann.credentials.signer, clock)
            await teller.perform(Transfer(signer("cat").address, await balance(mesh, "ann")))
        await cat.deploy("senti", "a", fee="1")
        await dan.deploy("senti", "a", fee="2")
        result = await ann.router.infer(request(), Wishes(sort=Sort.PRICE))
        assert (result.provider, spent(ann)) == (bob.peer_id, Amount.parse(6))
        assert charged(cat) == charged(dan) == Amount(0)
        await bob.provider.remove(bob.provider.offers[0].model_id)
        del mesh.board.known[bob.peer_id]
        with pytest.raises(TransactionFailed if away else InsufficientBalance):
            await ann.router.infer(request(), Wishes(sort=Sort.PRICE))


async def _nobody(signed: object) -> None:
    raise NodeUnreachable("The issuer is away.")


faults = st.lists(
    st.tuples(
        st.integers(0, 2000).map(lambda ms: ms / 1000),
        st.sampled_from(["cut", "freeze", "full", "forget", "cancel"]),
    ),
    max_size=6,
)


@given(faults, st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_whatever_breaks_nobody_pays_twice_or_over_its_purse(
    faults: list[tuple[float, str]], seed: int
) -> None:
    trio.run(_play, faults, seed, clock=MockClock(autojump_threshold=0))


async def _play(faults: list[tuple[float, str]], seed: int) -> None:
    async with _open_mesh() as mesh:
        mesh.network.weather = replace(mesh.network.weather, delay=0.01)
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=0.1, words=1))
        await bob.deploy("senti", "a", fee="0.1")
        purse = DurablePurse(Purse(Amount.parse("0.8")), _kept)
        done: list[Amount] = []
        scopes: list[trio.CancelScope] = []

        async def ask(after: float) -> None:
            await trio.sleep(after)
            with trio.CancelScope() as scope:
                scopes.append(scope)
                try:
                    done.append((await ann.router.infer(request(3.0), None, purse)).fee)
                except MeshError:
                    return

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(ask, (number * 37 + seed) % 500 / 250)
            for at, fault in faults:
                nursery.start_soon(_fault, at, fault, bob, mesh, scopes)
        mesh.network.thaw(bob.peer_id)
        bob.journal.full = False
        await trio.sleep(120)
        tabs = list(ann.payments.tabs._tabs.values())
        assert not any(tab.doubtful or tab.channel.reserved for tab in tabs)
        assert not any(tab.channel.broken for tab in tabs)
        if charged(bob):
            assert spent(ann) == charged(bob)
        total = Amount(sum(fee.micro for fee in done))
        assert total <= spent(ann) <= purse.limit
        assert purse.committed == spent(ann)


async def _kept(mark: Amount) -> None:
    await trio.sleep(0.01)


async def _fault(at: float, fault: str, bob: Node, mesh: Mesh, scopes: list[trio.CancelScope]) -> None:
    await trio.sleep(at)
    if fault == "cut":
        await hang_up(bob, 0)
    elif fault == "freeze":
        mesh.network.freeze(bob.peer_id)
        await trio.sleep(1.0)
        mesh.network.thaw(bob.peer_id)
    elif fault == "full":
        bob.journal.full = True
        await trio.sleep(0.3)
        bob.journal.full = False
    elif fault == "forget":
        bob.till._accounts._accounts.clear()
    else:
        for scope in scopes:
            scope.cancel()
