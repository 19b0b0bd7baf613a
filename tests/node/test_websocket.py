"""Streams and events of real nodes, through the SDK."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from llmesh_sdk import MeshClient

from llmesh.demo import GPT_MINI
from llmesh.node.config import NodeConfig
from llmesh.node.open import open_node
from llmesh.node.running import Node


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(port=0, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, data_dir=tmp_path / "home")


async def found(node: Node, name: str) -> None:
    for _ in range(1000):
        if await node.search(name, None, 10):
            return
        await trio.sleep(0.02)
    raise AssertionError(f"{name} was not found")


async def test_a_stream_over_the_mesh_is_told_and_leaving_it_frees_the_providers_place(
    config: NodeConfig, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(open_node(config))
        await provider.deploy(GPT_MINI, "gpt-mini")
        known = replace(config, data_dir=tmp_path / "other", bootstrap=provider.dial_addresses)
        consumer = await stack.enter_async_context(open_node(known))
        await found(consumer, "gpt-mini")
        client = await stack.enter_async_context(MeshClient(consumer.url))
        events = await stack.enter_async_context(client.subscribe(["inference"]))
        asked = {"text": "给我讲个故事", "max_tokens": 40}
        heard: list[dict[str, object]] = []

        async def listen() -> None:
            heard.append((await anext(events)).data)

        requests = set[str]()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            while not heard:  # the first may end before the subscription is there
                stream = client.stream("gpt-mini", asked)
                pieces = [piece async for piece in stream]
                requests.add(stream.result.request_id)
        assert [piece.index for piece in pieces] == list(range(len(pieces)))
        assert "".join(piece.text for piece in pieces) == stream.result.output["text"]
        assert stream.result.provider == provider.peer_id
        assert heard[0]["request_id"] in requests
        assert (heard[0]["served"], heard[0]["provider"]) == ("caller", provider.peer_id)
        async with client.stream("gpt-mini", {**asked, "max_tokens": 500}) as stream:
            await anext(stream)
        for _ in range(500):
            if not provider._rooms.shelf._provider.running:
                break
            await trio.sleep(0.01)
        assert provider._rooms.shelf._provider.running == 0
