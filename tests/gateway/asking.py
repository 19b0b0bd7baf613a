"""One question put to every face of a gateway in that face's own words, and its answer in ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
import trio
from llmesh_sdk.results import InferenceResult

from llmesh import MeshClient, sync
from llmesh.errors import ERRORS, MeshError

from .websocket.conftest import Refused, opened

MESSAGE = "Said by the fake."
_CODES = {error.name.lower(): error.code for error in ERRORS.values()}


@dataclass(frozen=True)
class Door:
    """Where a gateway is, and the key to show there."""

    port: int
    key: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


@dataclass(frozen=True)
class Asked:
    text: str = "很好"
    model: str = "m"
    timeout: float = 4.5
    max_fee: str = "0.5"

    @property
    def limits(self) -> dict[str, Any]:
        return {"timeout": self.timeout, "max_fee": self.max_fee}


@dataclass(frozen=True)
class Told:
    """The values of an answer, or the code of a failure; `pieces` are what a stream gave before."""

    values: dict[str, Any] | None = None
    fee: float | None = None
    pieces: tuple[str, ...] = ()
    code: int = 0
    says_why: bool = True
    retry_after: float | None = None


Ask = Callable[[Door, Asked], Awaitable[Told]]


def refusal(problem: dict[str, Any], retry_after: str | float | None, pieces: Sequence[str] = ()) -> Told:
    why = str(problem.get("detail") or problem.get("message"))
    wait = None if retry_after is None else float(retry_after)
    return Told(None, None, tuple(pieces), problem["code"], bool(why), wait)


@asynccontextmanager
async def _http(door: Door) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(
        base_url=door.url, headers=door.headers, trust_env=False, verify=False
    ) as client:
        yield client


async def _post(door: Door, path: str, body: Any, **headers: str) -> httpx2.Response:
    async with _http(door) as client:
        return await client.post(path, json=body, headers=headers)


def _native(asked: Asked) -> dict[str, Any]:
    return {"model": asked.model, "input": asked.text, **asked.limits}


async def rest(door: Door, asked: Asked) -> Told:
    answer = await _post(door, "/api/v1/inference", _native(asked))
    body = answer.json()
    if answer.is_success:
        return Told(body["output"], body["fee"])
    assert answer.status_code == ERRORS[body["code"]].http_status
    return refusal(body, answer.headers.get("Retry-After"))


async def batch(door: Door, asked: Asked) -> Told:
    answer = await _post(door, "/api/v1/inference/batch", {"requests": [_native(asked)]})
    body = answer.json()
    if not answer.is_success:
        return refusal(body, answer.headers.get("Retry-After"))
    [row] = body["results"]
    if "error" in row:
        return refusal(row["error"], row["error"].get("retry_after"))
    return Told(row["result"]["output"], row["result"]["fee"])


async def websocket(door: Door, asked: Asked) -> Told:
    pieces = []
    try:
        async with opened(door.port, **door.headers) as client:
            await client.send({"type": "inference_stream", "id": "s", **_native(asked)})
            while True:
                frame = await client.receive()
                match frame["type"]:
                    case "chunk":
                        pieces.append(frame["text"])
                    case "completed":
                        return Told(frame["output"], frame["fee"], tuple(pieces))
                    case "error":
                        assert frame["id"] == "s"
                        return refusal(frame, frame.get("retry_after"), pieces)
    except Refused as refused:
        return refusal(refused.problem, None)


async def server_sent(door: Door, asked: Asked) -> Told:
    answer = await _post(door, "/api/v1/inference", _native(asked), Accept="text/event-stream")
    if not answer.is_success:
        return refusal(answer.json(), answer.headers.get("Retry-After"))
    frames = _events(answer.text)
    pieces = tuple(frame["text"] for frame in frames if frame["type"] == "chunk")
    last = frames[-1]
    if last["type"] == "error":
        return refusal(last, last.get("retry_after"), pieces)
    return Told(last["output"], last["fee"], pieces)


def _events(text: str) -> list[dict[str, Any]]:
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in data if line != "[DONE]"]


def _openai_error(answer: httpx2.Response, error: dict[str, Any], pieces: Sequence[str] = ()) -> Told:
    code = _CODES[error["code"].replace("_", "")]
    status = ERRORS[code].http_status
    assert pieces or answer.status_code == (400 if status == 422 else status)
    return refusal({**error, "code": code}, answer.headers.get("Retry-After"), pieces)


def _openai(path: str, words: Callable[[Asked], dict[str, Any]], text: Callable[[Any], str]) -> Ask:
    async def ask(door: Door, asked: Asked) -> Told:
        answer = await _post(door, path, {"model": asked.model, **words(asked), **asked.limits})
        body = answer.json()
        if not answer.is_success:
            return _openai_error(answer, body["error"])
        [choice] = body["choices"]
        values = {"text": text(choice), "finish_reason": choice["finish_reason"]}
        return Told(values, body["llmesh"]["fee"])

    return ask


def _openai_stream(path: str, words: Callable[[Asked], dict[str, Any]], text: Callable[[Any], str]) -> Ask:
    async def ask(door: Door, asked: Asked) -> Told:
        body = {"model": asked.model, "stream": True, **words(asked), **asked.limits}
        answer = await _post(door, path, body)
        if not answer.is_success:
            return _openai_error(answer, answer.json()["error"])
        chunks = _events(answer.text)
        choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
        pieces = tuple(filter(None, map(text, choices)))
        if "error" in chunks[-1]:
            return _openai_error(answer, chunks[-1]["error"], pieces)
        assert answer.text.endswith("data: [DONE]\n\n")
        values = {"text": "".join(pieces), "finish_reason": choices[-1]["finish_reason"]}
        return Told(values, chunks[-1]["llmesh"]["fee"], pieces)

    return ask


def _messages(asked: Asked) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked.text}]}


def _prompt(asked: Asked) -> dict[str, Any]:
    return {"prompt": asked.text}


async def embeddings(door: Door, asked: Asked) -> Told:
    answer = await _post(door, "/v1/embeddings", {"model": asked.model, "input": asked.text, **asked.limits})
    body = answer.json()
    if not answer.is_success:
        return _openai_error(answer, body["error"])
    return Told({"embedding": body["data"][0]["embedding"]})


async def kserve(door: Door, asked: Asked) -> Told:
    parameters = {"timeout": round(asked.timeout * 1e6), "max_fee": asked.max_fee}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [asked.text]}
    path = f"/v2/models/{quote(asked.model)}/infer"
    answer = await _post(door, path, {"inputs": [tensor], "parameters": parameters})
    body = answer.json()
    if not answer.is_success:
        code = int(body["error"].partition(" ")[0].removeprefix("["))
        status = ERRORS[code].http_status
        assert answer.status_code == (400 if status == 422 else status)
        return refusal({"code": code, "message": body["error"]}, answer.headers.get("Retry-After"))
    values = {each["name"]: _unpacked(each) for each in body["outputs"]}
    return Told(values, body["parameters"]["fee"])


def _unpacked(output: dict[str, Any]) -> Any:
    [value] = output["data"]
    return json.loads(value) if isinstance(value, str) and value.startswith("[") else value


def _sdk_error(error: MeshError, pieces: Sequence[str] = ()) -> Told:
    assert type(error) is ERRORS[error.code]
    return refusal({"code": error.code, "message": error.message}, error.retry_after, pieces)


def _sdk_told(result: InferenceResult, pieces: Sequence[str] = ()) -> Told:
    return Told(result.output, float(str(result.fee)), tuple(pieces))


async def sdk(door: Door, asked: Asked) -> Told:
    async with MeshClient(door.url, door.key) as client:
        try:
            return _sdk_told(await client.inference(asked.model, asked.text, asked.timeout, asked.max_fee))
        except MeshError as error:
            return _sdk_error(error)


async def sdk_batch(door: Door, asked: Asked) -> Told:
    async with MeshClient(door.url, door.key) as client:
        row = {"model": asked.model, "input": asked.text, "max_fee": asked.max_fee}
        try:
            [result] = await client.batch_inference([row], asked.timeout)
        except MeshError as error:
            return _sdk_error(error)
    return _sdk_error(result) if isinstance(result, MeshError) else _sdk_told(result)


async def sdk_stream(door: Door, asked: Asked) -> Told:
    pieces: list[str] = []
    async with MeshClient(door.url, door.key) as client:
        try:
            async with client.stream(asked.model, asked.text, asked.timeout, asked.max_fee) as stream:
                async for piece in stream:
                    pieces.append(piece.text)  # noqa: PERF401 - those before a failure count
            return _sdk_told(stream.result, pieces)
        except MeshError as error:
            return _sdk_error(error, pieces)


async def sdk_blocking(door: Door, asked: Asked) -> Told:
    def ask() -> Told:
        with sync.MeshClient(door.url, door.key) as client:
            try:
                return _sdk_told(client.inference(asked.model, asked.text, asked.timeout, asked.max_fee))
            except MeshError as error:
                return _sdk_error(error)

    return await trio.to_thread.run_sync(ask)


async def sdk_blocking_stream(door: Door, asked: Asked) -> Told:
    def ask() -> Told:
        pieces: list[str] = []
        with sync.MeshClient(door.url, door.key) as client:
            try:
                with client.stream(asked.model, asked.text, asked.timeout, asked.max_fee) as stream:
                    pieces.extend(piece.text for piece in stream)
                return _sdk_told(stream.result, pieces)
            except MeshError as error:
                return _sdk_error(error, pieces)

    return await trio.to_thread.run_sync(ask)


WHOLE: dict[str, Ask] = {
    "REST": rest,
    "batch": batch,
    "KServe": kserve,
    "SDK": sdk,
    "SDK batch": sdk_batch,
    "SDK blocking": sdk_blocking,
}
"""Faces that tell all values of an answer, at once."""
STREAMS: dict[str, Ask] = {
    "WebSocket": websocket,
    "server-sent events": server_sent,
    "SDK stream": sdk_stream,
    "SDK blocking stream": sdk_blocking_stream,
}
"""Faces that tell all values of an answer, and its text piece by piece before."""
TEXTS: dict[str, Ask] = {
    "OpenAI chat": _openai("/v1/chat/completions", _messages, lambda each: each["message"]["content"]),
    "OpenAI completion": _openai("/v1/completions", _prompt, lambda each: each["text"]),
}
"""Faces that tell a text."""
TEXT_STREAMS: dict[str, Ask] = {
    "OpenAI chat stream": _openai_stream(
        "/v1/chat/completions", _messages, lambda each: each["delta"].get("content", "")
    ),
    "OpenAI completion stream": _openai_stream("/v1/completions", _prompt, lambda each: each["text"]),
}
"""Faces that tell a text, piece by piece."""
EMBEDDINGS: dict[str, Ask] = {"OpenAI embeddings": embeddings}
"""A face that tells a vector."""
ALL = WHOLE | STREAMS | TEXTS | TEXT_STREAMS | EMBEDDINGS
