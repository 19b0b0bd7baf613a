"""The way of an answer to its caller: in order, bounded, and never in the way of one who left."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llmesh.core.encoding import Tensor
from llmesh.core.inference import Chunk, Usage
from llmesh.errors import ModelFailed
from llmesh.runtime import answer as answer_module
from llmesh.runtime.answer import BYTES_AHEAD, Answer


def chunk(index: int, size: int = 0) -> Chunk:
    return Chunk(index, values={"x": Tensor("uint8", (size,), bytes(size))} if size else {})


async def test_what_came_before_the_end_is_read_before_it() -> None:
    answer = Answer()
    answer.accept()
    answer.accept()  # a worker that took over says it again
    await answer.wait_accepted()
    await answer.put(chunk(0))
    await answer.put(Usage())
    answer.end()
    assert [type(event) async for event in answer] == [Chunk, Usage]


async def test_an_error_comes_after_what_was_said() -> None:
    answer = Answer()
    answer.accept()
    await answer.put(chunk(0))
    answer.end(ModelFailed("died"))
    await answer.wait_accepted()
    assert isinstance(await anext(answer), Chunk)
    with pytest.raises(ModelFailed):
        await anext(answer)


async def test_an_error_in_place_of_acceptance() -> None:
    answer, told = Answer(), []

    async def wait() -> None:
        with pytest.raises(ModelFailed) as caught:
            await answer.wait_accepted()
        told.append(caught.value.message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        answer.end(ModelFailed("refused"))
    assert told == ["refused"]


@pytest.mark.parametrize("by", ["bytes", "events"])
async def test_a_slow_reader_holds_the_writer_back_until_it_reads_or_leaves(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_module, "EVENTS_AHEAD", 3)
    answer, size = Answer(), BYTES_AHEAD if by == "bytes" else 0
    written = 0

    async def write() -> None:
        nonlocal written
        for index in range(20):
            await answer.put(chunk(index, size))
            written += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await wait_all_tasks_blocked()
        ahead = 1 if by == "bytes" else 3
        assert written == ahead
        for index in range(5):
            event = await anext(answer)
            assert isinstance(event, Chunk)
            assert event.index == index
            await wait_all_tasks_blocked()
        assert written == ahead + 5
        answer.leave()
    assert written == 20
