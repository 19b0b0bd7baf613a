"""Routes of a real node, with a real model, where a fake would prove little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import trio

from llmesh.core.reference import ModelRef
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import ModelNotFound
from llmesh.node.config import NodeConfig
from llmesh.node.open import open_node


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(port=0, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, data_dir=tmp_path / "home")


async def test_a_node_tells_of_another(config: NodeConfig) -> None:
    other = replace(config, data_dir=config.data_dir.with_name("other"))
    async with open_node(other) as two:
        await two.deploy(SENTIMENT_ANALYZER, "senti")
        joined = replace(config, bootstrap=two.dial_addresses)
        async with open_node(joined) as one, httpx2.AsyncClient(base_url=one.url, trust_env=False) as http:
            with trio.fail_after(10):
                while not (peers := (await http.get("/api/v1/peers")).json()["peers"]):  # noqa: ASYNC110
                    await trio.sleep(0.1)
                while not one.offers_of(two.offers[0].model_id):  # noqa: ASYNC110
                    await trio.sleep(0.1)
            assert (peers[0]["peer_id"], peers[0]["state"]) == (two.peer_id, "connected")
            [peer] = (await http.get("/api/v1/peers")).json()["peers"]
            assert (peer["models"], bool(peer["addresses"])) == (1, True)
            missing = await http.get(f"/api/v1/receipts/{'0' * 32}")
            assert (missing.status_code, missing.json()["code"]) == (404, 4005)


async def test_a_model_comes_serves_and_goes(config: NodeConfig) -> None:
    async with open_node(config) as node, httpx2.AsyncClient(base_url=node.url, trust_env=False) as http:
        here = {"name": "senti", "path": str(SENTIMENT_ANALYZER), "fee": "0.5"}
        told = await http.post("/api/v1/models", json=here)
        assert told.status_code == 201
        id = told.json()["model_id"]
        files = {"metadata": (None, b'{"name":"nothing"}'), "file": ("m.onnx", b"no model")}
        refused = await http.post("/api/v1/models", files=files)
        assert (refused.status_code, refused.json()["code"]) == (422, 1004)
        asked = {"model": "senti", "input": {"text": "很好"}}
        assert (await http.post("/api/v1/inference", json=asked)).json()["model_id"] == id
        seen = (await http.get(f"/api/v1/models/{id}")).json()
        assert (seen["own"], [offer["fee"] for offer in seen["offers"]]) == (True, [0.5])
        assert (await http.delete(f"/api/v1/models/{id}")).json() == {"model_id": id}
        assert (await http.delete(f"/api/v1/models/{id}")).json()["code"] == 1001
        assert (await http.post("/api/v1/inference", json=asked)).json()["code"] == 1001
        assert (node.offers, node.offers_of(id)) == ((), [])
        assert not list((config.data_dir / "store" / "models").iterdir())
        with pytest.raises(ModelNotFound):
            await node.request(str(ModelRef("", id=id)), "x")
