"""Market: offers as this node counts them, by its own copy of the ledger and not by what is claimed.

A provider's stake counts as far as the ledger shows it for the account that the provider has proved to
be its own.  One whose account is on another ledger, or that names none, is foreign: its stake counts
for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.binding import SignedBinding, check_binding
from llmesh.core.ids import PeerId
from llmesh.core.reference import ModelRef
from llmesh.core.typed import Chain
from llmesh.errors import ValidationFailed
from llmesh.mesh.discovery import Discovery

__all__ = ["Bonds", "Market"]

_NOTHING = Amount(0)
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Bonds:
    """What the ledger says of stakes: `of` tells that of an account, as far as it is known here."""

    chain: Chain
    min_stake: Amount
    of: Callable[[Address], Amount]


class Market:
    """What `discovery` finds, with the stakes that count; `clock` is seconds since 1970."""

    def __init__(self, own: PeerId, discovery: Discovery, bonds: Bonds, clock: Callable[[], float]) -> None:
        self._own = own
        self._discovery = discovery
        self._bonds = bonds
        self._clock = clock
        self._genuine: dict[SignedBinding, bool] = {}

    def lookup(self, ref: ModelRef) -> list[tuple[Offer, Announcement]]:
        """Every offer that the reference names; a member's without the least stake is none."""
        return self._counted(self._discovery.lookup(ref))

    async def find(self, ref: ModelRef) -> None:
        """Ask the mesh for offers that are not known here yet; see `Discovery.find`."""
        await self._discovery.find(ref)

    def search(self, part: str, max_fee: Amount | None, limit: int) -> Sequence[tuple[Offer, Announcement]]:
        """As `Discovery.search`, of what `lookup` would find."""
        most = self._discovery.directory.bounds.offers
        return self._counted(self._discovery.search(part, max_fee, most))[:limit]

    def is_foreign(self, announcement: Announcement) -> bool:
        """Whether its author belongs to another swarm, or does not prove that it belongs to this one."""
        return announcement.peer_id != self._own and self._account(announcement) is None

    def account_of(self, peer: PeerId) -> Address | None:
        """A peer's account on our ledger, if it has announced and proved it."""
        found = (said for said in self._discovery.announcements() if said.peer_id == peer)
        return next(map(self._account, found), None)

    def counted(self, announcement: Announcement) -> Announcement:
        """The announcement with as much of its stake as counts."""
        if announcement.peer_id == self._own:
            return announcement
        account = self._account(announcement)
        bonded = self._bonds.of(account) if account is not None else _NOTHING
        return replace(announcement, stake=min(announcement.stake, bonded))

    def _counted(self, pairs: Iterable[tuple[Offer, Announcement]]) -> list[tuple[Offer, Announcement]]:
        found = [(offer, said, self.counted(said)) for offer, said in pairs]
        return [(offer, counts) for offer, said, counts in found if self._suffices(said, counts.stake)]

    def _suffices(self, announcement: Announcement, stake: Amount) -> bool:
        return stake >= self._bonds.min_stake or self.is_foreign(announcement)

    def _account(self, announcement: Announcement) -> Address | None:
        """Its author's account on our ledger, if that is proved."""
        signed = announcement.account
        if signed is None or signed.binding.chain != self._bonds.chain:
            return None
        if signed.binding.not_after <= self._clock() or not self._is_genuine(signed):
            return None
        return signed.binding.account

    def _is_genuine(self, signed: SignedBinding) -> bool:
        """Whether both keys have signed it; looked at once, since each signature takes 0.1 ms."""
        known = self._genuine.get(signed)
        if known is None:
            try:
                check_binding(signed, now=0)
                known = True
            except ValidationFailed:
                known = False
            if len(self._genuine) >= _REMEMBERED:
                self._genuine.clear()
            self._genuine[signed] = known
        return known
