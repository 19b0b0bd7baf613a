"""Cancel a request after every single step that any task takes, and look for what is left behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.admission import Admission
from llmesh.core.amount import Amount
from llmesh.core.ids import RequestId
from llmesh.core.inference import InferenceRequest
from llmesh.core.reference import ModelRef
from llmesh.errors import ModelFailed
from llmesh.net.call import Call
from llmesh.net.session import Session
from llmesh.runtime.echo import EchoRuntime
from tests.mesh.people import peer

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh, Node

OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
Play: TypeAlias = "Callable[[Node], Awaitable[object]]"
DELAY = 0.01


def request(number: int) -> InferenceRequest:
    return InferenceRequest(RequestId(f"{number:032x}"), ModelRef("senti"), {"text": "one two three"}, 5.0)


async def infer(node: Node) -> None:
    await node.router.infer(request(1))


async def stream(node: Node) -> None:
    async with node.router.stream(request(1)) as events:
        async for _ in events:
            await trio.sleep(DELAY / 3)


async def refuse(call: Call, message: bytes) -> None:
    await trio.sleep(DELAY)
    raise ModelFailed("It never works.")


class CancelAfter(trio.abc.Instrument):
    """Cancels a scope once so many task steps were taken."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.scope = trio.CancelScope()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


async def cancelled(node: Node, play: Play, steps: int) -> bool:
    """Play, cancelled after so many steps; False where it had ended by then."""
    instrument = CancelAfter(steps)
    trio.lowlevel.add_instrument(instrument)
    try:
        with instrument.scope:
            await play(node)
    finally:
        trio.lowlevel.remove_instrument(instrument)
    return instrument.scope.cancelled_caught


async def check_nothing_is_left(*nodes: Node) -> None:
    await trio.sleep(2)  # what is on its way arrives, and who does not know what it paid has asked
    for node in nodes:
        tabs = list(node.payments.tabs._tabs.values())
        assert not any(tab.doubtful or tab.channel.reserved for tab in tabs)
        assert not any(account.channel.reserved for account in node.till._accounts._accounts.values())
        assert (node.runtime.running, node.provider.running) == (0, 0)
        assert all(session.idle for session in node.sessions.live())
        assert not node.sessions._dials
        assert not node.reputation._under_way


def check_books_agree(ann: Node, bob: Node) -> None:
    """What the one knows to have spent is what the other has charged, at most once a request."""
    spent = [tab.channel.books.spent for tab in ann.payments.tabs._tabs.values() if tab.peer == bob.peer_id]
    charged = [account.channel.charged for account in bob.till._accounts._accounts.values()]
    assert spent == charged
    assert all(amount <= Amount.parse("0.4") for amount in charged)


async def try_one(open_mesh: OpenMesh, play: Play, steps: int, helper: str) -> bool:
    """One mesh, one request cancelled, one more; whether the cancel met the first."""
    async with open_mesh() as mesh:
        mesh.network.weather = replace(mesh.network.weather, delay=DELAY)
        ann = await mesh.add("ann", runtime=EchoRuntime(DELAY, 1))
        bob = await mesh.add("bob", runtime=EchoRuntime(DELAY, 1))
        await bob.deploy("senti", "a", fee="0.2")
        if helper == "own":
            await ann.deploy("senti", "a")
        elif helper == "refusing":
            await (await mesh.add("cat", answer=refuse)).deploy("senti", "a", fee="0.1")
        elif helper == "frozen":
            await (await mesh.add("cat")).deploy("senti", "a", fee="0.1")
            mesh.network.freeze(peer("cat"))
        met = await cancelled(ann, play, steps)
        await check_nothing_is_left(ann, bob)
        again = await ann.router.infer(request(2))
        assert again.output == {"text": "one two three"}
        await check_nothing_is_left(ann, bob)
        check_books_agree(ann, bob)
        return met


@pytest.mark.parametrize("play", [infer, stream])
@pytest.mark.parametrize("helper", ["peer", "own", "refusing", "frozen"])
async def test_a_cancel_after_any_step_leaves_nothing(
    open_mesh: OpenMesh, autojump_clock: MockClock, play: Play, helper: str
) -> None:
    steps = 1
    while await try_one(open_mesh, play, steps, helper):
        steps += 1
    assert steps > 3


@pytest.mark.parametrize(("owner", "name"), [(Admission, "release"), (Session, "leave")])
async def test_the_check_sees_what_is_left_behind(
    open_mesh: OpenMesh, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    monkeypatch.setattr(owner, name, lambda *arguments: None)
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        bob = await mesh.add("bob", runtime=EchoRuntime(delay=60))
        await bob.deploy("senti", "a")
        with trio.move_on_after(0.5):
            await infer(ann)
        with pytest.raises(AssertionError):
            await check_nothing_is_left(ann, bob)
