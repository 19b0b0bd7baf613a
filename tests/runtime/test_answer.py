"""The way of an answer to its caller: in order, bounded, and never in the way of one who left."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from llmesh.core.encoding import Tensor
from llmesh.core.inference import Chunk, Usage
from llmesh.errors import ModelFailed
from llmesh.runtime.answer import BYTES_AHEAD, Answer


def chunk(index: int, size: int = 0) -> Chunk:
    return Chunk(index, values={"x": Tensor("uint8", (size,), bytes(size))} if size else {})


async def test_what_came_before_the_end_is_read_before_it() -> None:
    answer = Answer()
    answer.accept()
    answer.accept()  # a worker that took over says it again
    await answer.wait_accepted()
    answer.put(chunk(0))
    answer.put(Usage())
    answer.end()
    assert [type(event) async for event in answer] == [Chunk, Usage]


async def test_an_error_comes_after_what_was_said() -> None:
    answer = Answer()
    answer.accept()
    answer.put(chunk(0))
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


async def test_who_is_too_far_behind_gets_no_more_chunks_until_it_reads() -> None:
    answer = Answer()
    answer.accept()
    assert answer.put(chunk(0, BYTES_AHEAD))
    assert not answer.put(chunk(1))
    await anext(answer)
    assert answer.put(chunk(1))


async def test_chunks_without_values_count_as_well() -> None:
    answer, given = Answer(), 0
    while answer.put(chunk(given)):
        given += 1
    assert 1_000 < given < BYTES_AHEAD


async def test_the_usage_of_a_large_answer_is_given_all_the_same() -> None:
    answer = Answer()
    assert answer.put(chunk(0, 2 * BYTES_AHEAD))
    assert answer.put(Usage())
    answer.end()
    assert [type(event) async for event in answer] == [Chunk, Usage]


async def test_only_the_first_end_counts() -> None:
    answer = Answer()
    answer.accept()
    answer.end(ModelFailed("first"))
    assert answer.put(chunk(0))
    answer.end()
    with pytest.raises(ModelFailed, match="first"):
        await anext(answer)


async def test_one_who_left_is_never_behind() -> None:
    answer = Answer()
    answer.leave()
    assert all(answer.put(chunk(index, BYTES_AHEAD)) for index in range(3))
