"""Models over REST: uploads of every kind, what is refused, and that a large one costs no memory."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from quart_trio import QuartTrio
from quart_trio.testing import TrioClient

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.ids import ModelId
from llmesh.errors import Conflict, ModelNotFound, TooLarge
from llmesh.gateway.app import GatewaySettings, create_app
from llmesh.gateway.body import HELD, Body
from llmesh.gateway.deploy import deploy_routes
from llmesh.gateway.gate import Gate
from llmesh.gateway.limits import Limits
from llmesh.gateway.rates import read_rates
from llmesh.gateway.server import bind, serve
from llmesh.runtime.incoming import Incoming
from llmesh.runtime.store import Store, open_store

from .conftest import MODEL_ID, FakeCatalogue, FakeNode, FakeRouter, offer

URL = "/api/v1/models"
LOCAL = {"scope_base": {"client": ("127.0.0.1", 5000)}}


@dataclass
class FakeShelf:
    """A real store for what comes; deploying keeps the bytes and what was said."""

    store: Store
    deployed: list[tuple[str, bytes, str, Amount, str, str]] = field(default_factory=list)
    own: set[ModelId] = field(default_factory=set)

    def incoming(self) -> AbstractAsyncContextManager[Incoming]:
        return self.store.incoming()

    async def deploy(self, source: Path, name: str, fee: Amount, version: str, description: str) -> ModelId:
        if name == "taken":
            raise Conflict("taken:1.0.0 is another model here.")
        data = source.read_bytes() if source.is_file() else b""
        self.deployed.append((source.name, data, name, fee, version, description))
        self.own.add(MODEL_ID)
        return MODEL_ID

    async def remove(self, model: ModelId) -> None:
        if not self.serves(model):
            raise ModelNotFound(f"This node does not serve model {model}.")
        self.own.discard(model)

    def serves(self, model: ModelId) -> bool:
        return model in self.own

    def offers_of(self, model: ModelId) -> Sequence[tuple[Offer, Announcement]]:
        return [offer("senti", "0.1")] if model == MODEL_ID else []


@pytest.fixture
async def shelf(tmp_path: Path) -> FakeShelf:
    return FakeShelf(await open_store(tmp_path / "store", quota=3_000_000))


@pytest.fixture
def app(shelf: FakeShelf) -> QuartTrio:
    settings = GatewaySettings(max_body=100_000, body_timeout=5)
    return create_app(FakeRouter(), FakeCatalogue(), FakeNode(), settings, deploy_routes(shelf))


@pytest.fixture
def client(app: QuartTrio) -> TrioClient:
    return app.test_client()


def form(*parts: tuple[str, str | None, bytes]) -> bytes:
    """A multipart body; a part is its name, a file name or None, and its bytes."""
    lines = []
    for name, filename, data in parts:
        told = f'; filename="{filename}"' if filename is not None else ""
        head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{told}\r\n\r\n'
        lines.append(head.encode() + data + b"\r\n")
    return b"".join(lines) + b"--XX--\r\n"


def said(**fields: Any) -> bytes:
    return json.dumps({"name": "my-model", **fields}).encode()


FORM = {"Content-Type": "multipart/form-data; boundary=XX"}
STREAM = {"Content-Type": "application/octet-stream"}
JSON = {"Content-Type": "application/json"}


async def send(client: TrioClient, data: bytes, headers: dict[str, str], query: str = "", **more: Any) -> Any:
    answer = await client.post(URL + query, data=data, headers=headers, **more)
    return answer.status_code, json.loads(await answer.get_data())


def leftovers(shelf: FakeShelf) -> list[Path]:
    return list(shelf.store._staging.iterdir())


async def test_a_form_deploys(client, shelf) -> None:
    metadata = said(version="2.0.0", description="自定义模型", fee=0.1)
    for parts in (
        (("metadata", None, metadata), ("file", "m.onnx", b"\x08\x07model")),
        (("file", "m.onnx", b"\x08\x07model"), ("metadata", "meta.json", metadata)),
    ):
        status, body = await send(client, form(*parts), FORM)
        assert (status, body) == (201, {"model_id": MODEL_ID, "name": "my-model", "version": "2.0.0"})
    told = ("model.onnx", b"\x08\x07model", "my-model", Amount(100_000), "2.0.0", "自定义模型")
    assert shelf.deployed == [told, told]
    assert leftovers(shelf) == []


async def test_a_body_deploys_with_the_metadata_as_query(client, shelf) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model.onnx", b"x")
    query = "?name=my%20model&fee=0.25"
    assert (await send(client, packed.getvalue(), STREAM, query))[0] == 201
    told = ("bundle", packed.getvalue(), "my model", Amount(250_000), "1.0.0", "")
    assert shelf.deployed == [told]


async def test_a_local_caller_may_name_a_path(client, shelf, tmp_path) -> None:
    body = said(path=str(tmp_path), fee="0.5")
    assert (await send(client, body, JSON, **LOCAL))[0] == 201
    assert shelf.deployed == [(tmp_path.name, b"", "my-model", Amount(500_000), "1.0.0", "")]


@pytest.mark.parametrize(
    ("scope", "header"),
    [
        ({"client": ("10.0.0.7", 5000)}, {}),
        ({"client": ("2001:db8::1", 5000)}, {}),
        ({"client": None}, {}),
        (LOCAL["scope_base"], {"X-Forwarded-For": "10.0.0.7"}),
        (LOCAL["scope_base"], {"Forwarded": "for=127.0.0.1"}),
    ],
)
async def test_nobody_else_may(client, shelf, scope: dict[str, Any], header: dict[str, str]) -> None:
    status, problem = await send(client, said(path="/etc"), JSON | header, scope_base=scope)
    assert (status, problem["code"], shelf.deployed) == (401, 4001, [])


@pytest.mark.parametrize(
    ("data", "headers", "query", "status", "named"),
    [
        (form(("metadata", None, b"{")), FORM, "", 422, "lacks the part file"),
        (form(("file", "m", b"x")), FORM, "", 422, "lacks the part metadata"),
        (form(("metadata", None, b"{"), ("file", "m", b"x")), FORM, "", 400, "not JSON"),
        (form(("metadata", None, b"[]"), ("file", "m", b"x")), FORM, "", 422, "object"),
        (form(("metadata", None, b'{"name":""}'), ("file", "m", b"x")), FORM, "", 422, "$.name"),
        (form(("file", "m", b"x"), ("metadata", None, said(fee=-1))), FORM, "", 422, "fee"),
        (form(("file", "m", b"x"), ("file", "m", b"x")), FORM, "", 422, "'file'"),
        (form(("other", None, b"x")), FORM, "", 422, "'other'"),
        (form(("metadata", None, b" " * 70_000)), FORM, "", 413, "metadata"),
        (form(("metadata", None, said(name="n" * (1 << 20)))), FORM, "", 413, "metadata"),
        (form(("metadata", None, b"{}"))[:-8], FORM, "", 400, "multipart"),
        (b"", FORM, "", 400, "multipart"),
        (b"--XX\r\n" + b"x" * 2_000_000, FORM, "", 413, "head"),
        (form(*[("metadata", None, b"")] * 20), FORM, "", 413, "8 parts"),
        (b"x", {"Content-Type": "multipart/form-data"}, "", 400, "boundary"),
        (b"x", {"Content-Type": f"multipart/form-data; boundary={'b' * 71}"}, "", 400, "boundary"),
        (b"x", {"Content-Type": "text/plain"}, "?name=m", 415, "octet-stream"),
        (b"x", STREAM, "", 422, "not a model name"),
        (b"x", STREAM, "?name=../m", 422, "not a model name"),
        (b"x", STREAM, "?name=m&version=", 422, "version"),
        (b"x", STREAM, "?name=m&fee=much", 422, "fee"),
        (b"x", STREAM, "?name=m&path=/etc", 422, "`path`"),
        (b"x" * 3_000_001, STREAM, "?name=m", 413, "what is left"),
        (form(("metadata", None, said()), ("file", "m", b"x" * 3_000_001)), FORM, "", 413, "what is left"),
        (said(path="models/m.onnx"), JSON, "", 422, "absolute"),
        (said(path="/m\0"), JSON, "", 422, "absolute"),
        (said(path=7), JSON, "", 422, "$.path"),
        (said(), JSON, "", 422, "`path`"),
        (b" " * 100_001, JSON, "", 413, "larger than the 100000 bytes"),
        (said(path="/m", name="taken"), JSON, "", 409, "taken"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
async def test_bad_uploads(
    client, shelf, data: bytes, headers: dict[str, str], query: str, status: int, named: str
) -> None:
    got, problem = await send(client, data, headers, query, **LOCAL)
    assert (got, shelf.deployed, leftovers(shelf)) == (status, [], [])
    assert named in problem["detail"]


async def test_what_is_refused_before_a_file_comes_is_no_deployment(shelf) -> None:
    settings = GatewaySettings(Gate(limits=Limits(read_rates("deploy=1/hour"))))
    app = create_app(FakeRouter(), FakeCatalogue(), FakeNode(), settings, deploy_routes(shelf))
    client = app.test_client()
    file = ("file", "m", b"x")
    for data, headers in (
        (form(("metadata", None, said(name="no!")), file), FORM),
        (form(("metadata", None, said())), FORM),
        (said(path="m.onnx"), JSON),
        (said(path="/m", name="no!"), JSON),
    ):
        assert (await send(client, data, headers, **LOCAL))[0] == 422
    for status in (201, 429):
        assert (await send(client, form(("metadata", None, said()), file), FORM))[0] == status


async def test_bad_words_are_refused_before_the_file_comes(app, shelf, autojump_clock) -> None:
    head = form(("metadata", None, said(fee=-1)), ("file", "m", b""))[:-10]
    async with app.test_client().request(URL, method="POST", headers=FORM) as connection:
        await connection.send(head)
        answer = await connection.as_response()
    assert answer.status_code == 422


class InMemory:
    """Where an upload goes in virtual time, which threads would upset."""

    async def write(self, piece: bytes) -> None:
        pass

    async def finish(self) -> Path:
        return Path("nowhere")


async def test_an_upload_may_be_slow_but_not_stand_still(app, shelf, autojump_clock, monkeypatch) -> None:
    monkeypatch.setattr(shelf, "incoming", lambda: nullcontext(InMemory()))
    async with app.test_client().request(URL + "?name=m", method="POST", headers=STREAM) as connection:
        for _ in range(10):
            await connection.send(b"x" * 70_000)
            await trio.sleep(4)
        await connection.send_complete()
        assert (await connection.as_response()).status_code == 201
    async with app.test_client().request(URL + "?name=m", method="POST", headers=STREAM) as connection:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drip, connection)
            answer = await connection.as_response()
            nursery.cancel_scope.cancel()
    assert (answer.status_code, trio.current_time() - started) == (408, pytest.approx(5))


async def _drip(connection: Any) -> None:
    while True:
        await trio.sleep(0.1)
        await connection.send(b"x")


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not true():  # noqa: ASYNC110 - the disk tells nobody
            await trio.sleep(0.01)


async def test_a_client_that_hangs_up_leaves_nothing(app, shelf) -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        url = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rsplit(":", 1)[1])) as stream:
            head = f"POST {URL}?name=m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n"
            await stream.send_all(
                f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + b"x" * 300_000
            )
            await until(lambda: leftovers(shelf) != [])
        await until(lambda: leftovers(shelf) == [])
        stop.set()
    assert shelf.deployed == []


async def test_uploads_together_are_held_against_the_quota(shelf) -> None:
    async with shelf.incoming() as first, shelf.incoming() as second:
        await first.write(b"x" * 2_000_000)
        with pytest.raises(TooLarge):
            await second.write(b"x" * 1_000_001)
        await second.write(b"x" * 1_000_000)
    async with shelf.incoming() as third:
        await third.write(b"x" * 3_000_000)


async def test_a_body_is_held_back_while_nobody_takes_it() -> None:
    body, came = Body(None, None), 0

    async def client() -> None:
        nonlocal came
        for _ in range(100):
            await body.room()
            body.append(b"x" * 64 * 1024)
            came += 64 * 1024
        body.set_complete()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        await trio.testing.wait_all_tasks_blocked()
        assert came == HELD
        taken = 0
        while piece := await body.take():
            assert len(piece) <= HELD
            taken += len(piece)
            await trio.testing.wait_all_tasks_blocked()
    assert taken == came == 100 * 64 * 1024


async def test_a_model_is_told_and_taken_away(client, shelf) -> None:
    path = f"{URL}/{MODEL_ID}"
    body = json.loads(await (await client.get(path)).get_data())
    assert (body["model_id"], body["own"], body["offers"][0]["fee"]) == (MODEL_ID, False, 0.1)
    answer = await client.delete(path)
    assert (answer.status_code, json.loads(await answer.get_data())["code"]) == (404, 1001)
    shelf.own.add(MODEL_ID)
    assert json.loads(await (await client.get(path)).get_data())["own"]
    answer = await client.delete(path)
    assert (answer.status_code, json.loads(await answer.get_data())) == (200, {"model_id": MODEL_ID})
    assert not shelf.own


@pytest.mark.parametrize(
    ("id", "status"), [("0" * 64, 404), ("0" * 63, 422), ("A" * 64, 422), ("x" * 5000, 422)]
)
async def test_other_ids(client, id: str, status: int) -> None:
    for ask in (client.get, client.delete):
        answer = await ask(f"{URL}/{id}")
        assert answer.status_code == status
        assert json.loads(await answer.get_data())["code"] in (1001, 1004)
