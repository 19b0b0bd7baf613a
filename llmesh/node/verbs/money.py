"""The verbs about money: what the node has, what one charge was for, sending some, taking a stake out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from llmesh.core.address import Address, address_text, recipient
from llmesh.core.amount import Amount
from llmesh.core.ids import PeerId
from llmesh.errors import NetworkError, RequestTimeout
from llmesh.node.verbs.asked import Asked, Value, of_a_gateway, of_a_node
from llmesh.node.verbs.asking import ask, ask_node, show
from llmesh.node.verbs.models import MESH

if TYPE_CHECKING:
    from llmesh.node.desk import Desk

__all__ = ["explain", "in_a_terminal", "send", "unbond", "wallet", "withdraw"]

_SHORT = 12


@click.command("wallet")
@click.option(
    "--days", type=click.IntRange(1, 3660), default=30, show_default=True, help="How far back fees are told."
)
@of_a_gateway
def wallet(asked: Asked, days: int) -> None:
    """Show balance, stake, channels and fees.

    What was spent and earned is told by model and day.
    """
    if asked.gateway:
        told = ask_node(asked, lambda desk: desk.get("/api/v1/wallet", days=str(days)))
    else:
        told = ask(asked, lambda desk: desk.get("/owner/wallet", days=str(days)))
    show(told, asked, lambda whole: "\n\n".join(_wallet(whole, days)))


@click.command("explain")
@click.argument("id")
@of_a_gateway
def explain(asked: Asked, id: str) -> None:
    """Tell what the request ID cost, and what for."""
    if asked.gateway:
        told = ask_node(asked, lambda desk: _by_receipts(desk, id))
    else:
        told = ask(asked, lambda desk: desk.get("/owner/explain", id=id))
    show(told, asked, lambda whole: "\n\n".join(_explanation(whole)))


@click.command("send")
@click.argument("to", type=Value(recipient, "account"), metavar="TO")
@click.argument("amount", type=MESH, metavar="MESH")
@click.option("--yes", is_flag=True, help="Do not ask first; a script is never asked.")
@of_a_node
def send(asked: Asked, to: Address | PeerId, amount: Amount, yes: bool) -> None:
    """Send MESH to another account of the swarm.

    TO is an account, as `llmesh wallet` shows it there, or the peer id of a node that serves
    models.  What was sent cannot be taken back.

    \b
    Example:
      llmesh send 0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed 250
    """
    whom = address_text(Address(to)) if isinstance(to, bytes) else to
    if not yes and not asked.as_json and in_a_terminal():
        click.confirm(f"Send {amount} MESH to {whom}, for good?", abort=True)
    body = {"to": whom, "amount": str(amount)}
    try:
        told = ask_node(asked, lambda desk: desk.post("/owner/send", body))
    except (NetworkError, RequestTimeout) as error:
        raise type(error)(error.message, next_step=_LOOK_FIRST) from error
    show(told, asked, _just_sent)


_LOOK_FIRST = "It may have been sent: look at what `llmesh wallet` tells under Sent before you send it again."


@click.command("unbond")
@click.argument("amount", type=MESH, metavar="MESH")
@of_a_node
def unbond(asked: Asked, amount: Amount) -> None:
    """Take MESH out of the stake.

    It stops counting at once; after the swarm's waiting time `withdraw` frees it.  More that
    is taken out before then starts the wait anew for all of it.
    """
    told = ask_node(asked, lambda desk: desk.post("/owner/unbond", {"amount": str(amount)}))
    show(told, asked, _stake)


@click.command("withdraw")
@of_a_node
def withdraw(asked: Asked) -> None:
    """Put what was unbonded back into the balance.

    It has to have waited long enough.
    """
    told = ask_node(asked, lambda desk: desk.post("/owner/withdraw", {}))
    show(told, asked, _stake)


def in_a_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty()


def _just_sent(told: dict[str, Any]) -> str:
    return f"{told['amount']} MESH were sent to {told['account']}; the balance is {told['balance']} MESH."


async def _by_receipts(desk: Desk, id: str) -> dict[str, Any]:
    """The same of a node elsewhere, which tells no stranger what it is in doubt about."""
    told = await desk.get(f"/api/v1/receipts/{quote(id, safe='')}")
    charges = [row["charge"] for row in told["receipts"]]
    return {"request_id": told["request_id"], "charges": charges, "unknown": []}


def _stake(told: dict[str, Any]) -> str:
    leaving = f"; {told['unbonding']} MESH are leaving the stake" if told["unbonding"] else ""
    return f"{told['stake']} MESH are bonded{leaving}; the balance is {told['balance']} MESH."


def _wallet(told: dict[str, Any], days: int) -> Iterator[str]:
    from llmesh.node.tables import table

    yield f"Account {told['account']} on ledger {told['chain']}"
    names = ("balance", "stake", "unbonding", "earned", "unknown")
    yield table(("", "MESH"), [(_WORDS[name], str(told[name])) for name in names])
    for side, title in (
        ("payer", "Channels it pays on, in MESH"),
        ("provider", "Channels it is paid on, in MESH"),
    ):
        rows = [_channel(row) for row in told["channels"] if row["side"] == side]
        if rows:
            yield table(_CHANNEL_HEADS, rows, title)
    for name, title in (("spending", "Spent"), ("earnings", "Earned")):
        rows = [_fees(row) for row in told[name]]
        heads = ("day (UTC)", "model", "answers", "MESH")
        yield table(heads, rows, title) if rows else f"{title}: nothing in {days} days."
    if told["sent"]:
        rows = [_sending(row) for row in told["sent"]]
        yield table(("to", "MESH", "since", "state"), rows, "Sent")
    if told["accused"]:
        rows = [_accused(row) for row in told["accused"]]
        yield table(("account", "request", "what", "since", "stake"), rows, "Providers that cheated")


_WORDS = {
    "balance": "balance, free to use",
    "stake": "stake",
    "unbonding": "leaving the stake",
    "earned": "earned and claimed in all",
    "unknown": "held for attempts whose outcome is not known yet",
}
_CHANNEL_HEADS = ("channel", "peer", "deposit", "charged", "claimed", "unknown", "state")


def _channel(row: dict[str, Any]) -> tuple[str, ...]:
    back = f"{row['withdrawing']} MESH on its way back" if row["withdrawing"] else ""
    state = " ".join(filter(None, (row["broken"], back))) or "open"
    figures = (str(row[name]) for name in ("deposit", "charged", "claimed", "unknown"))
    return (row["id"][:_SHORT], row["peer"], *figures, state)


def _fees(row: dict[str, Any]) -> tuple[str, ...]:
    return (row["day"], row["model"] or row["model_id"][:_SHORT], str(row["count"]), str(row["fees"]))


def _sending(row: dict[str, Any]) -> tuple[str, ...]:
    became = {"waiting": "waits for the ledger", "done": "there", "dead": f"not sent: {row['refused']}"}
    return (row["account"], str(row["amount"]), row["since"], became[row["state"]])


def _accused(row: dict[str, Any]) -> tuple[str, ...]:
    what = {"equivocation": "two receipts for one attempt", "overcharge": "more than its offer"}
    became = {"waiting": "waits for the ledger", "done": "taken", "dead": f"not taken: {row['refused']}"}
    offence, state = str(row["offence"]), str(row["state"])
    return (row["provider"], row["request_id"], what.get(offence, offence), row["since"], became[state])


def _explanation(told: dict[str, Any]) -> Iterator[str]:
    for charge in told["charges"]:
        yield "\n".join(_charge(told["request_id"], charge))
    for doubt in told["unknown"]:
        yield (
            f"Request {told['request_id']}, attempt {doubt['attempt']}: outcome not known since"
            f" {doubt['since']}. Up to {doubt['quote']} MESH are held on channel {doubt['channel']} until"
            " its provider has told what became of it."
        )


def _charge(request: str, charge: dict[str, Any]) -> Iterator[str]:
    paid = charge["side"] == "payer"
    yield f"Request {request}, attempt {charge['attempt']}, {charge['issued']}"
    price = f"{charge['price']} MESH" if charge["price"] else "Nothing"
    yield f"  {price} {'paid to' if paid else 'charged to'} {charge['peer']}"
    model = f"{charge['model']} ({charge['model_id']})" if charge["model"] else charge["model_id"]
    yield f"  for one run of model {model}, class {charge['execution']}"
    yield f"  input {charge['input_digest']}"
    yield f"  output {charge['output_digest']}"
    if charge["channel"]:
        yield f"  charge {charge['sequence']} on channel {charge['channel']}"
        yield f"  {charge['cumulative']} MESH were charged on it by then"
    if charge["offer"]:
        yield f"  under the terms {charge['offer']}"
    signed = "signed by" if charge["genuine"] else "NOT genuinely signed by"
    yield f"  {signed} {charge['provider']}"
