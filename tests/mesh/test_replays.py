"""Requests that come again under the same id: whoever was paid for one is asked first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from llmesh.core.amount import Amount
from llmesh.core.ids import RequestId, keyed_id
from llmesh.core.inference import InferenceRequest
from llmesh.core.reference import ModelRef
from llmesh.errors import MeshError, RequestTimeout
from llmesh.runtime.echo import EchoRuntime
from tests.mesh.test_payments import FEE, charged, hang_up, second_life, spent

if TYPE_CHECKING:
    from tests.mesh.conftest import Mesh

OpenMesh: TypeAlias = "Callable[[], AbstractAsyncContextManager[Mesh]]"
KEYED = keyed_id(b"the same each time")


def request(id: RequestId = KEYED, timeout: float = 30.0) -> InferenceRequest:
    return InferenceRequest(id, ModelRef("senti"), {"text": "one two three"}, timeout)


async def test_after_a_restart_the_provider_that_was_paid_answers_again_for_nothing(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann = await mesh.add("ann")
        others = [await mesh.add(name) for name in ("bob", "cat", "dan")]
        for other in others:
            await other.deploy("senti", "a", fee="0.1")
        first = await ann.router.infer(request())
        await trio.sleep(1)
        for _ in range(8):
            async with second_life(ann, mesh) as (router, _):
                again = await router.infer(request())
                assert (again.output, again.receipt) == (first.output, first.receipt)
                assert (again.provider, again.fee) == (first.provider, FEE)
        assert sum(charged(other).micro for other in others) == FEE.micro
        assert sum(other.runtime.started for other in others) == 1


async def test_an_id_that_is_random_is_not_looked_for(open_mesh: OpenMesh, autojump_clock: MockClock) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        for _ in range(2):
            await ann.router.infer(request(RequestId("1" * 32)))
        assert charged(bob) == spent(ann) == FEE + FEE


async def test_a_charge_that_was_not_heard_of_is_found_by_the_retry(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob")
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request(RequestId("1" * 32)))
        mesh.network.weather = replace(mesh.network.weather, delay=0.05)
        bob.journal.delay = 1.0  # the charge is in the journal, the answer has not left
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hang_up, bob, 0.6)
            with pytest.raises(MeshError):
                await ann.router.infer(request())
        bob.journal.delay = 0.0
        await trio.sleep(1)
        result = await ann.router.infer(request())
        assert result.output == {"text": "one two three"}
        assert spent(ann) == charged(bob) == FEE + FEE
        assert bob.runtime.started == 2


async def test_an_answer_that_was_cut_short_is_not_taken_for_the_whole(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob = await mesh.add("ann"), await mesh.add("bob", runtime=EchoRuntime(delay=1.0, words=1))
        await bob.deploy("senti", "a", fee="0.1")
        with pytest.raises(RequestTimeout):
            await ann.router.infer(request(timeout=2.5))
        await trio.sleep(5)
        assert Amount(0) < charged(bob) == spent(ann) < FEE
        assert (await ann.router.infer(request())).output == {"text": "one two three"}
        assert spent(ann) == charged(bob) > FEE


async def test_where_the_paid_provider_is_gone_another_one_answers(
    open_mesh: OpenMesh, autojump_clock: MockClock
) -> None:
    async with open_mesh() as mesh:
        ann, bob, cat = [await mesh.add(name) for name in ("ann", "bob", "cat")]
        await bob.deploy("senti", "a", fee="0.1")
        await ann.router.infer(request())
        await bob.provider.remove(bob.provider.offers[0].model_id)
        await cat.deploy("senti", "a", fee="0.1")
        result = await ann.router.infer(request())
        assert (result.provider, charged(bob), charged(cat)) == (cat.peer_id, FEE, FEE)
