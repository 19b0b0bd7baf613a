"""Courier: tells webhooks what happens, durably: an event is in the outbox before it is first sent.

A delivery is tried until it is answered with a 2xx, each time later than the last, for `hours`; then it
is a dead letter, which its owner may have sent again.  The receiver knows a repeated one by its
webhook-id.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import Protocol

import trio

from llmesh.core import webhook
from llmesh.core.webhook import wait_before, waited
from llmesh.errors import MeshError, TransactionFailed
from llmesh.gateway.webhooks.shapes import event_body
from llmesh.journal.open import Journal
from llmesh.journal.outbox import (
    AddIntent,
    BuryIntent,
    CompleteIntent,
    DelayIntent,
    ForgetIntents,
    Intent,
    due_intents,
    next_times,
)
from llmesh.journal.webhooks import Webhook, all_webhooks
from llmesh.journal.writer import Change
from llmesh.mesh.events import EventName, Events, InferenceEnded, MeshEvent, ModelDeployed, Told

__all__ = ["KIND", "Callout", "Courier", "CourierSettings", "open_courier"]

_log = logging.getLogger(__name__)

KIND = "webhook"
"""What its intents are called in the outbox."""
_TOLD_OF = (EventName.INFERENCE, EventName.MODEL_DEPLOYED)
_KEPT = 30 * 86_400.0
_LONGEST = 3600.0
_GONE = 410


class Callout(Protocol):
    """How a URL that somebody else chose is called; `net.callout` does, the public internet only."""

    async def check(self, url: str) -> None:
        """Raises ValidationFailed for a URL that may not be called."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the answer.  Raises ValidationFailed, NetworkError."""


@dataclass(frozen=True, slots=True)
class CourierSettings:
    """For how many `hours` a delivery is tried, how many go `at_once` to one webhook, how many may wait."""

    hours: float = 24.0
    at_once: int = 4
    capacity: int = 4096


class Courier:
    """Sends what is due; only `open_courier` makes one, because it runs the tasks."""

    def __init__(
        self,
        journal: Journal,
        callout: Callout,
        settings: CourierSettings,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self.journal = journal
        self.callout = callout
        self.clock = clock
        self._settings = settings
        self._random = random
        self._hooks: dict[str, Webhook] = {}
        self._busy: set[str] = set()
        self._news = trio.Event()

    @property
    def hooks(self) -> Sequence[Webhook]:
        """All webhooks, the oldest first."""
        return tuple(self._hooks.values())

    def hook(self, id: str) -> Webhook | None:
        """The webhook of that id."""
        return self._hooks.get(id)

    async def change(self, change: Change) -> None:
        """Add, change or remove a webhook.  Raises what the change raises, and TransactionFailed.

        Once it is written down a cancel waits until it holds.
        """
        await self.journal.commit(change)
        with trio.CancelScope(shield=True):  # one short read
            await self.load()

    async def load(self) -> None:
        """Know the webhooks that are in the journal, and look for what is due."""
        self._hooks = {hook.id: hook for hook in await self.journal.read(all_webhooks)}
        self._news.set()

    async def ping(self, hook: Webhook) -> None:
        """Send a test event at once.  Raises MeshError where it does not arrive."""
        _, body = event_body(None, self.clock())
        await self._post(hook, _message_id(), body)

    async def tell(self, events: Sequence[MeshEvent]) -> None:
        """Put events into the outbox, all at once, for every webhook that wants them."""
        intents = [intent for event in events for intent in self._intents(event)]
        if intents:
            await self.journal.commit(*intents)
            self._news.set()

    def _intents(self, event: MeshEvent) -> Iterator[AddIntent]:
        if not isinstance(event, InferenceEnded | ModelDeployed):
            return
        if isinstance(event, InferenceEnded) and event.error is not None:
            return
        now = self.clock()
        name, body = event_body(event, now)
        for hook in self._hooks.values():
            if name in hook.events:
                yield _intent(hook, body, now)

    async def run(self) -> None:
        """Send what is due, until cancelled; a webhook that is slow holds up none but itself."""
        async with trio.open_nursery() as nursery:
            while True:
                self._news = trio.Event()
                try:
                    wait = await self._begin_due(nursery)
                except TransactionFailed as error:
                    _log.error("Webhooks wait for the journal: %s", error.message)
                    wait = 1.0
                with trio.move_on_after(wait):
                    await self._news.wait()

    async def _begin_due(self, nursery: trio.Nursery) -> float:
        """See to every webhook for which something is due; the seconds until that is so for another."""
        await self.journal.commit(ForgetIntents(self.clock() - _KEPT))
        times = await self.journal.read(next_times, KIND)
        now, wait = self.clock(), _LONGEST
        for hook in times.keys() - self._busy:
            if times[hook] <= now:
                self._busy.add(hook)
                nursery.start_soon(self._send_due, hook)
            else:
                wait = min(wait, times[hook] - now)
        return wait

    async def _send_due(self, hook: str) -> None:
        try:
            due = await self.journal.read(due_intents, KIND, hook, self.clock(), self._settings.at_once)
            async with trio.open_nursery() as nursery:
                for intent in due:
                    nursery.start_soon(self._send, intent)
        except* TransactionFailed as faults:
            _log.error("A webhook waits for the journal: %s", faults.exceptions[0])
        finally:
            self._busy.discard(hook)
            self._news.set()

    async def _send(self, intent: Intent) -> None:
        hook = self._hooks.get(intent.account)
        try:
            outcome = await self._outcome(hook, intent) if hook else BuryIntent(intent.id, "It was removed.")
            await self.journal.commit(outcome)
        except MeshError as error:  # the same delivery is due again
            _log.error("What became of a webhook's delivery cannot be kept: %s", error.message)

    async def _outcome(self, hook: Webhook, intent: Intent) -> Change:
        try:
            await self._post(hook, intent.id, intent.body)
        except MeshError as error:
            tries = intent.attempts + 1
            if waited(tries) > self._settings.hours * 3600 or isinstance(error, _Gone):
                return BuryIntent(intent.id, error.message)
            wait = wait_before(tries, self._random.random())
            return DelayIntent(intent.id, self.clock() + wait, error.message)
        return CompleteIntent(intent.id)

    async def _post(self, hook: Webhook, id: str, body: bytes) -> None:
        now = self.clock()
        headers = webhook.headers(id, int(now), body, hook.secrets(now))
        status = await self.callout.post(hook.url, headers, body)
        if status == _GONE:
            raise _Gone("The webhook answered 410: it wants no more.")
        if not 200 <= status < 300:
            raise TransactionFailed(f"The webhook answered {status}.")


class _Gone(TransactionFailed):
    """The receiver says that it is gone for good."""


@asynccontextmanager
async def open_courier(
    journal: Journal,
    events: Events,
    callout: Callout,
    settings: CourierSettings,
    clock: Callable[[], float] = time.time,
) -> AsyncGenerator[Courier]:
    """A courier at work for as long as the block lasts; what it has not sent then waits for the next."""
    courier = Courier(journal, callout, settings, clock, SystemRandom())
    await courier.load()
    with events.subscribed(_TOLD_OF, settings.capacity) as subscription:

        async def keep(told: Sequence[Told]) -> None:
            try:
                with trio.CancelScope(shield=True):  # one commit
                    await courier.tell([each.event for each in told])
            except MeshError as error:
                _log.error("Events for webhooks cannot be kept: %s", error.message)

        async def listen() -> None:
            async for told in subscription:
                if told.dropped:
                    _log.error("%d events for webhooks are lost: the disk is too slow.", told.dropped)
                await keep([told, *subscription.taken()])

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                nursery.start_soon(courier.run)
                yield courier
                nursery.cancel_scope.cancel()
        finally:
            await keep(subscription.taken())  # what was told last


def _intent(hook: Webhook, body: bytes, now: float) -> AddIntent:
    return AddIntent(Intent(_message_id(), KIND, hook.id, None, body, now, now))


def _message_id() -> str:
    return f"msg_{secrets.token_hex(16)}"
