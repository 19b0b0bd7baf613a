"""Announcer: owns this node's own announcement and keeps it current until it is withdrawn.

Changes go out at once, within the pace that peers pass on; renewals are rare enough that the mesh as
a whole makes about two a minute, however many announce.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random, SystemRandom
from typing import TypeAlias

import trio

from llmesh.core.amount import Amount
from llmesh.core.announcement import (
    MAX_ADDRESSES,
    MAX_LIFETIME,
    Announcement,
    Offer,
    SignedAnnouncement,
    sign_announcement,
)
from llmesh.core.credentials import Credentials
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.peering import Pace
from llmesh.errors import InsufficientStake, ValidationFailed
from llmesh.mesh.discovery import Discovery
from llmesh.mesh.gossip import BURST, PERIOD

__all__ = ["Announcer", "Author"]

log = logging.getLogger(__name__)

CHECK = 5.0
"""Seconds between looks at what may have changed by itself: addresses, time, an announcement of an
earlier life of this node that others still hold."""
SHORTEST = 600.0
PER_ANNOUNCEMENT = 30.0
LONGEST = MAX_LIFETIME / 3
LIVES = 3
"""How many renewals may be missed before the announcement dies."""

_Key: TypeAlias = tuple[ModelId, str, str]


@dataclass(frozen=True, slots=True)
class Author:
    """Who announces: `sign` is Ed25519 under the announcement's domain, `addresses` where to dial now.

    `next_sequence` gives a number above all that it gave before, over restarts too; `credentials` are those
    of its account.
    """

    peer_id: PeerId
    sign: Callable[[bytes], bytes]
    next_sequence: Callable[[], int]
    addresses: Callable[[], tuple[str, ...]]
    credentials: Credentials


class Announcer:
    """Says what this node offers.  A change that others would refuse raises and changes nothing."""

    def __init__(
        self,
        author: Author,
        discovery: Discovery,
        *,
        stake: Amount,
        min_stake: Amount,
        rng: Random | None = None,
    ) -> None:
        self._author = author
        self._discovery = discovery
        self._stake = stake
        self._min_stake = min_stake
        self._rng = rng or SystemRandom()
        self._offers: dict[_Key, Offer] = {}
        self._published: SignedAnnouncement | None = None
        self._renew_at = 0.0
        # One change less than peers pass on, so that a restart is never the one too many.
        self._pace = Pace(BURST - 1, PERIOD)
        self._late = False

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What is offered now."""
        return tuple(self._offers.values())

    @property
    def stake(self) -> Amount:
        """What is announced as staked."""
        return self._stake

    def offer(self, offer: Offer) -> None:
        """Announce one more offer, or a new price for the same model, name and version.

        Raises InsufficientStake below the network's minimum, ValidationFailed where the offers no
        longer fit one announcement.
        """
        self._change({**self._offers, _key(offer): offer}, self._stake)

    def retract(self, model: ModelId) -> None:
        """Offer a model no longer, under any name."""
        left = {key: offer for key, offer in self._offers.items() if offer.model_id != model}
        if len(left) < len(self._offers):
            self._change(left, self._stake)

    def restake(self, stake: Amount) -> None:
        """Announce another stake.  Raises InsufficientStake where it no longer covers what is offered."""
        self._change(self._offers, stake)

    async def withdraw(self) -> None:
        """Offer nothing any more and wait until connected peers know; the caller bounds the wait."""
        self._offers, self._late = {}, False
        if self._published is not None and self._published.announcement.offers:
            self._published = self._signed({}, self._stake)
            await self._discovery.withdraw(self._published)

    async def run(self) -> None:
        """Renew in time, and announce what has changed by itself."""
        while True:
            await trio.sleep(CHECK)
            if self._pace.wait(None, trio.current_time()) > 0:
                continue
            if self._late or (self._offers and self._is_due()):
                try:
                    self._publish(self._signed(self._offers, self._stake))
                except ValidationFailed as error:  # more addresses leave less room for offers
                    log.warning("the announcement was not renewed: %s", error.message)

    def _change(self, offers: dict[_Key, Offer], stake: Amount) -> None:
        if offers and stake < self._min_stake:
            raise InsufficientStake(
                f"Announcing takes a stake of at least {self._min_stake} MESH in this network;"
                f" this node has {stake} MESH.",
                next_step=f"Start this node with --stake {self._min_stake}, or more.",
            )
        if not offers and self._published is None:
            self._stake = stake
            return
        record = self._signed(offers, stake)
        self._offers, self._stake = offers, stake
        self._publish(record)

    def _signed(self, offers: dict[_Key, Offer], stake: Amount) -> SignedAnnouncement:
        now = int(self._discovery.clock())
        announcement = Announcement(
            peer_id=self._author.peer_id,
            sequence=max(self._author.next_sequence(), self._held_sequence() + 1),
            addresses=self._addresses(),
            offers=tuple(self._priced(offer, now) for offer in offers.values()),
            stake=stake,
            issued_at=now,
            expires_at=now + int(LIVES * self._period() if offers else self._left(now)),
            account=self._author.credentials.binding(now),
        )
        return sign_announcement(announcement, self._author.sign, now=now)

    def _priced(self, offer: Offer, now: int) -> Offer:
        """The offer with its terms, where it costs something."""
        return replace(offer, terms=self._author.credentials.terms(offer, now)) if offer.fee else offer

    def _publish(self, record: SignedAnnouncement) -> None:
        """Now, or as soon as the pace allows."""
        self._late = not self._pace.take(None, trio.current_time())
        if not self._late:
            self._published = record
            self._renew_at = self._discovery.clock() + self._period() * self._rng.uniform(0.9, 1.0)
            self._discovery.publish(record)

    def _is_due(self) -> bool:
        said = self._published
        return (
            said is None
            or self._discovery.clock() >= self._renew_at
            or said.announcement.addresses != self._addresses()
            or said.announcement.sequence < self._held_sequence()
        )

    def _addresses(self) -> tuple[str, ...]:
        """As many as an announcement may tell."""
        return tuple(self._author.addresses())[:MAX_ADDRESSES]

    def _held_sequence(self) -> int:
        """The highest number in our name; peers may hold one of an earlier life."""
        held = self._discovery.directory.held(self._author.peer_id)
        return held.announcement.sequence if held is not None else 0

    def _period(self) -> float:
        return min(max(SHORTEST, PER_ANNOUNCEMENT * len(self._discovery.directory)), LONGEST)

    def _left(self, now: int) -> int:
        """A withdrawal lives as long as what it withdraws, so that this cannot come back."""
        before = self._published
        return max(60, before.announcement.expires_at - now if before is not None else 0)


def _key(offer: Offer) -> _Key:
    return offer.model_id, offer.card.name, offer.card.version
