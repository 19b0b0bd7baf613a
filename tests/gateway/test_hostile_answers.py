"""What a hostile provider may answer: every face tells it or fails in the table's words, never by a fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmesh.core.amount import Amount
from llmesh.core.encoding import Tensor, Value
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.inference import InferenceRequest, Result

DEEP: Any = []
for _ in range(100_000):
    DEEP = [DEEP]
ANSWERS: dict[str, dict[str, Value]] = {
    "nothing": {},
    "half a surrogate pair": {"text": "\ud800", "embedding": [1.0], "finish_reason": "\udfff"},
    "an integer beyond all doubles": {"text": "x", "score": 10**400, "embedding": [10**400]},
    "a double beyond all floats": {"text": "x", "embedding": [1e300]},
    "no number": {"text": "x", "embedding": [float("nan")], "score": float("inf")},
    "too deep": {"text": "x", "deep": DEEP, "embedding": DEEP},
    "a billion rows of nothing": {"embedding": Tensor("float32", (10**9, 0), b"")},
    "other types": {"text": 7, "finish_reason": ["x"], "embedding": "vector"},
}
INPUT = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["x"]}]
FACES: dict[str, tuple[str, dict[str, Any]]] = {
    "rest": ("/api/v1/inference", {"model": "m", "input": "x"}),
    "chat": ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
    "completions": ("/v1/completions", {"model": "m", "prompt": "x"}),
    "streamed": ("/v1/completions", {"model": "m", "prompt": "x", "stream": True}),
    "embeddings": ("/v1/embeddings", {"model": "m", "input": "x"}),
    "embeddings packed": ("/v1/embeddings", {"model": "m", "input": "x", "encoding_format": "base64"}),
    "kserve": ("/v2/models/m/infer", {"inputs": INPUT}),
    "kserve packed": ("/v2/models/m/infer", {"inputs": INPUT, "parameters": {"binary_data_output": True}}),
}


@pytest.mark.parametrize("output", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize(("path", "body"), FACES.values(), ids=FACES)
async def test_it_is_told_or_fails(client, router, path: str, body: dict[str, Any], output: Any) -> None:
    async def answer(request: InferenceRequest) -> Result:
        return Result(
            request.id, "m", ModelId("ab" * 32), output, Amount(0), PeerId("12D3KooW" + "A" * 44), 1.0
        )

    router.answer = answer
    told = await client.post(path, json=body)
    data = await told.get_data()
    assert told.status_code in (200, 400, 502), data
    if told.status_code != 200:
        assert "fault of" not in json.dumps(json.loads(data))
