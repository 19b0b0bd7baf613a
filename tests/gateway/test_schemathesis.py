"""The whole app against its own OpenAPI document: schemathesis asks, by rights and wrongs, and checks.

The app runs on a real Hypercorn in a thread, over fakes that answer whatever is well formed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import cast

import apsw
import pytest
import schemathesis
import trio
from hypothesis import HealthCheck, settings

from llmesh.gateway.app import GatewaySettings, application, routes
from llmesh.gateway.batch import batch_routes
from llmesh.gateway.deploy import deploy_routes
from llmesh.gateway.openapi import Route, document
from llmesh.gateway.peers import peers_routes
from llmesh.gateway.receipts import receipts_routes
from llmesh.gateway.server import bind, serve
from llmesh.gateway.wallet import Wallet
from llmesh.gateway.webhooks.courier import Courier, CourierSettings
from llmesh.gateway.webhooks.routes import webhook_routes
from llmesh.journal.open import Journal
from llmesh.journal.schema import migrate
from llmesh.journal.writer import Change
from llmesh.ledger.memory import MemoryLedger
from llmesh.runtime.store import open_store
from tests.core.banking import ALICE, GENESIS, ISSUER, SIGN

from .conftest import PROVIDER, FakeCatalogue, FakeNode, FakeRouter
from .test_deploy import FakeShelf
from .test_webhooks import FakeCallout


class InMemory:
    """A journal without a file."""

    def __init__(self) -> None:
        self._db = apsw.Connection(":memory:")
        migrate(self._db, 0, PROVIDER)

    async def read(self, query: Callable[..., object], *arguments: object) -> object:
        return query(self._db, *arguments)

    async def commit(self, *changes: Change) -> None:
        with self._db:
            for change in changes:
                change.apply(self._db)


_ROUTER = FakeRouter()
_JOURNAL = cast("Journal", InMemory())
_COURIER = Courier(_JOURNAL, FakeCallout(), CourierSettings(), time.time, Random())
_WALLET = Wallet(_JOURNAL, MemoryLedger(GENESIS, SIGN[ISSUER], time.time), ALICE, str)
_SHELF = FakeShelf.__new__(FakeShelf)  # its store comes with the server


def table(router: FakeRouter, shelf: FakeShelf) -> tuple[Route, ...]:
    """All that a node's gateway serves."""
    more = (
        *deploy_routes(shelf),
        *batch_routes(router),
        *peers_routes(FakeNode()),
        *receipts_routes(_WALLET),
        *webhook_routes(_COURIER),
    )
    return routes(router, FakeCatalogue(), FakeNode(), more)


TABLE = table(_ROUTER, _SHELF)

# Answers to what fits the schemas: 422 for words that a schema cannot check (names, amounts, paths), and
# 400, under which the faces of other software say the same.
_ACCEPTABLE = ["2xx", "401", "403", "404", "409", "422", "429"]
_CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {"positive_data_acceptance": {"expected-statuses": _ACCEPTABLE}},
        "operations": [
            {
                "include-path-regex": "^/v[12]/",
                "checks": {"positive_data_acceptance": {"expected-statuses": [*_ACCEPTABLE, "400"]}},
            }
        ],
    }
)
# Events come for ever; tests/gateway/test_server_sent.py has them.
schema = schemathesis.openapi.from_dict(document(TABLE), config=_CONFIG).exclude(path="/api/v1/events")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    started: queue.SimpleQueue[tuple[str, trio.lowlevel.TrioToken, trio.Event]] = queue.SimpleQueue()
    folder: Path = tmp_path_factory.mktemp("store")

    async def run() -> None:
        stop = trio.Event()
        FakeShelf.__init__(_SHELF, await open_store(folder, quota=3_000_000))
        app = application(TABLE, GatewaySettings(body_timeout=5))
        async with trio.open_nursery() as nursery:
            url = await nursery.start(serve, app, bind("127.0.0.1", 0), stop)
            started.put((url, trio.lowlevel.current_trio_token(), stop))

    thread = threading.Thread(target=trio.run, args=(run,), daemon=True)
    thread.start()
    url, token, stop = started.get(timeout=10)
    yield url
    trio.from_thread.run_sync(stop.set, trio_token=token)
    thread.join(timeout=10)
    assert not thread.is_alive()


@schema.parametrize()
@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_app_does_what_its_document_says(url: str, case: schemathesis.Case) -> None:
    case.call_and_validate(base_url=url)
