"""Sessions that are closing, asked for more by tasks that have not noticed yet."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.ids import PeerId
from llmesh.errors import NodeUnreachable
from llmesh.net.memory import MemoryNetwork
from llmesh.net.sessions import open_sessions


async def test_closed_sessions_dial_nobody_and_take_no_link(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with network.host(PeerId("a")) as ours, network.host(PeerId("b")) as theirs:
        async with open_sessions(ours, {}) as sessions:
            pass
        with pytest.raises(NodeUnreachable, match="shutting down"):
            await sessions.to(PeerId("b"), theirs.addresses)
        link = await theirs.dial(PeerId("a"), ours.addresses)
        await sessions.accept(link)
        await trio.testing.wait_all_tasks_blocked()
        assert sessions.live() == []
