"""Calls into the node's thread from asyncio and from trio, with results, errors and cancels."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel

from llmesh.node.bridge import Bridge
from llmesh.node.faults import NodeStateError

LOOPS = [pytest.param(asyncio.run, id="asyncio"), pytest.param(trio.run, id="trio")]


class Resource:
    """Remembers what happened to it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.thread = threading.current_thread()


@asynccontextmanager
async def open_resource() -> AsyncIterator[Resource]:
    resource = Resource()
    try:
        yield resource
    finally:
        with trio.CancelScope() as cleanup:
            cleanup.shield = True
            await trio.sleep(0.01)
            resource.events.append("closed")


async def forever(resource: Resource) -> None:
    resource.events.append("working")
    try:
        await trio.sleep_forever()
    finally:
        resource.events.append("ended")


async def poll(condition: Callable[[], bool], sleep: Callable[[float], Awaitable[None]]) -> None:
    for _ in range(1000):
        if condition():
            return
        await sleep(0.005)
    raise AssertionError("never came true")


@pytest.mark.parametrize("run", LOOPS)
def test_a_result_comes_back_from_the_other_thread(run: Callable[..., None]) -> None:
    async def program() -> None:
        bridge = Bridge(open_resource)
        resource = await bridge.start()

        async def work() -> str:
            await trio.lowlevel.checkpoint()
            return threading.current_thread().name

        assert await bridge.call(work) == "llmesh-node"
        assert not bridge.ended
        await bridge.stop()
        await bridge.stop()
        assert bridge.ended
        assert resource.events == ["closed"]
        with pytest.raises(NodeStateError):
            await bridge.call(work)

    run(program) if run is trio.run else run(program())


@pytest.mark.parametrize("run", LOOPS)
def test_an_error_is_raised_in_the_caller_and_the_node_lives_on(run: Callable[..., None]) -> None:
    async def program() -> None:
        bridge = Bridge(open_resource)
        await bridge.start()

        async def broken() -> None:
            raise ZeroDivisionError("as asked")

        async def good() -> int:
            return 7

        with pytest.raises(ZeroDivisionError, match="as asked"):
            await bridge.call(broken)
        assert await bridge.call(good) == 7
        await bridge.stop()

    run(program) if run is trio.run else run(program())


def test_cancelling_an_asyncio_task_cancels_and_awaits_the_work() -> None:
    async def program() -> None:
        bridge = Bridge(open_resource)
        resource = await bridge.start()
        task = asyncio.create_task(bridge.call(lambda: forever(resource)))
        await poll(lambda: "working" in resource.events, asyncio.sleep)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert resource.events == ["working", "ended"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bridge.call(lambda: forever(resource)), 0.05)
        assert resource.events == ["working", "ended"] * 2
        await bridge.stop()

    asyncio.run(program())


def test_cancelling_a_trio_task_cancels_and_awaits_the_work() -> None:
    async def program() -> None:
        bridge = Bridge(open_resource)
        resource = await bridge.start()
        with trio.move_on_after(0.05) as scope:
            await bridge.call(lambda: forever(resource))
        assert scope.cancelled_caught
        assert resource.events == ["working", "ended"]
        await bridge.stop()

    trio.run(program)


@pytest.mark.parametrize("run", LOOPS)
def test_stopping_fails_the_calls_under_way(run: Callable[..., None]) -> None:
    async def program() -> None:
        bridge = Bridge(open_resource)
        resource = await bridge.start()

        async def stop_later() -> None:
            bridge._cancel()
            await trio.sleep_forever()

        with pytest.raises(NodeStateError):
            await bridge.call(stop_later)
        await bridge.wait()
        assert resource.events == ["closed"]

    run(program) if run is trio.run else run(program())


@pytest.mark.parametrize("run", LOOPS)
def test_what_fails_to_open_is_raised_by_start(run: Callable[..., None]) -> None:
    @asynccontextmanager
    async def closed() -> AsyncIterator[None]:
        async with trio.open_nursery():
            raise OSError("no such port")
        yield

    async def program() -> None:
        bridge = Bridge(closed)
        with pytest.raises(OSError, match="no such port"):
            await bridge.start()
        await bridge.wait()

    run(program) if run is trio.run else run(program())


@pytest.mark.parametrize("run", LOOPS)
def test_what_breaks_an_open_resource_is_raised_by_wait(run: Callable[..., None]) -> None:
    @asynccontextmanager
    async def breaking() -> AsyncIterator[None]:
        async def fail() -> None:
            await trio.sleep(0.02)
            raise OSError("the disk is gone")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            yield

    async def program() -> None:
        bridge = Bridge(breaking)
        await bridge.start()
        with pytest.raises(OSError, match="the disk is gone"):
            await bridge.wait()
        with pytest.raises(NodeStateError):
            await bridge.call(trio.lowlevel.checkpoint)

    run(program) if run is trio.run else run(program())


def test_a_cancelled_start_leaves_nothing_open() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        try:
            await trio.sleep_forever()
            yield
        finally:
            events.append("given up")

    async def program() -> None:
        bridge = Bridge(slow)
        with trio.move_on_after(0.05) as scope:
            await bridge.start()
        assert scope.cancelled_caught
        assert events == ["given up"]
        assert bridge.ended

    trio.run(program)


def test_two_loops_use_one_node_at_once() -> None:
    bridge = Bridge(open_resource)

    async def double(n: int) -> int:
        await trio.sleep(0.001)
        return 2 * n

    async def in_asyncio() -> list[int]:
        return await asyncio.gather(*(bridge.call(lambda n=n: double(n)) for n in range(100)))

    async def in_trio() -> None:
        await bridge.start()
        other: list[list[int]] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: other.append(asyncio.run(in_asyncio())))
            for n in range(100):
                assert await bridge.call(lambda n=n: double(n)) == 2 * n
        assert other == [[2 * n for n in range(100)]]
        await bridge.stop()

    trio.run(in_trio)
