"""Several inferences of one request of the gateway: so many at a time, and their answers within bounds."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from llmesh.core.encoding import Tensor, Value
from llmesh.core.ids import RequestId, is_keyed, keyed_id
from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import MeshError, TooLarge
from llmesh.gateway.inference import Router
from llmesh.gateway.schema import tellable
from llmesh.journal.purse import DurablePurse

__all__ = ["AT_ONCE", "Room", "for_each", "infer_all", "row_id"]

AT_ONCE = 32
"""Rows of one request that run at the same time; the others wait, and their time does not count yet."""
MOST_BYTES = 64 << 20
"""Bytes that the answers to one request may take before no more of its rows are run."""


class Room:
    """What the answers to one request may still take."""

    def __init__(self) -> None:
        self._left = MOST_BYTES

    def check(self) -> None:
        """Raises TooLarge where there is none left, for a row that is not to be run."""
        if self._left <= 0:
            raise TooLarge(
                f"The answers to a request take {MOST_BYTES >> 20} MiB already; send fewer rows at once."
            )

    def take(self, size: int) -> None:
        """An answer has so many bytes."""
        self._left -= size


def row_id(request: RequestId, number: int) -> RequestId:
    """The same for the same row of the same request, so that what is sent again is paid once."""
    digest = hashlib.blake2b(f"{request} {number}".encode(), digest_size=16)
    return keyed_id(digest.digest()) if is_keyed(request) else RequestId(digest.hexdigest())


async def for_each(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Do the work of every row, from 0 on, AT_ONCE at a time.  Cancelling stops all."""
    left = iter(range(count))

    async def some() -> None:
        for number in left:
            await work(number)

    async with trio.open_nursery() as nursery:
        for _ in range(min(AT_ONCE, count)):
            nursery.start_soon(some)


async def infer_all(
    router: Router, asked: Sequence[InferenceRequest], purse: DurablePurse | None
) -> list[Result]:
    """The results in the order of the requests; the first failure ends them all and is raised."""
    results: dict[int, Result] = {}
    failures: list[MeshError] = []
    room = Room()

    async def ask(number: int) -> None:
        try:
            room.check()
            results[number] = await router.infer(asked[number], None, purse)
            room.take(_size(results[number]))
        except MeshError as error:
            failures.append(error)
            under_way.cancel()

    with trio.CancelScope() as under_way:
        await for_each(len(asked), ask)
    if failures:
        raise failures[0]
    return [results[number] for number in range(len(asked))]


def _size(result: Result) -> int:
    return sum(map(_bytes, result.output.values()))


def _bytes(value: Value) -> int:
    if isinstance(value, Tensor):
        return len(value.data)
    if isinstance(value, str):
        return len(value)
    with tellable():
        return len(msgspec.json.encode(value))
