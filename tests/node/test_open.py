"""open_node inside a trio program, on real loopback sockets."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from llmesh.core.amount import Amount
from llmesh.core.announcement import MAX_DESCRIPTION
from llmesh.core.reference import ModelRef
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import InsufficientStake, ModelNotFound, NodeBusy, TooLarge, ValidationFailed
from llmesh.ledger.local import verify_ledger
from llmesh.mesh.events import EventName, ModelDeployed, TransferProgressed
from llmesh.node.config import NodeConfig
from llmesh.node.faults import StartRefused
from llmesh.node.files import write_durably
from llmesh.node.home import open_home
from llmesh.node.open import open_node
from llmesh.node.values import Deployment
from llmesh.runtime.store import open_store

TEXT = {"text": "你好世界"}


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(port=0, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, data_dir=tmp_path / "home")


def is_free(config: NodeConfig) -> bool:
    with open_home(config.data_dir):
        return not (config.data_dir / "node.json").exists()


async def test_a_model_has_one_offer_under_its_latest_name(config: NodeConfig) -> None:
    async with open_node(config) as node:
        id = await node.deploy(SENTIMENT_ANALYZER, "first", Amount.parse(0.1))
        assert id == await node.deploy(SENTIMENT_ANALYZER / "model.onnx", "second", version="2")
        [(offer, announcement)] = await node.search("", None, 10)
        assert (offer.card.name, offer.card.version, offer.fee) == ("second", "2", Amount(0))
        assert announcement.offers == (offer,) == node.offers
        assert (await node.request("second", TEXT)).model_id == id
        assert (await node.request("second:2", "文字")).model == "second"
        with pytest.raises(ModelNotFound):
            await node.request("first", TEXT)
        status = await node.status()
        assert (status.models, status.peers, status.reachable) == (1, 0, None)
        for _ in range(500):  # it is tried beside the start
            if (status := await node.status()).sandbox:
                break
            await trio.sleep(0.02)
        assert "cpu" in status.providers
        [worker] = status.workers
        assert (worker.model_id, worker.provider) == (id, "cpu")
        assert worker.sandbox in {"none", "limits", "filtered", "confined"}
    assert is_free(config)


async def test_only_what_is_not_on_offer_makes_room(config: NodeConfig, tmp_path: Path) -> None:
    served, new, third = (tmp_path / name for name in ("served", "new", "third"))
    for number, folder in enumerate((served, new, third)):
        shutil.copytree(SENTIMENT_ANALYZER, folder)
        (folder / "extra").write_bytes(bytes([number]))
    size = sum(path.stat().st_size for path in served.iterdir())
    models = config.data_dir / "store/models"
    before = (await (await open_store(models.parent)).add(SENTIMENT_ANALYZER)).id
    async with open_node(replace(config, store_quota=2 * size)) as node:
        first = await node.deploy(served)
        for folder in models.iterdir():
            os.utime(folder, (1, 1) if folder.name == first else (2, 2))
        second = await node.deploy(new)
        assert {folder.name for folder in models.iterdir()} == {first, second} != {first, before}
        os.utime(models / second, (2, 2))
        with pytest.raises(TooLarge, match="are taken"):
            await node.deploy(third)
        assert {folder.name for folder in models.iterdir()} == {first, second}


async def test_without_the_stake_nothing_is_served(config: NodeConfig) -> None:
    async with open_node(replace(config, stake=Amount(4), min_stake=Amount(5))) as node:
        with pytest.raises(InsufficientStake):
            await node.deploy(SENTIMENT_ANALYZER, "m")
        assert node.offers == ()
        with pytest.raises(ModelNotFound):
            await node.request("m", TEXT)


async def test_a_lone_node_has_money_and_bonds_its_stake(config: NodeConfig) -> None:
    async with open_node(replace(config, stake=Amount.parse(1000))) as node:
        status = await node.status()
        assert (status.stake, status.earnings) == (Amount.parse(1000), Amount(0))
    async with open_node(replace(config, stake=Amount.parse(1100))) as node:
        assert (await node.status()).stake == Amount.parse(1100)
    async with open_node(config) as node:
        assert (await node.status()).stake == Amount.parse(1100)
    found = verify_ledger(config.data_dir / "ledger.db")
    assert (found.head.sequence, found.genesis.genesis.minted) == (2, Amount.parse(1_000_000))


async def test_a_damaged_ledger_is_refused(config: NodeConfig) -> None:
    config.data_dir.mkdir(mode=0o700)
    (config.data_dir / "ledger.db").write_bytes(b"no database" * 500)
    with pytest.raises(StartRefused, match=r"ledger\.db cannot be used"):
        async with open_node(config):
            pass


async def test_a_stake_above_the_balance_is_refused(config: NodeConfig) -> None:
    with pytest.raises(StartRefused, match=r"1000000 MESH, not 1000000\.5"):
        async with open_node(replace(config, stake=Amount.parse("1000000.5"))):
            pass
    assert is_free(config)


async def test_a_key_that_is_none_is_refused(config: NodeConfig) -> None:
    config.data_dir.mkdir(mode=0o700)
    write_durably(config.data_dir / "account.key", b"0" * 64)
    with pytest.raises(StartRefused, match=r"account\.key is no key"):
        async with open_node(config):
            pass


async def test_what_cannot_be_announced_leaves_the_offer_as_it_was(config: NodeConfig) -> None:
    async with open_node(config) as node:
        with pytest.raises(ValidationFailed):
            await node.deploy(SENTIMENT_ANALYZER, "m", description="x" * (MAX_DESCRIPTION + 1))
        assert node.offers == ()
        await node.deploy(SENTIMENT_ANALYZER, "m", Amount(7))
        with pytest.raises(ValidationFailed):
            await node.deploy(SENTIMENT_ANALYZER, "n", Amount(8), description="x" * (MAX_DESCRIPTION + 1))
        [offer] = node.offers
        assert (offer.card.name, offer.fee) == ("m", Amount(7))
        assert [found for found, _ in await node.search("", None, 10)] == [offer]


async def test_what_the_block_raises_comes_out_as_it_is(config: NodeConfig) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_node(config):
            raise ZeroDivisionError
    assert is_free(config)


@pytest.mark.parametrize("after", [0.0, 0.02, 0.1, 0.3, 1.0])
async def test_a_cancel_at_any_time_leaves_nothing_behind(config: NodeConfig, after: float) -> None:
    with trio.fail_after(8), trio.move_on_after(after) as scope:
        async with open_node(replace(config, demo=True)):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert is_free(config)


async def test_a_node_that_is_left_answers_nobody_any_more(config: NodeConfig) -> None:
    async with open_node(config) as node:
        assert node.ready
    assert not node.ready
    with pytest.raises(NodeBusy):
        await node.request("m", TEXT)


async def test_a_bad_model_is_refused_before_anything_is_announced(config: NodeConfig) -> None:
    bad = replace(config, deploy=(Deployment(config.data_dir / "nothing"),))
    with pytest.raises(StartRefused, match="nothing"):
        async with open_node(bad):
            pass
    assert is_free(config)


async def test_a_start_that_fails_late_withdraws_what_it_announced(
    config: NodeConfig, tmp_path: Path
) -> None:
    async with open_node(replace(config, data_dir=tmp_path / "watcher")) as watcher:
        directory = watcher._rooms.discovery.directory
        bad = replace(
            config,
            bootstrap=watcher.dial_addresses,
            demo=True,
            deploy=(Deployment(Path("nothing")),),
        )
        with pytest.raises(StartRefused, match="nothing"):
            async with open_node(bad):
                pass
        assert directory.search("", None, 10, time.time()) == []


async def test_bad_requests_are_refused(config: NodeConfig) -> None:
    async with open_node(config) as node:
        for model, values, timeout in (
            ("m", 7, 1.0),
            ("m", {1: "x"}, 1.0),
            ("m", TEXT, True),
            ("m", TEXT, "1"),
            ("m", TEXT, -1.0),
            ("m", TEXT, float("nan")),
            ("", TEXT, 1.0),
        ):
            with pytest.raises(ValidationFailed):
                await node.request(model, values, timeout)  # type: ignore[arg-type]


async def test_two_nodes_in_one_program_serve_each_other(config: NodeConfig, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(open_node(replace(config, demo=True)))
        consumer = await stack.enter_async_context(
            open_node(replace(config, data_dir=tmp_path / "other", bootstrap=provider.dial_addresses))
        )
        for _ in range(500):
            if await consumer.search("senti", None, 10):
                break
            await trio.sleep(0.02)
        result = await consumer.request("sentiment-analyzer", TEXT)
        assert result.provider == provider.peer_id


async def test_a_copy_takes_the_name_it_was_asked_for_by(config: NodeConfig, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_node(config))
        await first.deploy(SENTIMENT_ANALYZER, "cheap", Amount.parse(0.1))
        known = replace(config, bootstrap=first.dial_addresses)
        second, copy = [
            await stack.enter_async_context(open_node(replace(known, data_dir=tmp_path / name)))
            for name in ("second", "copy")
        ]
        await second.deploy(SENTIMENT_ANALYZER, "dear", Amount.parse(0.2))
        for _ in range(500):
            if len(await copy.search("", None, 10)) == 2:
                break
            await trio.sleep(0.02)
        with copy.events.subscribed({EventName.TRANSFER, EventName.MODEL_DEPLOYED}) as told:
            await copy.replicate(ModelRef.parse("dear"), None, lambda _: None)
            event = (await anext(told)).event
            while isinstance(event, TransferProgressed):
                progress, event = event.progress, (await anext(told)).event
        assert progress.done == progress.total
        assert event == ModelDeployed(copy.offers[0])
        assert [(offer.card.name, offer.fee) for offer in copy.offers] == [("dear", Amount.parse(0.2))]
