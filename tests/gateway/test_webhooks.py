"""Webhooks: registered over REST, told durably, tried again, dead at last and revived."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from quart_trio import QuartTrio
from standardwebhooks.webhooks import Webhook as Official

from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.core.model import Card
from llmesh.errors import ModelFailed, NetworkError, ValidationFailed
from llmesh.gateway.app import GatewaySettings, application
from llmesh.gateway.gate import Gate
from llmesh.gateway.webhooks.courier import Courier, CourierSettings, open_courier
from llmesh.gateway.webhooks.routes import webhook_routes
from llmesh.journal.open import open_journal
from llmesh.journal.outbox import AddIntent
from llmesh.journal.webhooks import AddWebhook, Webhook
from llmesh.journal.writer import Change
from llmesh.mesh.events import Events, InferenceEnded, ModelDeployed, Served


def offer(name: str, fee: str) -> tuple[Offer, None]:
    card = Card(name, version="1.0.0")
    return Offer(ModelId("ab" * 32), card, "text-generation", Amount.parse(fee)), None


ME = PeerId("12D3KooW" + "A" * 44)
URL = "https://example.com/hook"
SECRET = "webhook_secret"
ROUNDS = 8
MOST_STEPS = 100
DONE = InferenceEnded(
    RequestId("ab" * 16), Served.CALLER, "m", ModelId("cd" * 32), ME, Amount.parse("0.1"), 12.3456
)


@dataclass
class FakeCallout:
    """Answers what a test says; what was posted is kept."""

    statuses: list[int | Exception] = field(default_factory=list)
    posted: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    async def check(self, url: str) -> None:
        if "inside" in url:
            raise ValidationFailed("The address of the webhook is not public.")

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        await trio.lowlevel.checkpoint()
        self.posted.append((url, dict(headers), body))
        if "deaf" in url:
            await trio.sleep(10)
            raise NetworkError("The webhook could not be reached.")
        status = self.statuses.pop(0) if self.statuses else 204
        if isinstance(status, Exception):
            raise status
        return status


@dataclass
class World:
    """A courier with all that it needs, on the clock of the event loop."""

    courier: Courier
    callout: FakeCallout
    events: Events
    client: Any
    clock: trio.testing.MockClock

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        given = {} if body is None else {"json": body}
        answer = await getattr(self.client, method)(f"/api/v1/{path}", **given)
        return answer.status_code, json.loads(await answer.get_data())

    async def register(self, **more: Any) -> str:
        body = {"url": URL, "events": ["inference_complete"], "secret": SECRET, **more}
        status, told = await self.call("post", "webhooks", body)
        assert status == 201, told
        return str(told["id"])

    async def deliveries(self, id: str, query: str = "") -> list[dict[str, Any]]:
        _, told = await self.call("get", f"webhooks/{id}/deliveries{query}")
        found: list[dict[str, Any]] = told["deliveries"]
        return found


def clock() -> Callable[[], float]:
    """Seconds since 1970 by the event loop's clock, from a fixed moment on."""
    start = trio.current_time()
    return lambda: 1_800_000_000 + trio.current_time() - start


async def settled(world: World, seconds: float = 0.0) -> None:
    """Let time pass, then the courier come to rest: its threads take real time, its waits none."""
    await trio.testing.wait_all_tasks_blocked(0.005)
    world.clock.jump(seconds)
    for _ in range(ROUNDS):
        await world.courier.journal.commit()
        await trio.testing.wait_all_tasks_blocked(0.005)


async def until(world: World, posts: int, step: float = 0.0) -> None:
    """Let time pass in steps until so many deliveries were tried."""
    for _ in range(MOST_STEPS):
        if len(world.callout.posted) >= posts:
            break
        await settled(world, step)
    await settled(world)
    assert len(world.callout.posted) == posts


@pytest.fixture
async def world(tmp_path: Path, mock_clock) -> AsyncIterator[World]:
    callout, events = FakeCallout(), Events()
    async with (
        open_journal(tmp_path / "journal.db", ME) as journal,
        open_courier(journal, events, callout, CourierSettings(hours=1), clock()) as courier,
    ):
        app: QuartTrio = application(webhook_routes(courier), GatewaySettings(Gate(guard=None)))
        yield World(courier, callout, events, app.test_client(), mock_clock)


def verified(sent: tuple[str, dict[str, str], bytes], secret: str = SECRET) -> Any:
    """The event of a delivery, once the official library has made the same signature."""
    _, headers, body = sent
    official = Official(base64.b64encode(secret.encode()).decode())
    at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    expected = official.sign(headers["webhook-id"], at, body.decode())
    assert expected in headers["webhook-signature"].split()
    return json.loads(body)


async def test_an_event_is_told_signed(world: World, mock_clock) -> None:
    id = await world.register()
    world.events.tell(DONE)
    await until(world, 1)
    (sent,) = world.callout.posted
    told = verified(sent)
    assert (sent[0], told["type"]) == (URL, "inference_complete")
    assert told["timestamp"].startswith("2027-01-15T08:00:")
    assert told["data"] == {
        "request_id": "ab" * 16, "served": "caller", "model": "m", "model_id": "cd" * 32, "provider": ME,
        "fee": 0.1, "latency_ms": 12.346,
    }  # fmt: skip
    (delivery,) = await world.deliveries(id)
    assert (delivery["state"], delivery["type"], delivery["id"]) == (
        "done", "inference_complete", sent[1]["webhook-id"],
    )  # fmt: skip


async def test_only_what_was_asked_for_is_told(world: World, mock_clock) -> None:
    await world.register(events=["model_deployed"])
    world.events.tell(DONE)
    world.events.tell(replace(DONE, error=ModelFailed("It broke.")))
    await settled(world)
    assert not world.callout.posted
    world.events.tell(ModelDeployed(offer("gpt-mini", "2")[0]))
    await until(world, 1)
    assert verified(world.callout.posted[0])["data"]["name"] == "gpt-mini"


async def test_a_failed_delivery_is_tried_again_as_the_same(world: World, mock_clock) -> None:
    id = await world.register()
    world.callout.statuses = [500, NetworkError("The webhook could not be reached.")]
    world.events.tell(DONE)
    await until(world, 1)
    (delivery,) = await world.deliveries(id, "?state=waiting")
    assert (delivery["attempts"], delivery["last_error"]) == (1, "The webhook answered 500.")
    await until(world, 3, 10)
    assert len({headers["webhook-id"] for _, headers, _ in world.callout.posted}) == 1
    assert len({headers["webhook-timestamp"] for _, headers, _ in world.callout.posted}) == 3
    assert [d["state"] for d in await world.deliveries(id)] == ["done"]


async def test_what_never_arrives_is_dead_and_may_be_revived(world: World, mock_clock) -> None:
    id = await world.register()
    world.callout.statuses = [500] * 50
    world.events.tell(DONE)
    while not (found := await world.deliveries(id, "?state=dead")):
        await settled(world, 600)
    (dead,) = found
    tries = len(world.callout.posted)
    assert tries == dead["attempts"] > 3
    assert (await world.call("post", "deliveries/msg_" + "0" * 32 + "/replay"))[0] == 404
    world.callout.statuses = []
    status, told = await world.call("post", f"deliveries/{dead['id']}/replay")
    assert (status, told["state"]) == (200, "waiting")
    await until(world, tries + 1)
    assert (await world.call("post", f"deliveries/{dead['id']}/replay"))[0] == 409


async def test_who_says_gone_is_not_asked_again(world: World, mock_clock) -> None:
    id = await world.register()
    world.callout.statuses = [410]
    world.events.tell(DONE)
    await until(world, 1)
    assert [(d["state"], d["attempts"]) for d in await world.deliveries(id)] == [("dead", 1)]


async def test_who_does_not_answer_holds_up_nobody_else(world: World, mock_clock) -> None:
    await world.register(url="https://deaf.example.com/")
    await world.register()
    for _ in range(20):
        world.events.tell(DONE)
    told: list[str] = []
    for _ in range(MOST_STEPS):
        await settled(world)
        told = [url for url, _, _ in world.callout.posted]
        if told.count(URL) == 20:
            break
    assert told.count(URL) == 20
    assert 0 < len(told) - 20 <= CourierSettings().at_once


async def test_the_same_webhook_registered_again_is_the_same(world: World, mock_clock) -> None:
    first = await world.register()
    assert [await world.register(), await world.register()] == [first, first]
    other = await world.register(events=["model_deployed"])
    assert other != first
    assert await world.register(secret="another_secret") not in (first, other)
    assert len(world.courier.hooks) == 3


async def test_registered_twice_at_a_time_it_is_told_once(world: World, mock_clock) -> None:
    found = []

    async def register() -> None:
        found.append(await world.register())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(register)
        nursery.start_soon(register)
    assert found[0] == found[1]
    world.events.tell(DONE)
    await settled(world)
    assert len(world.callout.posted) == 1


async def test_a_new_secret_signs_beside_the_old_one_for_a_day(world: World, mock_clock) -> None:
    id = await world.register()
    status, told = await world.call("post", f"webhooks/{id}/secret", {"secret": "another_secret"})
    assert (status, "secret" in told) == (200, False)
    world.events.tell(DONE)
    await until(world, 1)
    verified(world.callout.posted[0])
    verified(world.callout.posted[0], "another_secret")
    await settled(world, 90_000)
    world.events.tell(DONE)
    await until(world, 2)
    verified(world.callout.posted[1], "another_secret")
    assert " " not in world.callout.posted[1][1]["webhook-signature"]


async def test_a_secret_is_made_and_shown_once(world: World, mock_clock) -> None:
    _, told = await world.call("post", "webhooks", {"url": URL, "events": ["model_deployed"]})
    assert told["secret"].startswith("whsec_")
    _, again = await world.call("get", f"webhooks/{told['id']}")
    assert "secret" not in again
    _, listed = await world.call("get", "webhooks")
    assert listed["webhooks"] == [again]


async def test_under_one_key_one_secret_is_made(world: World, mock_clock) -> None:
    one, two = [await world.register(secret=f"webhook_secret_{n}") for n in range(2)]
    same = {"json": {}, "headers": {"Idempotency-Key": "k"}}
    told = [await world.client.post(f"/api/v1/webhooks/{id}/secret", **same) for id in (one, one, two)]
    assert [answer.status_code for answer in told] == [200, 200, 409]
    assert await told[0].get_data() == await told[1].get_data()


async def test_a_ping_tells_what_became_of_it(world: World, mock_clock) -> None:
    id = await world.register()
    assert await world.call("post", f"webhooks/{id}/ping") == (200, {"delivered": True, "error": ""})
    assert verified(world.callout.posted[0])["type"] == "ping"
    world.callout.statuses = [503]
    _, told = await world.call("post", f"webhooks/{id}/ping")
    assert told == {"delivered": False, "error": "The webhook answered 503."}


async def test_what_is_removed_is_told_no_more(world: World, mock_clock) -> None:
    id = await world.register()
    world.callout.statuses = [500]
    world.events.tell(DONE)
    await until(world, 1)
    assert await world.call("delete", f"webhooks/{id}") == (200, {"id": id})
    await settled(world, 4000)
    assert len(world.callout.posted) == 1
    for method, path in (("get", ""), ("delete", ""), ("get", "/deliveries"), ("post", "/ping")):
        assert (await world.call(method, f"webhooks/{id}{path}"))[0] == 404


@pytest.mark.parametrize(
    "change",
    [
        {"url": ""}, {"url": "https://inside/"}, {"url": 3}, {"events": []}, {"events": ["nothing"]},
        {"events": "inference_complete"}, {"secret": "short"}, {"secret": "whsec_!!!!!!!!"}, {"more": 1},
    ],
)  # fmt: skip
async def test_bad_input_registers_nothing(world: World, mock_clock, change: dict[str, Any]) -> None:
    body = {"url": URL, "events": ["inference_complete"], "secret": SECRET, **change}
    status, told = await world.call("post", "webhooks", body)
    assert (status, told["code"]) == (422, 1004)
    assert (await world.call("get", "webhooks"))[1] == {"webhooks": []}


async def test_what_was_not_sent_survives_a_restart(tmp_path: Path, mock_clock) -> None:
    callout, events = FakeCallout([500]), Events()
    for start in range(2):
        async with (
            open_journal(tmp_path / "journal.db", ME) as journal,
            open_courier(journal, events, callout, CourierSettings(), clock()) as courier,
        ):
            app: QuartTrio = application(webhook_routes(courier), GatewaySettings(Gate(guard=None)))
            world = World(courier, callout, events, app.test_client(), mock_clock)
            if start == 0:
                await world.register()
                events.tell(DONE)
            await until(world, start + 1, 60 * start)
    assert len({headers["webhook-id"] for _, headers, _ in callout.posted}) == 1


async def test_what_is_told_last_survives_a_stop(tmp_path: Path, mock_clock) -> None:
    events = Events()
    for start in range(2):
        callout = FakeCallout()
        async with (
            open_journal(tmp_path / "journal.db", ME) as journal,
            open_courier(journal, events, callout, CourierSettings(), clock()) as courier,
        ):
            app: QuartTrio = application(webhook_routes(courier), GatewaySettings(Gate(guard=None)))
            world = World(courier, callout, events, app.test_client(), mock_clock)
            if start == 0:
                await world.register()
                for _ in range(3):
                    events.tell(DONE)
            else:
                await until(world, 3)


async def test_many_events_share_a_commit(world: World, mock_clock, monkeypatch) -> None:
    """One by one they would come faster than a disk takes them, and the oldest be lost."""
    await world.register()
    added: list[int] = []
    commit = world.courier.journal.commit

    async def counted(*changes: Any) -> None:
        added.append(sum(isinstance(change, AddIntent) for change in changes))
        await commit(*changes)

    monkeypatch.setattr(world.courier.journal, "commit", counted)
    for _ in range(20):
        world.events.tell(DONE)
    await until(world, 20)
    assert max(added) == sum(added) == 20


async def test_lost_events_are_told_of_in_the_log(world: World, mock_clock, caplog) -> None:
    await world.register()
    for _ in range(CourierSettings().capacity + 2):
        world.events.tell(DONE)
    await settled(world)
    assert "2 events for webhooks are lost" in caplog.text


async def test_who_hangs_up_in_the_middle_is_heard_all_the_same(world: World, mock_clock) -> None:
    """The change is durable by then, so what is told from now on must go by it."""
    scope, token = trio.CancelScope(), trio.lowlevel.current_trio_token()

    @dataclass(frozen=True)
    class HungUp:
        change: Change

        def apply(self, db: Any) -> None:
            self.change.apply(db)
            token.run_sync_soon(scope.cancel)

    hook = Webhook("wh_" + "0" * 24, URL, frozenset({"inference_complete"}), SECRET, 1.0)
    with scope:
        await world.courier.change(HungUp(AddWebhook(hook)))
    assert world.courier.hooks == (hook,)
