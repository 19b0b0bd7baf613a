"""`register_webhook` has registered when it returns, awaited or not, and never blocks its own node."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import trio
from llmesh_sdk import MeshClient
from llmesh_sdk import sync as blocking
from llmesh_sdk.serving import serving

from llmesh.core.ids import PeerId
from llmesh.errors import NodeUnreachable, ValidationFailed
from llmesh.gateway.app import GatewaySettings, application
from llmesh.gateway.gate import Gate
from llmesh.gateway.server import bind, serve
from llmesh.gateway.webhooks.courier import Courier, CourierSettings, open_courier
from llmesh.gateway.webhooks.routes import webhook_routes
from llmesh.journal.open import open_journal
from llmesh.mesh.events import Events

URL = "https://example.com/webhook"
EVENTS = ["inference_complete", "model_deployed"]


class NoCallout:
    """Nothing is called; what is inside is refused."""

    async def check(self, url: str) -> None:
        if "inside" in url:
            raise ValidationFailed("The address of the webhook is not public.")

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        return 204


class Gateway:
    """A gateway of webhooks in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready: queue.Queue[tuple[str, Courier, trio.lowlevel.TrioToken, trio.Event]] = queue.Queue()
        self._thread = threading.Thread(target=trio.run, args=(self._run,))
        self._thread.start()
        self.url, self.courier, self._token, self._stop = self._ready.get(timeout=10)

    def close(self) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(10)

    async def _run(self) -> None:
        stop = trio.Event()
        async with (
            open_journal(self._folder / "journal.db", PeerId("12D3KooW" + "A" * 44)) as journal,
            open_courier(journal, Events(), NoCallout(), CourierSettings()) as courier,
            trio.open_nursery() as nursery,
        ):
            app = application(webhook_routes(courier), GatewaySettings(Gate(guard=None)))
            url: str = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
            self._ready.put((url, courier, trio.lowlevel.current_trio_token(), stop))


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    yield gateway
    gateway.close()


def test_the_contract_verbatim(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMESH_URL", gateway.url)
    client = MeshClient()
    client.register_webhook(
        url="https://example.com/webhook",
        events=["inference_complete", "model_deployed"],
        secret="webhook_secret",
    )
    (hook,) = gateway.courier.hooks
    assert (hook.url, hook.secret, sorted(hook.events)) == (URL, "webhook_secret", EVENTS)


def test_it_may_be_awaited_in_any_loop(gateway: Gateway) -> None:
    async def awaited() -> None:
        hook = await MeshClient(gateway.url).register_webhook(URL, EVENTS)
        assert (hook.url, hook.events) == (URL, tuple(EVENTS))
        assert (hook.secret or "").startswith("whsec_")

    asyncio.run(awaited())
    trio.run(awaited)
    assert len(gateway.courier.hooks) == 2
    assert blocking.MeshClient(gateway.url).register_webhook(URL, EVENTS).id
    assert len(gateway.courier.hooks) == 3


def test_in_the_loop_of_its_own_node_it_is_refused(gateway: Gateway) -> None:
    async def main() -> None:
        with serving(), pytest.raises(RuntimeError, match="very event loop"):
            MeshClient(gateway.url).register_webhook(URL, EVENTS)
        with serving():
            await trio.to_thread.run_sync(MeshClient(gateway.url).register_webhook, URL, EVENTS)

    trio.run(main)
    assert len(gateway.courier.hooks) == 1


def test_bad_input_registers_nothing(gateway: Gateway) -> None:
    client = MeshClient(gateway.url)
    for url, events, secret in (
        ("https://inside/", EVENTS, None), (URL, [], None), (URL, ["nothing"], None),
        (URL, "model_deployed", None), (URL, EVENTS, "short"),
    ):  # fmt: skip
        with pytest.raises(ValidationFailed):
            client.register_webhook(url, events, secret)
    assert not gateway.courier.hooks


def test_where_no_node_is() -> None:
    with pytest.raises(NodeUnreachable):
        MeshClient("http://127.0.0.1:1").register_webhook(URL, EVENTS)
