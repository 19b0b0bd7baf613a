"""Routes of a real node, with a real model, where a fake would prove little."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from llmesh.core.reference import ModelRef
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import ModelNotFound
from llmesh.node.config import NodeConfig
from llmesh.node.open import open_node


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(port=0, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, data_dir=tmp_path / "home")


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
