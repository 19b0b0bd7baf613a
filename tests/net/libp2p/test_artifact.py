"""A model's blocks over real libp2p, and small calls on the same session meanwhile."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from hashlib import sha256

import trio

from llmesh.core.manifest import BLOCK, Block, Manifest, ManifestFile, block_digest
from llmesh.core.model import BundleFile
from llmesh.net.artifact import PROTOCOL, handler, open_source
from llmesh.net.sessions import open_sessions
from llmesh.net.throttle import Throttle

DATA = random.Random(1).randbytes(12 * BLOCK + 77)
DIGESTS = tuple(block_digest(DATA[at : at + BLOCK]) for at in range(0, len(DATA), BLOCK))
MANIFEST = Manifest((ManifestFile(BundleFile("model.onnx", len(DATA), sha256(DATA).hexdigest()), DIGESTS),))


class Copy:
    """A replica in memory."""

    manifest = MANIFEST

    async def read(self, block: Block) -> bytes:
        return DATA[block.offset : block.offset + BLOCK]


@asynccontextmanager
async def serve(model, peer) -> AsyncGenerator[Copy]:
    yield Copy()


async def echo(call, message):
    await call.send(message)


async def test_blocks_arrive_over_libp2p_beside_small_calls(open_hosts):
    handlers = {PROTOCOL: handler(serve, Throttle()), "/echo": echo}
    async with (
        open_hosts(2) as (here, there),
        open_sessions(there, handlers),
        open_sessions(here, {}) as sessions,
    ):
        session = await sessions.to(there.peer_id, there.addresses)
        echoes = 0

        async def small_calls():
            nonlocal echoes
            while True:
                async with session.call("/echo", b"hi") as call:
                    assert await call.receive() == b"hi"
                echoes += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(small_calls)
            with trio.fail_after(20):
                async with open_source(session, MANIFEST.model_id, Throttle()) as source:
                    assert source.manifest == MANIFEST
                    for block in MANIFEST.blocks():
                        await source.ask(block, BLOCK)
                    got = [await source.receive() for _ in MANIFEST.blocks()]
            nursery.cancel_scope.cancel()
        assert [block for block, _ in got] == list(MANIFEST.blocks())
        assert b"".join(data for _, data in got) == DATA
        assert echoes > 10
