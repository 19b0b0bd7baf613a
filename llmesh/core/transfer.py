"""Transfer: who fetches which block next, and whether what came is what was asked for.

Sans-IO.  Each source asks for its next block when it has room, so fast sources get more; when
nothing unasked is left, a source may also take over what a clearly slower one still owes.  What
has been verified is never asked for again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmesh.core.ids import PeerId
from llmesh.core.manifest import Block, Manifest
from llmesh.errors import ValidationFailed

__all__ = ["Transfer"]

IN_FLIGHT = 4
"""Blocks that one source may owe at a time."""

TAKE_OVER = 2.0
"""A block is taken over when its source needs this many times longer than the taker would."""

UNKNOWN = 1.0
"""Seconds that a source of unknown speed is taken to need for a block."""


@dataclass(slots=True)
class _Source:
    """Bytes per second by its last blocks (0 while unknown), and when each owed block was asked for.

    A source answers in order, so its time for a block begins when the one before it came.
    """

    rate: float = 0.0
    last: float = -math.inf
    owed: dict[Block, float] = field(default_factory=dict)

    def wait(self, place: int, size: int, now: float) -> float:
        """Seconds to expect for the owed block in that place: by its rate, and no less than its silence."""
        silence = now - max(self.last, next(iter(self.owed.values())))
        return max(silence, (place + 1) * size / self.rate if self.rate else 0.0)


class Transfer:
    """The state of fetching one model; times are seconds of any monotonic clock."""

    def __init__(self, manifest: Manifest, have: Iterable[Block] = ()) -> None:
        self._entries = {entry.file.path: entry for entry in manifest.files}
        held = set(have)
        self.total = manifest.size
        self._missing = {block: self.size(block) for block in manifest.blocks() if block not in held}
        self._remaining = sum(self._missing.values())
        self._sources: dict[PeerId, _Source] = {}
        # Blocks nobody has been asked for; a dict keeps the order of the files.
        self._unasked = dict.fromkeys(self._missing)

    @property
    def done(self) -> bool:
        """Whether every block has been verified."""
        return not self._missing

    @property
    def remaining(self) -> int:
        """Bytes not yet verified."""
        return self._remaining

    @property
    def sources(self) -> frozenset[PeerId]:
        """Who takes part."""
        return frozenset(self._sources)

    def size(self, block: Block) -> int:
        """Bytes of a block."""
        return self._entries[block.path].block_size(block.number)

    def digest(self, block: Block) -> bytes:
        """The BLAKE3 that a block has by the manifest."""
        return self._entries[block.path].digests[block.number]

    def join(self, source: PeerId) -> None:
        """A source takes part from now on."""
        self._sources.setdefault(source, _Source())

    def leave(self, source: PeerId) -> None:
        """A source is gone; what it owed is asked of others, first of all."""
        lost = self._sources.pop(source, _Source()).owed
        again = [block for block in lost if block in self._missing and not self._asked(block)]
        self._unasked = dict.fromkeys([*again, *self._unasked])

    def next(self, source: PeerId, now: float) -> Block | None:
        """The block to ask this source for; None where it owes enough or nothing is left for it."""
        state = self._sources[source]
        if len(state.owed) >= IN_FLIGHT:
            return None
        block = next(iter(self._unasked), None) or self._take_over(state, now)
        if block is not None:
            self._unasked.pop(block, None)
            state.owed[block] = now
        return block

    def arrived(self, source: PeerId, block: Block, digest: bytes, now: float) -> bool:
        """Judge a block by the BLAKE3 of what came; True where it is good and the first of its kind.

        Say so only of what has been written: it is never asked for again.  A block that was not asked
        for or is not right expels its source: ValidationFailed names it.
        """
        state = self._sources[source]
        asked = state.owed.get(block)
        if asked is None or digest != self.digest(block):
            self.leave(source)
            raise ValidationFailed(
                f"The peer sent a wrong block {block.number} of {block.path}.", peer_id=source
            )
        del state.owed[block]
        measured = self.size(block) / max(now - max(asked, state.last), 1e-6)
        state.last = now
        state.rate = measured if not state.rate else 0.7 * state.rate + 0.3 * measured
        size = self._missing.pop(block, 0)
        self._remaining -= size
        return size > 0

    def _asked(self, block: Block) -> bool:
        return any(block in state.owed for state in self._sources.values())

    def _take_over(self, taker: _Source, now: float) -> Block | None:
        """Of the blocks that others still owe, the one due last, if this source is clearly sooner."""
        due: dict[Block, float] = {}
        for state in self._sources.values():
            for place, block in enumerate(state.owed):
                wait = state.wait(place, self.size(block), now)
                due[block] = min(wait, due.get(block, math.inf))
        open_ = [block for block in due if block in self._missing and block not in taker.owed]
        latest = max(open_, key=due.__getitem__, default=None)
        if latest is None:
            return None
        ours = (1 + len(taker.owed)) * self.size(latest) / taker.rate if taker.rate else UNKNOWN
        return latest if due[latest] > TAKE_OVER * ours else None
