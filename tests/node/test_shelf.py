"""What a node has on offer, over restarts: real models, a real store and journal, lives one after another."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from llmesh.core.amount import Amount
from llmesh.core.model import Card
from llmesh.core.reference import ModelRef
from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.errors import Conflict, ModelNotFound, TransactionFailed
from llmesh.journal.open import Journal
from llmesh.node.config import NodeConfig
from llmesh.node.open import open_node
from llmesh.node.values import Deployment

FEE = Amount.parse("0.25")
CARD = Card("mine", "2.1", "Tells feelings.")


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(port=0, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, data_dir=tmp_path / "home")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another model: the same graph among other files."""
    folder = shutil.copytree(SENTIMENT_ANALYZER, tmp_path / "other")
    (folder / "README.md").write_text("another")
    return folder


async def test_what_was_deployed_is_served_until_it_is_removed(config: NodeConfig) -> None:
    async with open_node(config) as node:
        id = await node.deploy(SENTIMENT_ANALYZER, CARD.name, FEE, CARD.version, CARD.description)
        offers = node.offers
    # A smaller quota spares what is kept.
    async with open_node(replace(config, store_quota=1)) as node:
        assert node.offers == offers
        assert (offers[0].card, offers[0].fee) == (CARD, FEE)
        [(offer, _)] = await node.search("mine", None, 10)
        assert offer == offers[0]
        assert (await node.request("mine:2.1", "好")).model_id == id
        await node.remove(id)
    async with open_node(config) as node:
        assert node.offers == ()
        with pytest.raises(ModelNotFound):
            await node.remove(id)


async def test_the_command_line_wins_and_leaves_no_trace(config: NodeConfig, other: Path) -> None:
    async with open_node(config) as node:
        await node.deploy(SENTIMENT_ANALYZER, "mine", FEE)
        await node.deploy(other, "other", FEE)
    flags = (Deployment(SENTIMENT_ANALYZER, "other", Amount(3)),)
    async with open_node(replace(config, deploy=flags)) as node:
        # The other one cannot have its name back yet; it is told so in the log.
        assert [(offer.card.name, offer.fee) for offer in node.offers] == [("other", Amount(3))]
    async with open_node(config) as node:
        assert [(offer.card.name, offer.fee) for offer in node.offers] == [("mine", FEE), ("other", FEE)]


async def test_what_cannot_be_served_again_is_told(
    config: NodeConfig, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_node(config) as node:
        gone = await node.deploy(SENTIMENT_ANALYZER, "gone")
        changed = await node.deploy(other, "changed")
    models = config.data_dir / "store" / "models"
    shutil.rmtree(models / gone)
    (models / changed / "README.md").write_text("altered")
    with caplog.at_level(logging.WARNING, "llmesh.node.shelf"):
        async with open_node(config) as node:
            assert node.offers == ()
            await node.remove(changed)
            assert not (models / changed).exists()
            assert await node.deploy(SENTIMENT_ANALYZER, "gone") == gone
    assert [name in caplog.text for name in ("gone:1.0.0", gone, "changed:1.0.0", changed)] == [True] * 4
    caplog.clear()
    async with open_node(config) as node:
        assert [offer.card.name for offer in node.offers] == ["gone"]
    assert "is not served now" not in caplog.text


async def test_what_is_not_written_down_is_not_served(
    config: NodeConfig, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_node(config) as node:
        await node.deploy(SENTIMENT_ANALYZER, "mine", FEE)
        before = node.offers

        async def full(*_: object) -> None:
            raise TransactionFailed("The disk is full.")

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "commit", full)
            for source in (SENTIMENT_ANALYZER, other):
                with pytest.raises(TransactionFailed):
                    await node.deploy(source, "renamed", Amount(1))
            with pytest.raises(TransactionFailed):
                await node.remove(before[0].model_id)
            assert node.offers == before
            assert [offer for offer, _ in await node.search("", None, 10)] == list(before)

        waiting = trio.Event()

        async def stuck(*_: object) -> None:
            waiting.set()
            await trio.sleep_forever()

        monkeypatch.setattr(Journal, "commit", stuck)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.deploy, other, "n", Amount(1))
            await waiting.wait()
            nursery.cancel_scope.cancel()
        assert node.offers == before
        monkeypatch.undo()
        with pytest.raises(Conflict):
            await node.deploy(other, "mine")
    async with open_node(config) as node:
        assert node.offers == before


async def test_a_copy_of_a_peers_model_is_served_again(config: NodeConfig) -> None:
    giver = replace(config, data_dir=config.data_dir.with_name("giver"))
    async with open_node(giver) as origin:
        id = await origin.deploy(SENTIMENT_ANALYZER, "mine", FEE)
        async with open_node(replace(config, bootstrap=origin.dial_addresses)) as node:
            with trio.fail_after(10):
                while not node.offers_of(id):  # noqa: ASYNC110
                    await trio.sleep(0.1)
            await node.fetch(ModelRef.parse("mine"), print)
            assert node.offers == ()
            await node.replicate(ModelRef.parse("mine"), None, print)
    async with open_node(config) as node:
        [offer] = node.offers
        assert (offer.model_id, offer.card.name, offer.fee) == (id, "mine", FEE)
