"""What a payer writes down later is there once somebody asks for it."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.channel import Deposit
from llmesh.core.ids import PeerId
from llmesh.core.voucher import channel_id
from llmesh.journal.channels import AddChannel, ChannelRow
from llmesh.journal.columns import Side
from llmesh.mesh.backlog import Backlog
from tests.core.banking import ALICE, BOB, CHAIN, config
from tests.mesh.journals import QuickJournal

OWNER, PEER = PeerId("12D3KooW" + "A" * 44), PeerId("12D3KooW" + "B" * 44)
CONFIG = config(ALICE, BOB)


def some_change() -> AddChannel:
    mark = channel_id(CONFIG, CHAIN)
    return AddChannel(ChannelRow(Side.PAYER, mark, PEER, CONFIG, Deposit(Amount(500)), Amount(30)))


async def test_who_flushes_waits_for_a_write_under_way(autojump_clock: MockClock) -> None:
    journal = QuickJournal(OWNER)
    backlog = Backlog(journal)
    backlog.add(some_change())
    journal.delay = 5.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backlog.flush)
        await trio.sleep(1)
        await backlog.flush()
        assert len(journal.commits) == 1


async def test_who_only_reads_does_not_mind_a_full_disk(autojump_clock: MockClock) -> None:
    journal = QuickJournal(OWNER)
    backlog = Backlog(journal)
    backlog.add(some_change())
    journal.full = True
    await backlog.catch_up()
    assert not journal.commits
    journal.full = False
    await backlog.catch_up()
    assert len(journal.commits) == 1
