"""Issuer and followers on a network in memory: everybody comes to the same books, or knows why not."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from random import Random

import nacl.signing
import pytest
import trio
from trio.testing import MockClock

from llmesh import crypto
from llmesh.core import operations as ops
from llmesh.core.amount import Amount
from llmesh.core.binding import DOMAIN, KeyBinding, SignedBinding, bind
from llmesh.core.books import Books
from llmesh.core.ids import PeerId
from llmesh.core.ledgerlog import SignedEntry, append, first_head
from llmesh.core.operations import SignedOperation, sign_operation
from llmesh.core.swarm import Answer, AskGenesis, Entered, Introduction, Question, Submit
from llmesh.errors import (
    InsufficientBalance,
    NetworkError,
    NodeUnreachable,
    TransactionFailed,
    ValidationFailed,
)
from llmesh.ledger.log import LogLedger
from llmesh.ledger.memory import MemoryLedger, copy_in_memory
from llmesh.mesh.follower import SHUNNED, Follower, Members
from llmesh.mesh.issuer import PER_PEER, Issuing
from llmesh.net.call import Call
from llmesh.net.host import PeerAddress
from llmesh.net.ledger import PROTOCOL, Serve, ask_genesis, follow, handler, submit
from llmesh.net.memory import MemoryHost, MemoryNetwork
from llmesh.net.sessions import Sessions, open_sessions
from tests.core.banking import ALICE, BOB, CHAIN, GENESIS, ISSUER, SIGN, START

SWARM = GENESIS.hash


def seed(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def peer(name: str) -> PeerId:
    return PeerId(crypto.peer_id_of(bytes(nacl.signing.SigningKey(seed(name)).verify_key)))


def now() -> float:
    return START + trio.current_time()


def binding(name: str, account: ops.Address = ISSUER) -> SignedBinding:
    unsigned = KeyBinding(peer(name), account, CHAIN, int(now()) + 3_600)
    return bind(unsigned, lambda record: crypto.sign(seed(name), DOMAIN, record), SIGN[account])


def bond(nonce: int, micro: int) -> SignedOperation:
    return sign_operation(ALICE, nonce, ops.Bond(Amount(micro)), CHAIN, SIGN[ALICE])


def history(*amounts: int) -> list[SignedEntry]:
    """A log by the issuer, of Alice's bonds."""
    books, head, entries = Books(GENESIS), first_head(GENESIS), list[SignedEntry]()
    for nonce, micro in enumerate(amounts, 1):
        entry, changes = append(books, head, bond(nonce, micro), START, SIGN[ISSUER])
        books.take(changes)
        head = entry.head
        entries.append(entry)
    return entries


@dataclass
class Node:
    host: MemoryHost
    sessions: Sessions
    log: LogLedger
    follower: Follower


class Swarm:
    def __init__(self, stack: AsyncExitStack, nursery: trio.Nursery) -> None:
        self.network = MemoryNetwork()
        self.ledger = MemoryLedger(GENESIS, SIGN[ISSUER], trio.current_time)
        self._stack = stack
        self._nursery = nursery

    async def listen(self, name: str, serve: Serve) -> tuple[MemoryHost, Sessions]:
        host = await self._stack.enter_async_context(self.network.host(peer(name)))
        sessions = await self._stack.enter_async_context(open_sessions(host, {PROTOCOL: handler(serve)}))
        return host, sessions

    async def issuer(self) -> MemoryHost:
        host, _ = await self.listen("issuer", Issuing(self.ledger, lambda: binding("issuer")).serve)
        return host

    async def member(self, name: str, *known: MemoryHost, copy: LogLedger | None = None) -> Node:
        log = copy or copy_in_memory(GENESIS)
        host, sessions = await self.listen(name, Issuing(log, lambda: binding(name)).serve)
        contacts = [PeerAddress(each.peer_id, each.addresses) for each in known]
        follower = Follower(log, Members(lambda: sessions, lambda: contacts, now, Random(1)))
        self._nursery.start_soon(follower.run)
        return Node(host, sessions, log, follower)


@asynccontextmanager
async def open_swarm() -> AsyncGenerator[Swarm]:
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        yield Swarm(stack, nursery)
        nursery.cancel_scope.cancel()


def level(*nodes: Node) -> Callable[[int], Awaitable[None]]:
    async def reached(height: int) -> None:
        for node in nodes:
            await node.follower.after(height - 1)
        assert len({node.log.head for node in nodes}) == 1

    return reached


async def test_members_have_what_the_issuer_enters(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        host = await swarm.issuer()
        ann, bob = await swarm.member("ann", host), await swarm.member("bob", host)
        for number in range(1, 4):
            await ann.follower.submit(bond(number, number))
            assert (await ann.follower.account(ALICE)).nonce == number
        await level(ann, bob)(3)
        assert ann.log.head == swarm.ledger.head
        assert (await bob.follower.account(ALICE)).stake == Amount(6)
        assert (bob.follower.chain, bob.follower.min_stake, bob.follower.height) == (CHAIN, Amount(100), 3)


async def test_the_same_operation_twice_is_entered_once(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        ann = await swarm.member("ann", await swarm.issuer())
        for _ in range(3):
            await ann.follower.submit(bond(1, 5))
        swarm.network.kill(peer("issuer"))
        await ann.follower.submit(bond(1, 5))
        assert swarm.ledger.height == 1


async def test_a_refusal_of_the_issuer_reaches_the_member(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        ann = await swarm.member("ann", await swarm.issuer())
        with pytest.raises(InsufficientBalance):
            await ann.follower.submit(bond(1, 1_001))
        with pytest.raises(ValidationFailed):
            await ann.follower.submit(SignedOperation(ALICE, 1, ops.Bond(Amount(1)), bytes(65)))
        assert swarm.ledger.height == ann.follower.height == 0


async def test_a_late_joiner_gets_all_of_it_even_from_a_member(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        host = await swarm.issuer()
        for number in range(1, 201):
            await swarm.ledger.submit(bond(number, 1))
        ann = await swarm.member("ann", host)
        await level(ann)(200)
        swarm.network.kill(peer("issuer"))
        late = await swarm.member("late", ann.host)
        await level(ann, late)(200)
        with pytest.raises(NodeUnreachable, match="issuer"):
            await late.follower.submit(bond(201, 1))


async def test_the_issuer_goes_away_and_comes_back(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        host = await swarm.issuer()
        ann, bob = await swarm.member("ann", host), await swarm.member("bob", host)
        await ann.follower.submit(bond(1, 1))
        swarm.network.freeze(peer("issuer"))
        with pytest.raises((NodeUnreachable, TransactionFailed)):
            await ann.follower.submit(bond(2, 1))
        await trio.sleep(600)
        swarm.network.thaw(peer("issuer"))
        while swarm.ledger.height < 2:
            with trio.move_on_after(30):
                try:
                    await ann.follower.submit(bond(2, 1))
                except (NodeUnreachable, NetworkError, TransactionFailed):
                    await trio.sleep(1)
        await swarm.ledger.submit(bond(3, 1))
        await level(ann, bob)(3)


async def test_members_that_follow_each_other_find_the_issuer_again(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        host = await swarm.issuer()
        ann = await swarm.member("ann", host)
        others = [await swarm.member(f"other {n}", host, ann.host) for n in range(4)]
        await swarm.ledger.submit(bond(1, 1))
        await level(ann, *others)(1)
        swarm.network.freeze(peer("issuer"))
        await trio.sleep(1_000)
        swarm.network.thaw(peer("issuer"))
        await swarm.ledger.submit(bond(2, 1))
        with trio.fail_after(300):
            await level(ann, *others)(2)


# --- hostile peers ----------------------------------------------------------------------------------


def saying(*answers: Answer, introduction: Introduction | None = None) -> Serve:
    """A peer that says this to whatever is asked, and first who it claims to be."""

    @asynccontextmanager
    async def serve(question: Question, asker: PeerId) -> AsyncGenerator[AsyncIterator[Answer]]:
        async def play() -> AsyncGenerator[Answer]:
            if isinstance(question, AskGenesis):
                yield introduction or Introduction(GENESIS)
                return
            for answer in answers:
                yield answer
            await trio.sleep_forever()

        yield play()

    return serve


def noting(asked: list[Question], inner: Serve) -> Serve:
    """The same peer, and what it was asked."""

    @asynccontextmanager
    async def serve(question: Question, asker: PeerId) -> AsyncGenerator[AsyncIterator[Answer]]:
        asked.append(question)
        async with inner(question, asker) as answers:
            yield answers

    return serve


async def test_two_histories_raise_an_alarm_and_end_the_following(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_swarm() as swarm:
        host, _ = await swarm.listen("liar", saying(*history(1, 2, 3)))
        copy = copy_in_memory(GENESIS)
        for entry in history(1, 9):
            await copy.take(entry)
        ann = await swarm.member("ann", host, copy=copy)
        await ann.follower._forked.wait()
        await trio.sleep(1)
        assert (
            f"two different entries 2 of its log (the other one came from {peer('liar')})"
            in ann.follower.alarm
        )
        assert ann.follower.alarm in caplog.text
        assert (ann.follower.height, ann.follower.followed) == (2, 0)
        with pytest.raises(TransactionFailed, match="two different"):
            await ann.follower.submit(bond(3, 1))


async def test_a_fork_among_those_that_are_followed_is_found(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        one, _ = await swarm.listen("one", saying(*history(1, 2)))
        other, _ = await swarm.listen("other", saying(*history(1, 3)))
        ann = await swarm.member("ann", one, other)
        await ann.follower._forked.wait()
        assert ann.follower.height == 2


def forged() -> list[SignedEntry]:
    entry, _ = append(Books(GENESIS), first_head(GENESIS), bond(1, 7), START, SIGN[BOB])
    return [entry]


@pytest.mark.parametrize(
    "entries",
    [forged(), history(1, 2)[1:], history(1, 2)[::-1], [replace(history(1)[0], payload=b"{}")]],
    ids=["not by the issuer", "one left out", "swapped", "no entry at all"],
)  # fmt: skip
async def test_what_is_wrong_is_not_kept_and_its_giver_is_shunned(
    autojump_clock: MockClock, entries: list[SignedEntry]
) -> None:
    async with open_swarm() as swarm:
        asked: list[Question] = []
        bad, _ = await swarm.listen("bad", noting(asked, saying(*entries)))
        ann = await swarm.member("ann", bad)
        await trio.sleep(5)
        assert (ann.follower.height, ann.follower.alarm, ann.follower.followed) == (0, "", 0)
        assert peer("bad") in ann.follower._lines.shunned
        assert len(asked) == 2  # who it is, and its log
        await trio.sleep(SHUNNED + 60)
        assert len(asked) == 4  # and once more


async def test_a_peer_of_another_swarm_is_left_alone(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        host = await swarm.issuer()
        _, sessions = await swarm.listen("stranger", saying())
        session = await sessions.to(host.peer_id, host.addresses)
        other = bytes(32)
        with pytest.raises(ValidationFailed, match="another swarm"):
            await ask_genesis(session, other)
        with pytest.raises(ValidationFailed, match="another swarm"):
            await submit(session, other, bond(1, 1))
        async with follow(session, other, 0) as entries:
            with pytest.raises(ValidationFailed, match="another swarm"):
                await anext(entries)
        assert (await ask_genesis(session, SWARM)).genesis == GENESIS


@pytest.mark.parametrize("claim", ["no binding", "another's binding", "own account"])
async def test_nobody_else_passes_for_the_issuer(autojump_clock: MockClock, claim: str) -> None:
    """Nothing is submitted to whoever cannot prove it, so that nobody refuses in the issuer's name."""
    async with open_swarm() as swarm:
        said = {
            "no binding": None,
            "another's binding": binding("issuer"),
            "own account": binding("liar", BOB),
        }[claim]
        asked: list[Question] = []
        inner = saying(Entered(1), introduction=Introduction(GENESIS, 0, said))
        liar, _ = await swarm.listen("liar", noting(asked, inner))
        ann = await swarm.member("ann", liar)
        with pytest.raises(NodeUnreachable):
            await ann.follower.submit(bond(1, 1))
        assert asked
        assert not any(isinstance(question, Submit) for question in asked)


@pytest.mark.parametrize("answer", [Entered(1), Entered((1 << 64) - 1), Introduction(GENESIS)])
async def test_an_issuer_that_does_not_enter_what_it_says(autojump_clock: MockClock, answer: Answer) -> None:
    async with open_swarm() as swarm:
        host, _ = await swarm.listen(
            "issuer", saying(answer, introduction=Introduction(GENESIS, 0, binding("issuer")))
        )
        ann = await swarm.member("ann", host)
        with pytest.raises((TransactionFailed, NetworkError)):
            await ann.follower.submit(bond(1, 1))
        assert ann.follower.height == 0


@pytest.mark.parametrize("message", [b"", b"\xff" * 100, bytes(1 << 17)])
async def test_malformed_and_huge_messages_are_refused(autojump_clock: MockClock, message: bytes) -> None:
    async with open_swarm() as swarm:
        host = await swarm.issuer()
        _, sessions = await swarm.listen("rude", saying())
        session = await sessions.to(host.peer_id, host.addresses)
        async with session.call(PROTOCOL, message) as call:
            with pytest.raises(ValidationFailed):
                await call.receive()

        async def rude(call: Call, first: bytes) -> None:
            await call.send(message)

        strange = await swarm._stack.enter_async_context(swarm.network.host(peer("strange")))
        await swarm._stack.enter_async_context(open_sessions(strange, {PROTOCOL: rude}))
        ann = await swarm.member("ann", strange)
        await trio.sleep(5)
        assert peer("strange") in ann.follower._lines.shunned


async def test_whoever_asks_too_much_is_told_to_wait(autojump_clock: MockClock) -> None:
    async with open_swarm() as swarm:
        host = await swarm.issuer()
        _, sessions = await swarm.listen("greedy", saying())
        session = await sessions.to(host.peer_id, host.addresses)
        busy = 0

        async def hold() -> None:
            nonlocal busy
            async with follow(session, SWARM, 0) as entries:
                try:
                    await anext(entries)
                except Exception as error:
                    busy += "Too many follow" in str(error)

        async with trio.open_nursery() as nursery:
            for _ in range(PER_PEER + 3):
                nursery.start_soon(hold)
            await trio.sleep(2)
            assert busy == 3
            nursery.cancel_scope.cancel()
        refused = 0
        for _ in range(80):
            try:
                await ask_genesis(session, SWARM)
            except Exception as error:
                refused += "too often" in str(error)
        assert refused
