"""What a person reads when a node has started."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmesh import __version__
from llmesh.core.announcement import Offer
from llmesh.core.ids import PeerId
from llmesh.core.model import TEXT_CLASSIFICATION
from llmesh.gateway.status import NodeStatus
from llmesh.node.config import data_dir_option

__all__ = ["banner", "reachability_line"]

_LOOPBACK = ("http://127.", "http://[::1]", "http://localhost")
_KEYED = "The gateway listens beyond this machine, so it asks every caller for a key"
_MAKE = "keys create --name NAME --data-dir {}"


def banner(status: NodeStatus, url: str, offers: Sequence[Offer], home: Path, has_keys: bool) -> str:
    """Who the node is, where, what it serves, and how to try it; `home` is its data directory."""
    rows = {
        "node id": [str(status.node_id)],
        "addresses": [f"{address}/p2p/{status.node_id}" for address in status.addresses],
        "reachable": ["not known yet; the first peers are asked to dial back"],
        "gateway": [f"{url}  (open it in a browser; {url}/docs describes its routes)"],
        "models": [_offer(offer) for offer in offers] or ["none of its own; --deploy PATH serves one"],
        "workers": _workers(status),
        "stake": [f"{status.stake} MESH"],
    }
    lines = [f"LLMESH node {__version__}", ""]
    if not url.startswith(_LOOPBACK):
        lines += [*_keyed(home, has_keys), ""]
    for name, values in rows.items():
        lines += [f"  {name if n == 0 else '':<10} {value}" for n, value in enumerate(values)]
    keyed = has_keys or not url.startswith(_LOOPBACK)
    lines += [
        "",
        "Try it:",
        f"  {_try(url, offers, keyed)}",
        "",
        *_join(status, home),
        "Stop it with Ctrl-C.",
    ]
    return "\n".join(lines)


def reachability_line(reached: Iterable[str], peer_id: PeerId) -> str:
    """What a dial-back found."""
    addresses = [f"{address}/p2p/{peer_id}" for address in reached]
    if addresses:
        return f"Other nodes can reach this one at {', '.join(addresses)}"
    return (
        "No peer could dial this node back: consumer only. It finds and uses models; for others to use its"
        " models, open its port or give an address that reaches it with --announce."
    )


def _keyed(home: Path, has_keys: bool) -> list[str]:
    if has_keys:
        return [f"{_KEYED}."]
    return [
        f"{_KEYED}. There is none yet; make one with:",
        f"  {_program()} {_MAKE.format(shlex.quote(str(home)))}",
    ]


def _workers(status: NodeStatus) -> list[str]:
    kinds = {f"sandbox {worker.sandbox}, on {worker.provider}" for worker in status.workers}
    return sorted(kinds) or ["none yet"]


def _offer(offer: Offer) -> str:
    fee = f"{offer.fee} MESH" if offer.fee else "free"
    return f"{offer.card.name}:{offer.card.version}  {fee}  {offer.task}"


def _try(url: str, offers: Sequence[Offer], keyed: bool) -> str:
    curl = "curl -s -H 'authorization: Bearer KEY'" if keyed else "curl -s"
    texts = [offer.card.name for offer in offers if offer.task == TEXT_CLASSIFICATION]
    if not texts:
        return f"{curl} {url}/api/v1/models"
    body = f'{{"model": "{texts[0]}", "input": {{"text": "What a wonderful day"}}}}'
    return f"{curl} {url}/api/v1/inference -H 'content-type: application/json' -d {shlex.quote(body)}"


def _program() -> str:
    """What a person types for the command line of the very environment that this node runs in."""
    own = Path(sys.executable).with_name("llmesh")
    if shutil.which("llmesh") == str(own):
        return "llmesh"
    return shlex.quote(str(own)) if own.exists() else f"{shlex.quote(sys.executable)} -m llmesh.node"


def _join(status: NodeStatus, home: Path) -> list[str]:
    if not status.addresses:
        return []
    credit = " --credit 5000" if status.swarm and status.swarm.issuer else ""  # a member can give none
    return [
        "Another machine joins by the line that this prints, as the value of its --join:",
        f"  {_program()} invite{credit}{data_dir_option(home)}",
        "",
    ]
