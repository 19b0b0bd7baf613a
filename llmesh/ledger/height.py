"""Height: how many entries a ledger has, for those who wait until there are more."""

from __future__ import annotations

import trio

__all__ = ["Height"]


class Height:
    """A number that only grows."""

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self._grown = trio.Event()

    def raise_to(self, value: int) -> None:
        """Let those know that wait for it."""
        self.value = value
        self._grown.set()
        self._grown = trio.Event()

    async def after(self, value: int) -> int:
        """Wait until it is above `value`; what it is then."""
        await trio.lowlevel.checkpoint()
        while self.value <= value:
            await self._grown.wait()
        return self.value
