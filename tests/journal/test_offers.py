"""Offers that are kept: one a model, one a name and version, the latest last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId
from llmesh.core.model import Card
from llmesh.journal.offers import DropOffer, KeepOffer, KeptOffer, kept_offers
from llmesh.journal.open import open_journal

if TYPE_CHECKING:
    from tests.journal.conftest import Rows

ONE = KeptOffer(ModelId("1" * 64), Card("one", "2", "说明", "MIT"), Amount(2**128 - 1), "onnx/model.onnx")
TWO = KeptOffer(ModelId("2" * 64), Card("two"), Amount(0), "model.onnx")


async def test_offers_are_kept_until_dropped(path: Path, rows: Rows) -> None:
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(KeepOffer(ONE), KeepOffer(TWO))
    async with open_journal(path, rows.owner) as journal:
        assert await journal.read(kept_offers) == [ONE, TWO]
        dearer = replace(ONE, card=Card("uno"), fee=Amount(7))
        await journal.commit(KeepOffer(dearer))
        assert await journal.read(kept_offers) == [TWO, dearer]
        namesake = replace(ONE, model_id=ModelId("3" * 64), card=TWO.card)
        await journal.commit(KeepOffer(namesake))
        assert await journal.read(kept_offers) == [dearer, namesake]
        await journal.commit(DropOffer(dearer.model_id), DropOffer(dearer.model_id))
        assert await journal.read(kept_offers) == [namesake]
