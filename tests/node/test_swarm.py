"""Joining a swarm, with real nodes on loopback in one process."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from llmesh.core.address import NOBODY
from llmesh.core.amount import Amount
from llmesh.core.invite import Invite, invite_from_text, invite_text
from llmesh.core.operations import Bond
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import (
    Conflict,
    InsufficientBalance,
    InsufficientStake,
    NotFound,
    TransactionFailed,
    ValidationFailed,
)
from llmesh.ledger.local import verify_ledger
from llmesh.mesh.events import EventName
from llmesh.mesh.follower import Follower
from llmesh.mesh.teller import sendings
from llmesh.node import values
from llmesh.node.backup import restore
from llmesh.node.cli import main
from llmesh.node.config import NodeConfig
from llmesh.node.desk import open_desk
from llmesh.node.faults import StartRefused
from llmesh.node.open import open_node
from llmesh.node.running import Node

MESH = Amount.parse
Make = Callable[..., NodeConfig]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def config(name: str, **options: object) -> NodeConfig:
        plain = NodeConfig(port=0, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, data_dir=tmp_path / name)
        return replace(plain, **options)  # type: ignore[arg-type]

    return config


@asynccontextmanager
async def joined(make: Make, credit: str = "5000", **options: object) -> AsyncIterator[tuple[Node, Node]]:
    async with open_node(make("issuer")) as issuer:
        invite = values.invite(await issuer.invite(MESH(credit)))
        async with open_node(make("member", join=invite, **options)) as member:
            yield issuer, member


async def money(node: Node) -> tuple[Amount, Amount]:
    account = await node.swarm.ledger.account(node.swarm.signer.address)
    return account.balance, account.stake


async def until(node: Node, balance: Amount, stake: Amount) -> None:
    with trio.fail_after(20):
        while await money(node) != (balance, stake):
            await node.swarm.ledger.after(node.swarm.ledger.height)


async def test_an_invited_node_takes_its_credit_and_bonds_its_stake(make: Make) -> None:
    async with joined(make, stake=MESH(1000)) as (issuer, member):
        assert await money(member) == (MESH(4000), MESH(1000))
        seen = await issuer.swarm.ledger.account(member.swarm.signer.address)
        assert (seen.balance, seen.stake) == await money(member)
        assert await money(issuer) == (MESH(995_000), Amount(0))
        status = await member.status()
        assert status.stake == MESH(1000)
        assert status.swarm is not None
        assert (status.swarm.issuer, status.swarm.balance, status.swarm.entries) == (False, MESH(4000), 2)
        hosting = (await issuer.status()).swarm
        assert hosting is not None
        assert (hosting.issuer, hosting.id, hosting.alarm) == (True, status.swarm.id, "")
        assert isinstance(member.swarm.ledger, Follower)
        assert issuer.swarm.log.head == member.swarm.log.head
        with pytest.raises(ValidationFailed, match="without a credit"):
            await member.invite(MESH(1))
        friend = values.invite(await member.invite())
        assert friend is not None
        assert (friend.genesis, friend.credit) == (issuer.swarm.log.genesis.hash, None)
        async with open_node(make("friend", join=friend)) as third:
            assert await money(third) == (Amount(0), Amount(0))
            account = third.swarm.signer.address
            assert await member.send(account, MESH(7)) == account
            await until(third, MESH(7), Amount(0))


async def test_money_is_sent_once_whatever_happens_meanwhile(make: Make) -> None:
    async with joined(make) as (issuer, member):
        mine, theirs = member.swarm.signer.address, issuer.swarm.signer.address
        with pytest.raises(NotFound, match="announced no account") as caught:
            await member.send(issuer.peer_id, MESH(1))
        assert "llmesh wallet" in caught.value.next_step
        for to, amount, why in (
            (mine, MESH(1), "own"),
            (NOBODY, MESH(1), "nobody"),
            (theirs, MESH(0), "more"),
        ):
            with pytest.raises(ValidationFailed, match=why):
                await member.send(to, amount)
        with pytest.raises(InsufficientBalance, match=r"has 5000 MESH free to use, not 5000\.000001"):
            await member.send(theirs, MESH("5000.000001"))
        with member.events.subscribed([EventName.MODEL_ANNOUNCE]) as heard, trio.fail_after(20):
            await issuer.serve(SENTIMENT_ANALYZER, "demo", Amount(0), "1.0.0")
            await anext(heard)
        assert await member.send(issuer.peer_id, MESH(1000)) == theirs
        await until(issuer, MESH(996_000), Amount(0))
    async with open_node(make("member")) as member:
        for _ in range(2):
            with pytest.raises(TransactionFailed, match="cannot be reached"):
                await member.send(theirs, MESH(50))
    async with open_node(make("issuer")) as issuer:
        again = values.invite(await issuer.invite())
        async with open_node(make("member", join=again)) as member:
            await until(member, MESH(3950), Amount(0))
            sent = await sendings(member.wallet.journal, member.swarm.log.chain, mine, 9)
            assert [(row.transfer.amount, row.state) for row in sent] == [
                (MESH(50), "done"), (MESH(1000), "done"),
            ]  # fmt: skip


async def test_a_member_comes_back_with_and_without_its_issuer(make: Make) -> None:
    async with joined(make, stake=MESH(1000)) as (issuer, member):
        used = values.invite(await issuer.invite(MESH(3)))
        before = await money(member)
    async with open_node(make("member", stake=MESH(1000))) as member:  # nobody else is there
        assert await money(member) == before
        with pytest.raises(TransactionFailed, match="cannot be reached"):
            await member.swarm.unbond(MESH(400))
        assert await money(member) == before
    async with open_node(make("issuer")) as issuer:
        again = values.invite(await issuer.invite())
        async with open_node(make("member", join=again)) as member:
            await until(member, MESH(4000), MESH(600))  # what could not be sent before
            with pytest.raises(Conflict, match="possible in") as early:
                await member.swarm.withdraw_stake()
            assert early.value.next_step.startswith("Ask again then")
            with pytest.raises(Conflict, match="on its way out") as none:
                await issuer.swarm.withdraw_stake()
            assert "unbond" in none.value.next_step
            with pytest.raises(InsufficientStake):
                await member.swarm.unbond(MESH(601))
    assert used is not None


async def test_a_credit_is_taken_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    async with open_node(make("issuer")) as issuer:
        line = await issuer.invite(MESH(5))
        for _ in range(2):
            async with open_node(make("first", join=values.invite(line))) as first:
                assert await money(first) == (MESH(5), Amount(0))
        assert "was taken" not in caplog.text
        async with open_node(make("second", join=values.invite(line))) as second:
            assert await money(second) == (Amount(0), Amount(0))
        assert "The credit of the invite was taken by another node" in caplog.text
        with pytest.raises(StartRefused, match=r"stake of 6 MESH.*llmesh invite --credit.*issuer.*--join"):
            async with open_node(
                make("third", join=values.invite(await issuer.invite(MESH(5))), stake=MESH(6))
            ):
                pass
        with pytest.raises(InsufficientBalance):
            await issuer.invite(MESH(1_000_000))


async def test_a_lone_swarm_is_left_and_kept_aside(make: Make) -> None:
    config = make("member", stake=MESH(1))
    async with open_node(config) as lone:
        old = lone.swarm.log.genesis.hash
    async with open_node(make("issuer")) as issuer:
        line = values.invite(await issuer.invite(MESH(5)))
        async with open_node(replace(config, join=line)) as member:
            assert member.swarm.log.genesis == issuer.swarm.log.genesis
            assert await money(member) == (MESH(4), MESH(1))
    [aside] = config.data_dir.glob("ledger-*")
    assert verify_ledger(aside).genesis.hash == old


async def test_a_swarm_with_others_is_not_left(make: Make) -> None:
    async with joined(make) as (_, _member):
        pass
    async with open_node(make("stranger")) as stranger:
        line = values.invite(await stranger.invite())
        for name in ("issuer", "member"):
            before = (make(name).data_dir / "ledger.db").read_bytes()
            with pytest.raises(StartRefused, match=r"belongs to the swarm .* already"):
                async with open_node(make(name, join=line)):
                    pass
            assert (make(name).data_dir / "ledger.db").read_bytes() == before


async def test_an_invite_that_leads_nowhere_changes_nothing(make: Make) -> None:
    async with open_node(make("issuer")) as issuer:
        good = values.invite(await issuer.invite())
        assert good is not None
        late = replace(good, expires_at=int(time.time()) - 1)
        other = replace(good, genesis=bytes(32))
        for wrong, reason in ((late, "expired"), (other, "another swarm")):
            with pytest.raises(StartRefused, match=reason):
                async with open_node(make("member", join=wrong)):
                    pass
    with pytest.raises(StartRefused, match="No member"):
        async with open_node(make("member", join=good)):
            pass
    assert not (make("member").data_dir / "ledger.db").exists()
    async with open_node(make("member")) as member:
        assert await money(member) == (MESH(1_000_000), Amount(0))


async def test_the_owner_makes_invites_by_the_socket(make: Make) -> None:
    config = make("issuer")
    async with open_node(config) as issuer, open_desk(config.data_dir) as desk:
        told = await desk.post("/owner/invite", {"credit": "5000", "lifetime": 60})
        found = invite_from_text(told["invite"], time.time())
        assert found.credit is not None
        assert (found.credit.credit.amount, found.addresses) == (MESH(5000), issuer.dial_addresses)
        assert found.expires_at <= time.time() + 60
        await issuer.swarm.teller.perform(Bond(MESH(1)))
    shown = CliRunner().invoke(main, ["ledger", "verify", "--json", "--data-dir", str(config.data_dir)])
    assert json.loads(shown.output)["entries"] == 1
    assert "is whole. Entries: 1" in CliRunner().invoke(
        main, ["ledger", "verify", "--data-dir", str(config.data_dir)]
    ).output  # fmt: skip


def test_invites_are_read_as_options() -> None:
    invite = Invite(("/ip4/127.0.0.1/tcp/1",), bytes(32), bytes(20), 1)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="p2p"):
        values.invite(invite_text(invite))
    with pytest.raises(Exception, match="begins with llmesh1-"):
        values.invite("hello")
    assert values.invite(None) is None


async def test_an_issuer_is_not_put_back_to_less_than_its_members_have(make: Make, tmp_path: Path) -> None:
    """With the log of a member it goes on where it was."""
    saved = tmp_path / "saved"
    async with joined(make) as (issuer, member):
        async with open_desk(tmp_path / "issuer") as desk:
            await desk.post("/owner/backup", {"path": str(saved)})
        await issuer.send(member.swarm.signer.address, MESH(7))
        await until(member, MESH(5007), Amount(0))
        async with open_desk(tmp_path / "member") as desk:
            await desk.post("/owner/backup", {"path": str(tmp_path / "theirs")})
    shutil.rmtree(tmp_path / "issuer")
    with pytest.raises(Conflict, match="issues its swarm's money") as caught:
        restore(saved, tmp_path / "issuer")
    assert "--latest-ledger" in caught.value.next_step
    assert not (tmp_path / "issuer" / "ledger.db").exists()
    shutil.copy(tmp_path / "theirs" / "ledger.db", saved / "ledger.db")
    restore(saved, tmp_path / "issuer", latest=True)
    async with open_node(make("issuer")) as issuer:
        again = values.invite(await issuer.invite())
        async with open_node(make("member", join=again)) as member:
            await issuer.send(member.swarm.signer.address, MESH(1))
            await until(member, MESH(5008), Amount(0))
            assert issuer.swarm.log.head == member.swarm.log.head
    restore(tmp_path / "theirs", tmp_path / "other")  # a member's needs no such word
