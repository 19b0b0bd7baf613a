"""MeshClient against a real gateway over fakes, from asyncio and from trio."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trio
from llmesh_sdk import InferenceResult, MeshClient, ModelOffer, NodeStatus

from llmesh.core.amount import Amount
from llmesh.core.inference import InferenceRequest, Result, Usage
from llmesh.errors import (
    ERRORS,
    MeshError,
    NetworkError,
    NodeUnreachable,
    RequestTimeout,
    TooLarge,
    ValidationFailed,
    error_from_code,
)

RUN: dict[str, Callable[[Callable[[], Awaitable[Any]]], Any]] = {
    "asyncio": lambda main: asyncio.run(main()),
    "trio": trio.run,
}


@pytest.fixture(params=RUN)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    return RUN[request.param]


def test_the_contract_verbatim(mesh, run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMESH_URL", mesh.url)

    async def main() -> None:
        client = MeshClient()
        models = await client.search_models(name="sentiment", max_fee=0.1)
        assert isinstance(models[0], ModelOffer)
        result = await client.inference(model="sentiment-analyzer-v2", input_data={"text": "很棒的产品！"})
        assert isinstance(result, InferenceResult)
        assert result.output == {"text": "很棒的产品！"}
        await client.aclose()

    run(main)


def test_what_comes_back(mesh, run) -> None:
    async def main() -> tuple[InferenceResult, list[ModelOffer], NodeStatus]:
        async with MeshClient(mesh.url) as client:
            result = await client.inference("m:1.0", "hello", timeout=7, max_fee="0.25")
            return result, await client.search_models(limit=2), await client.status()

    result, models, status = run(main)
    (request,) = mesh.requests
    assert (str(request.model), request.timeout) == ("m:1.0", 7.0)
    assert request.max_fee == Amount.parse("0.25")
    assert result.request_id == request.id
    assert (result.model, result.model_id, result.fee) == ("m:1.0", "cd" * 32, Amount.parse("0.1"))
    assert (result.latency_ms, result.attempts) == (2.5, 1)
    assert result.usage == Usage(input_tokens=3, compute_ms=0.25)
    assert len(models) == 2
    assert (models[0].fee, models[0].stake) == (Amount.parse("0.1"), Amount.parse(1000))
    assert (models[0].task, models[0].licence) == ("text-classification", "Apache-2.0")
    assert (status.peers, status.models, status.earnings) == (42, 3, Amount.parse("123.45"))
    assert repr(result).startswith("InferenceResult(output={'text': 'hello'}, model='m:1.0'")
    assert repr(models[0]).startswith("ModelOffer(name='sentiment-analyzer', version='1.0.0'")


def test_filters_reach_the_gateway(mesh, run) -> None:
    async def main() -> list[list[ModelOffer]]:
        async with MeshClient(mesh.url) as client:
            return [
                await client.search_models(name="none such"),
                await client.search_models(max_fee=0.05),
                await client.search_models("senti", max_fee=Amount.parse("0.1"), limit=3),
            ]

    assert [len(found) for found in run(main)] == [0, 0, 3]


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_errors_keep_their_class_code_request_and_next_step(mesh, code: int) -> None:
    async def fail(request: InferenceRequest) -> Result:
        raise error_from_code(
            code, "It went wrong.", request_id=request.id, retry_after=2.5, next_step="Go home."
        )

    mesh.answer = fail

    async def main() -> None:
        async with MeshClient(mesh.url) as client:
            await client.inference("m", "x")

    with pytest.raises(ERRORS[code]) as caught:
        asyncio.run(main())
    error = caught.value
    assert error.request_id == mesh.requests[0].id
    assert error.retry_after == 2.5
    text = str(error)
    assert all(part in text for part in (str(code), "It went wrong.", "Go home.", error.request_id))


def test_a_fault_of_the_node_is_told(mesh, run) -> None:
    async def fail(request: InferenceRequest) -> Result:
        raise ZeroDivisionError

    mesh.answer = fail
    with pytest.raises(NetworkError, match="answered 500") as caught:
        run(MeshClientCall(mesh.url))
    assert caught.value.request_id == mesh.requests[0].id


class MeshClientCall:
    """One inference by one client."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.options = {"model": "m", "input_data": "x", **options}

    async def __call__(self) -> InferenceResult:
        async with MeshClient(self.url) as client:
            return await client.inference(**self.options)


def test_a_socket_where_no_node_is_is_named(run, tmp_path: Path) -> None:
    client = MeshClient(uds=tmp_path / "owner.sock")
    with pytest.raises(NodeUnreachable, match=rf"at unix:{tmp_path}/owner\.sock"):
        run(client.status)


def test_no_node_there(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(NodeUnreachable, match=r"python -m llmesh\.node") as caught:
        run(MeshClientCall(url))
    assert url in str(caught.value)


@pytest.fixture
def stranger() -> Iterator[Callable[[bytes], str]]:
    """A server that reads a little, answers with given bytes, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))
    answers: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answers[0])

    thread = threading.Thread(target=serve, daemon=True)

    def answer_with(data: bytes) -> str:
        answers.append(data)
        thread.start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield answer_with
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(timeout=5)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (http(b"<!doctype html>hello"), "<!doctype html>hello"),
        (http(b"{}"), "{}"),
        (http(b"[1, 2]"), "1, 2"),
        (http(b'{"output": 3}'), "output"),
        (http(b'{"output":{},"model":"m","model_id":"i","fee":"x","provider":"p"}'), "output"),
        (http(b"\xff\xfe"), "200"),
        (http(b"<h1>Bad Gateway</h1>", "502 Bad Gateway"), "502"),
        (http(b'{"oops": 1}', "503 Service Unavailable"), "503"),
        (http(b"", "302 Found"), "302"),
        (b"SSH-2.0-OpenSSH\r\n", "broke"),
        (b"", "broke"),
    ],
)
def test_someone_else_answers(stranger, answer: bytes, told: str) -> None:
    with pytest.raises(NetworkError) as caught:
        asyncio.run(MeshClientCall(stranger(answer))())
    assert told in str(caught.value)


def test_an_unknown_code_survives(stranger) -> None:
    body = b'{"type":"x","status":418,"detail":"From the future.","code":9999,"request_id":"ab"}'
    with pytest.raises(MeshError, match="From the future") as caught:
        asyncio.run(MeshClientCall(stranger(http(body, "418 Teapot")))())
    assert (caught.value.code, caught.value.request_id) == (9999, "ab")


def test_a_silent_server_is_given_up(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmesh_sdk.client.MARGIN", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RequestTimeout, match="no answer within"):
            run(MeshClientCall(url, timeout=0.1))


async def forever(request: InferenceRequest) -> Result:
    await trio.sleep_forever()
    raise AssertionError


def test_cancelling_in_asyncio_cancels_the_work(mesh) -> None:
    mesh.answer = forever

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await MeshClientCall(mesh.url)()

    asyncio.run(main())
    assert mesh.cancelled.wait(2)


def test_cancelling_in_trio_cancels_the_work(mesh) -> None:
    mesh.answer = forever

    async def main() -> None:
        with trio.move_on_after(0.2):
            await MeshClientCall(mesh.url)()

    trio.run(main)
    assert mesh.cancelled.wait(2)


def test_one_client_in_one_loop_after_another(mesh) -> None:
    client = MeshClient(mesh.url)

    async def ask() -> str:
        result = await client.inference("m", "x")
        return result.model

    assert [asyncio.run(ask()), asyncio.run(ask()), trio.run(ask), asyncio.run(ask())] == ["m"] * 4
    assert client._opened is not None
    assert client._opened._pools == {}


def test_two_loops_at_once(mesh) -> None:
    client = MeshClient(mesh.url)
    failures: list[BaseException] = []

    async def ask() -> None:
        for _ in range(10):
            await client.inference("m", "x")

    def loop(run: Callable[..., Any]) -> None:
        try:
            run(ask)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=loop, args=(run,)) for run in RUN.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert not failures
    assert len(mesh.requests) == 20


def test_many_tasks_share_one_client(mesh) -> None:
    async def main() -> None:
        async with MeshClient(mesh.url) as client:
            await asyncio.gather(*(client.inference("m", {"n": n}) for n in range(20)))
            assert client._opened is not None
            assert len(client._opened._pools) == 1

    asyncio.run(main())
    assert sorted(request.input["n"] for request in mesh.requests) == list(range(20))


def test_a_closed_client_may_be_used_again(mesh, run) -> None:
    client = MeshClient(mesh.url)

    async def main() -> None:
        for _ in range(2):
            async with client:
                await client.status()
        await client.aclose()

    run(main)


@pytest.mark.parametrize("ask", ["asyncio.run(main())", "trio.run(main)"])
def test_a_client_that_is_never_closed_leaks_nothing(mesh, ask: str) -> None:
    program = f"""
import asyncio, gc, trio
from llmesh_sdk import MeshClient
client = MeshClient({mesh.url!r})
async def main():
    await client.inference("m", "x")
    await MeshClient({mesh.url!r}).status()
{ask}
{ask}
gc.collect()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


class Array:
    """What numpy's arrays and scalars have and nothing else."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def tolist(self) -> Any:
        return self.values


def test_arrays_become_lists(mesh) -> None:
    given = {"pixels": Array([[1, 2], [3, 4]]), "mixed": [Array(7), (Array([1.5]),)]}
    result = asyncio.run(MeshClientCall(mesh.url, input_data=given)())
    assert result.output == {"pixels": [[1, 2], [3, 4]], "mixed": [7, [[1.5]]]}


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": float("nan")}, {"timeout": float("inf")}, {"timeout": -1}, {"timeout": 0},
        {"timeout": "soon"}, {"timeout": True}, {"timeout": 1e9},
        {"max_fee": float("nan")}, {"max_fee": -1}, {"max_fee": "much"}, {"max_fee": Decimal("1e-7")},
        {"input_data": {"x": float("nan")}}, {"input_data": {"x": b"bytes"}}, {"input_data": {}},
        {"input_data": ""}, {"input_data": [1]}, {"input_data": {"x": "\ud800"}},
        {"model": ""}, {"model": "!"},
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments_are_named(mesh, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed):
        asyncio.run(MeshClientCall(mesh.url, **options)())
    assert not mesh.requests


def test_too_large_an_input_is_told_although_its_sender_is_still_sending(mesh, run) -> None:
    with pytest.raises(TooLarge):
        run(MeshClientCall(mesh.url, input_data="x" * (40 << 20)))
    assert not mesh.requests


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://", "nonsense"])
def test_a_bad_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValidationFailed, match="not the URL"):
        MeshClient(url)


def test_which_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMESH_URL", raising=False)
    assert MeshClient().url == "http://localhost:8080"
    monkeypatch.setenv("LLMESH_URL", "http://elsewhere:1/")
    assert MeshClient().url == "http://elsewhere:1"
    assert repr(MeshClient("http://here")) == "MeshClient('http://here')"


def test_importing_loads_little() -> None:
    heavy = "anyio asyncio httpx2 hypercorn libp2p msgspec numpy onnxruntime quart trio"
    program = f"import llmesh_sdk, sys; print(*[m for m in {heavy.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
