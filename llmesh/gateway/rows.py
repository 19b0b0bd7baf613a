"""Several inferences of one request of the gateway: all at once, within bounds, or none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import trio

from llmesh.core.ids import RequestId
from llmesh.core.inference import InferenceRequest, Result
from llmesh.errors import MeshError
from llmesh.gateway.inference import Router
from llmesh.journal.purse import DurablePurse

__all__ = ["AT_ONCE", "infer_all", "row_id"]

AT_ONCE = 16
"""Inferences of one request that are under way at a time; the mesh batches them."""


def row_id(request: RequestId, number: int) -> RequestId:
    """The same for the same row of the same request, so that what is sent again is paid once."""
    return RequestId(hashlib.blake2b(f"{request} {number}".encode(), digest_size=16).hexdigest())


async def infer_all(
    router: Router, asked: Sequence[InferenceRequest], purse: DurablePurse | None
) -> list[Result]:
    """The results in the order of the requests; the first failure ends them all and is raised."""
    if len(asked) == 1:
        return [await router.infer(asked[0], None, purse)]
    results: dict[int, Result] = {}
    failures: list[MeshError] = []
    places = trio.CapacityLimiter(AT_ONCE)

    async def ask(index: int, one: InferenceRequest) -> None:
        try:
            async with places:
                results[index] = await router.infer(one, None, purse)
        except MeshError as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for index, one in enumerate(asked):
            nursery.start_soon(ask, index, one)
    if failures:
        raise failures[0]
    return [results[index] for index in range(len(asked))]
