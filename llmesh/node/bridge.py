"""Bridge: a trio run in a thread of its own, and calls into it from asyncio or trio.

Calls are carried in by the node's TrioToken and results back by the caller's own loop, with
cancellation both ways.  An anyio portal would not do: it has no trio callers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Generic, TypeVar

import trio

from llmesh.node.faults import NodeStateError, lone_errors

__all__ = ["Bridge"]

R = TypeVar("R")
T = TypeVar("T")

# How long a cancelled caller waits until its work on the node has ended.
CANCEL_SECONDS = 2.0
# How often the node looks whether the program has ended without stopping it.
WATCH_SECONDS = 0.2


class Bridge(Generic[T]):
    """Keeps one resource open in a thread of its own: `start` once, then `call`, then `stop`.

    The thread is joined at the program's exit, and stops by itself, closing the resource, once the
    program's main thread has ended: a program that forgets `stop` leaves nothing behind.
    """

    def __init__(self, opener: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._opener = opener
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._stopping = False
        self._calls: trio.Nursery | None = None
        self._pending: set[Future[Any]] = set()
        self._ended: Future[None] = Future()

    async def start(self) -> T:
        """Open the resource, which only `call` may use; raises what opening it raised.

        Cancelling gives the start up and waits for its end, at most two seconds.
        """
        opened: Future[T] = Future()
        threading.Thread(target=self._thread, args=(opened,), name="llmesh-node").start()
        return await _result(opened, self._cancel)

    async def call(self, work: Callable[[], Awaitable[R]]) -> R:
        """Run `work` on the node's loop; return or raise what it does.

        Cancelling cancels the work and waits for its end, at most two seconds.  Raises
        NodeStateError where the resource is closed, before the work or in the middle of it.
        """
        done: Future[R] = Future()
        scope = trio.CancelScope()
        self._pending.add(done)
        done.add_done_callback(self._pending.discard)
        self._post(lambda: self._accept(work, done, scope))
        return await _result(done, lambda: self._post(scope.cancel))

    async def stop(self) -> None:
        """Close the resource and wait for its end; raises what ended it, if that was an error."""
        self._cancel()
        await self.wait()

    async def wait(self) -> None:
        """Wait until the resource is closed; raises what ended it, if that was an error."""
        await _result(self._ended, None)

    @property
    def ended(self) -> bool:
        """Whether the resource is closed, for whatever reason."""
        return self._ended.done()

    def _thread(self, opened: Future[T]) -> None:
        error: BaseException | None = None
        try:
            with lone_errors():
                trio.run(self._main, opened)
        except BaseException as caught:  # not swallowed: raised again by start, stop or wait
            error = caught
        for call in list(self._pending):
            call.set_exception(_stopped())
        if opened.done() and error is not None:
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)
        if not opened.done():
            opened.set_exception(error or _stopped())

    async def _main(self, opened: Future[T]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        if self._stopping:
            self._scope.cancel()
        async with trio.open_nursery() as calls:
            with self._scope:
                async with self._opener() as resource:
                    self._calls = calls
                    opened.set_result(resource)
                    await _end_of_program()
            self._calls = None
            calls.cancel_scope.cancel()

    def _cancel(self) -> None:
        self._stopping = True  # before the look at the token: the thread does it the other way round
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._scope.cancel)

    def _post(self, function: Callable[[], object]) -> None:
        try:
            if self._token is None:
                raise trio.RunFinishedError
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            raise _stopped() from None

    def _accept(self, work: Callable[[], Awaitable[R]], done: Future[R], scope: trio.CancelScope) -> None:
        if self._calls is None or self._stopping:
            done.set_exception(_stopped())
        else:
            self._calls.start_soon(_run, work, done, scope)


async def _run(work: Callable[[], Awaitable[R]], done: Future[R], scope: trio.CancelScope) -> None:
    try:
        with scope:
            done.set_result(await work())
    except Exception as error:  # not swallowed: raised again in the caller's task
        done.set_exception(error)
    finally:
        if not done.done():
            done.set_exception(_stopped())


async def _end_of_program() -> None:
    while threading.main_thread().is_alive():  # noqa: ASYNC110 - the interpreter offers no event for it
        await trio.sleep(WATCH_SECONDS)


async def _result(done: Future[R], cancel: Callable[[], object] | None) -> R:
    """Wait, in the caller's own loop, for what another thread sets."""
    if _in_trio():
        await _wait_in_trio(done, cancel)
    else:
        await _wait_in_asyncio(done, cancel)
    return done.result()


def _in_trio() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


async def _wait_in_trio(done: Future[R], cancel: Callable[[], object] | None) -> None:
    token, woken = trio.lowlevel.current_trio_token(), trio.Event()

    def wake(_: Future[R]) -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(woken.set)

    done.add_done_callback(wake)
    try:
        await woken.wait()
    except trio.Cancelled:
        if cancel is not None:
            with suppress(NodeStateError):
                cancel()
            with trio.move_on_after(CANCEL_SECONDS) as patience:
                patience.shield = True
                await woken.wait()
        raise


async def _wait_in_asyncio(done: Future[R], cancel: Callable[[], object] | None) -> None:
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[R]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(woken.set)

    done.add_done_callback(wake)
    try:
        await woken.wait()
    except asyncio.CancelledError:
        if cancel is not None:
            with suppress(NodeStateError):
                cancel()
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), CANCEL_SECONDS)
        raise


def _stopped() -> NodeStateError:
    return NodeStateError("The node has been stopped; make a new MeshNode and start it.")
