"""What this node has put on offer and serves again after a restart; the files are in its store."""

from __future__ import annotations

from dataclasses import dataclass

import apsw

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId
from llmesh.core.model import Card
from llmesh.journal.columns import pack_amount, read_amount

__all__ = ["DropOffer", "KeepOffer", "KeptOffer", "kept_offers"]


@dataclass(frozen=True, slots=True)
class KeptOffer:
    """One model at one price; `graph` is the file of its bundle that is run."""

    model_id: ModelId
    card: Card
    fee: Amount
    graph: str


@dataclass(frozen=True, slots=True)
class KeepOffer:
    """Keep an offer instead of the same model's earlier one, and of whatever has its name and version."""

    offer: KeptOffer

    def apply(self, db: apsw.Connection) -> None:
        """Insert the row, the latest."""
        new = self.offer
        db.execute(
            "INSERT OR REPLACE INTO offer (model, name, version, description, licence, fee, graph)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                new.model_id, new.card.name, new.card.version, new.card.description, new.card.licence,
                pack_amount(new.fee), new.graph,
            ),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class DropOffer:
    """A model is on offer no longer; one that is not kept is left so."""

    model_id: ModelId

    def apply(self, db: apsw.Connection) -> None:
        """Delete the row."""
        db.execute("DELETE FROM offer WHERE model = ?", (self.model_id,))


def kept_offers(db: apsw.Connection) -> list[KeptOffer]:
    """All of them, the latest last."""
    rows = db.execute(
        "SELECT model, name, version, description, licence, fee, graph FROM offer ORDER BY number"
    )
    return [
        KeptOffer(ModelId(model), Card(name, version, description, licence), read_amount(fee), graph)
        for model, name, version, description, licence, fee, graph in rows
    ]
