"""The outbox: one intent stays one intent, its nonce is taken once, and nothing waits unseen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmesh.errors import Conflict
from llmesh.journal.open import open_journal
from llmesh.journal.outbox import (
    AddIntent,
    BuryIntent,
    CompleteIntent,
    DelayIntent,
    ForgetIntents,
    Intent,
    IntentState,
    ReviveIntent,
    dead_intents,
    due_intents,
    find_intent,
    next_nonce,
    next_times,
)
from llmesh.journal.schema import migrate

if TYPE_CHECKING:
    from tests.journal.conftest import Rows

CLAIM = Intent("claim-1", "settlement", "0xabc", 0, b"claim", created=10.0, next_time=10.0)
HOOK = Intent("hook-1", "webhook", "", None, b"hook", created=11.0, next_time=12.0)


async def test_an_intent_lives_through_tries_and_a_restart(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddIntent(CLAIM), AddIntent(HOOK))
        await journal.commit(DelayIntent("claim-1", 20.0, "refused", b"hash"))
        await journal.commit(DelayIntent("claim-1", 30.0, "again"))
    async with open_journal(path, rows.owner) as journal:
        tried = replace(CLAIM, next_time=30.0, attempts=2, last_error="again", reference=b"hash")
        assert await journal.read(find_intent, "claim-1") == tried
        assert await journal.read(due_intents, "settlement", CLAIM.account, 29.9, 10) == []
        assert await journal.read(due_intents, "settlement", CLAIM.account, 30.0, 10) == [tried]
        assert await journal.read(next_times, "settlement") == {CLAIM.account: 30.0}
        await journal.commit(CompleteIntent("claim-1"))
        await journal.commit(CompleteIntent("claim-1"))
        assert await journal.read(next_times, "settlement") == {}
        assert await journal.read(due_intents, "webhook", HOOK.account, 99.0, 10) == [HOOK]
        with pytest.raises(Conflict):
            await journal.commit(DelayIntent("claim-1", 40.0))


async def test_the_same_intent_is_added_once_and_another_is_refused(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddIntent(CLAIM))
        await journal.commit(AddIntent(replace(CLAIM, created=99.0)))  # the caller tried again after a crash
        assert await journal.read(find_intent, "claim-1") == CLAIM
        with pytest.raises(Conflict, match="another one"):
            await journal.commit(AddIntent(replace(CLAIM, body=b"other")))
        for nonce in (0, 2, -1):
            with pytest.raises(Conflict, match="next nonce of 0xabc is 1"):
                await journal.commit(AddIntent(replace(CLAIM, id="claim-2", nonce=nonce)))
        await journal.commit(AddIntent(replace(CLAIM, id="claim-2", nonce=1)))
        assert await journal.read(next_nonce, "0xabc") == 2
        assert await journal.read(next_nonce, "0xdef") == 0


async def test_a_dead_letter_is_seen_and_can_be_revived(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddIntent(HOOK), DelayIntent("hook-1", 20.0, "no answer"))
        with pytest.raises(Conflict):
            await journal.commit(ReviveIntent("hook-1", 1.0))
        await journal.commit(BuryIntent("hook-1", "gone"))
        assert await journal.read(due_intents, "webhook", HOOK.account, 99.0, 10) == []
        [dead] = await journal.read(dead_intents, "webhook", 10)
        assert (dead.state, dead.last_error, dead.attempts) == (IntentState.DEAD, "gone", 2)
        await journal.commit(ReviveIntent("hook-1", 50.0))
        assert await journal.read(due_intents, "webhook", HOOK.account, 50.0, 10) == [
            replace(HOOK, next_time=50.0, last_error="gone")
        ]


async def test_what_is_over_is_forgotten_but_its_nonce_stays_taken(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddIntent(CLAIM), AddIntent(replace(CLAIM, id="claim-2", nonce=1)))
        await journal.commit(CompleteIntent("claim-1"))
        await journal.commit(ForgetIntents(1_000.0))
        assert await journal.read(find_intent, "claim-1") is None
        assert await journal.read(find_intent, "claim-2") is not None
        assert await journal.read(next_nonce, "0xabc") == 2


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "delay", "complete", "bury", "revive", "forget"]), st.integers(0, 3)
        ),
        max_size=30,
    )
)
def test_no_nonce_is_given_twice(rows: Rows, steps: list[tuple[str, int]]) -> None:
    db = apsw.Connection(":memory:")
    migrate(db, 0, rows.owner)
    given_away: dict[int, bytes] = {}
    for count, (step, number) in enumerate(steps):
        name = f"i{number}"
        change = {
            "add": AddIntent(Intent(name, "k", "a", number, b"%d" % count, 0.0, 0.0)),
            "delay": DelayIntent(name, 1.0),
            "complete": CompleteIntent(name),
            "bury": BuryIntent(name, ""),
            "revive": ReviveIntent(name, 1.0),
            "forget": ForgetIntents(1.0),
        }[step]
        try:
            change.apply(db)
        except Conflict:
            continue
        if step == "add":
            assert number not in given_away
            given_away[number] = b"%d" % count
    assert sorted(given_away) == list(range(next_nonce(db, "a")))
    waiting = {intent.nonce: intent.body for intent in due_intents(db, "k", "a", 9.0, 99)}
    assert waiting.items() <= given_away.items()
    db.close()
