"""NodeConfig: every option of a node, declared once.

The declaration drives `--help`, the `LLMESH_*` variables, the TOML file and the keywords of
MeshNode.  What reads them is `sources`; this module knows no file and no environment.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, TypedDict, get_type_hints

from llmesh.core.amount import Amount
from llmesh.core.invite import Invite
from llmesh.gateway.addresses import Network
from llmesh.gateway.rates import Rates
from llmesh.node import values
from llmesh.node.values import Deployment, Replication

__all__ = ["OPTIONS", "NodeConfig", "NodeOptions", "Option", "data_dir_option", "default_data_dir"]


@dataclass(frozen=True, slots=True)
class Option:
    """How one field is explained, and how its value is read; `shown` is its default in words."""

    help: str
    read: Callable[[object], object]
    metavar: str = ""
    repeated: bool = False
    shown: str = ""


def default_data_dir() -> Path:
    """Where a node's key and state are unless a folder is named."""
    from platformdirs import user_data_path  # loaded only where no folder is given

    return user_data_path("llmesh", appauthor=False)


def data_dir_option(folder: Path) -> str:
    """What a command needs, with a space before it, to mean that data directory; nothing for the default."""
    return "" if folder == default_data_dir() else f" --data-dir {shlex.quote(str(folder))}"


_NOTHING = Amount(0)
_RATES = Rates()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """The settings of one node; frozen, and checked by whoever made it (`sources.configure`)."""

    host: Annotated[
        str,
        Option(
            "Address the gateway listens on. Beyond loopback it asks every caller for a key (keys create).",
            values.hostname,
            "HOST",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, Option("Port the gateway listens on; 0 takes any free one.", values.port, "PORT")
    ] = 8080
    allow_host: Annotated[
        tuple[str, ...],
        Option(
            "Name that callers know the gateway by, such as node.example.org behind a proxy.",
            values.hostname,
            "HOST",
            repeated=True,
            shown="localhost, loopback addresses and --host",
        ),
    ] = ()
    limits: Annotated[
        Rates,
        Option(
            "Rate limits of the gateway: on, off, or changes such as inference=500/minute,api=off"
            " (inference per address, deploy per node, api per key).",
            values.rates,
            "RATES",
            shown="inference=100/minute,deploy=10/hour,api=1000/hour",
        ),
    ] = _RATES
    trusted_proxy: Annotated[
        tuple[Network, ...],
        Option(
            "Address or network of a proxy that the gateway believes in X-Forwarded-For; then every caller"
            " needs a key.",
            values.network,
            "CIDR",
            repeated=True,
            shown="none",
        ),
    ] = ()
    listen: Annotated[
        tuple[str, ...],
        Option(
            "Address for other nodes to connect to. If it is not given and port 4001 is taken,"
            " the next free port is used and remembered.",
            values.listen_address,
            "MULTIADDR",
            repeated=True,
            shown="/ip4/0.0.0.0/tcp/4001",
        ),
    ] = ()
    announce: Annotated[
        tuple[str, ...],
        Option(
            "Address that others should dial, where it is not one of this machine's own.",
            values.dial_address,
            "MULTIADDR",
            repeated=True,
            shown="this machine's addresses",
        ),
    ] = ()
    bootstrap: Annotated[
        tuple[str, ...],
        Option(
            "Address of a node to join the mesh through, with its /p2p/ node id.",
            values.bootstrap_address,
            "MULTIADDR",
            repeated=True,
            shown="none",
        ),
    ] = ()
    join: Annotated[
        Invite | None,
        Option(
            "Invite to a swarm: the line that a member's command `invite` prints. The node joins it, takes"
            " its credit and bonds its stake there.",
            values.invite,
            "INVITE",
            shown="a swarm of its own",
        ),
    ] = None
    data_dir: Annotated[
        Path,
        Option(
            "Folder of this node's key and state; one node at a time may use it.",
            values.folder,
            "FOLDER",
            shown="the platform's data directory",
        ),
    ] = field(default_factory=default_data_dir)
    stake: Annotated[Amount, Option("MESH that this node bonds and announces.", values.amount, "MESH")] = (
        _NOTHING
    )
    min_stake: Annotated[
        Amount,
        Option(
            "MESH a provider must have bonded; set when the swarm of a lone node begins, and fixed then.",
            values.amount,
            "MESH",
        ),
    ] = _NOTHING
    deploy: Annotated[
        tuple[Deployment, ...],
        Option(
            "Model to serve from the start: a folder or a .onnx file, with its name and its fee in MESH.",
            values.deployment,
            "PATH[,name=N][,fee=F][,version=V]",
            repeated=True,
            shown="none",
        ),
    ] = ()
    replicate: Annotated[
        tuple[Replication, ...],
        Option(
            "Model of the mesh to fetch from the peers that have it, verify and serve too, at their fee or"
            " another.",
            values.replication,
            "REF[,fee=F]",
            repeated=True,
            shown="none",
        ),
    ] = ()
    demo: Annotated[
        bool,
        Option("Serve the demo models, sentiment-analyzer and gpt-mini, too.", values.switch, shown="off"),
    ] = False
    threads: Annotated[
        int | None,
        Option("Threads that each model runs on.", values.threads, "N", shown="half of the cores"),
    ] = None
    provider: Annotated[
        str,
        Option("What runs the models' graphs: cpu or cuda.", values.choice("cpu", "cuda"), "NAME"),
    ] = "cpu"
    require_sandbox: Annotated[
        str,
        Option(
            "Refuse models that this machine cannot lock in so far: none, limits, filtered or confined.",
            values.choice("none", "limits", "filtered", "confined"),
            "LEVEL",
        ),
    ] = "none"
    store_quota: Annotated[
        int,
        Option("Gigabytes that this node's copies of models may take.", values.size, "GB", shown="64"),
    ] = 64 * 10**9
    transfer_rate: Annotated[
        float | None,
        Option(
            "Megabytes per second that fetching models, and handing them out, may take each.",
            values.rate,
            "MB/S",
            shown="no limit",
        ),
    ] = None
    webhook_allow: Annotated[
        tuple[str, ...],
        Option(
            "Host or network that webhooks may call although it is not on the public internet, also"
            " without TLS.",
            values.callee,
            "HOST_OR_CIDR",
            repeated=True,
            shown="none",
        ),
    ] = ()
    webhook_hours: Annotated[
        float,
        Option("Hours that a webhook's delivery is tried again for.", values.hours, "HOURS"),
    ] = 24.0
    mdns: Annotated[bool, Option("Find nodes on the local network by mDNS.", values.switch, shown="on")] = (
        True
    )
    log_level: Annotated[
        str,
        Option(
            "Least severe messages to log: debug, info, warning or error.",
            values.choice("debug", "info", "warning", "error"),
            "LEVEL",
        ),
    ] = "warning"
    log_format: Annotated[
        str,
        Option(
            "How messages are logged: text for people, json for programs.",
            values.choice("text", "json"),
            "FORMAT",
        ),
    ] = "text"


OPTIONS: dict[str, Option] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(NodeConfig, include_extras=True).items()
}


class NodeOptions(TypedDict, total=False):
    """The same options as keywords of MeshNode, with the types that are read there."""

    host: str
    port: int
    allow_host: Sequence[str]
    limits: str | bool
    trusted_proxy: Sequence[str]
    listen: Sequence[str]
    announce: Sequence[str]
    bootstrap: Sequence[str]
    join: str
    data_dir: str | Path
    stake: int | float | str | Decimal | Amount
    min_stake: int | float | str | Decimal | Amount
    deploy: Sequence[str | Path | Deployment]
    replicate: Sequence[str | Replication]
    demo: bool
    threads: int
    provider: str
    require_sandbox: str
    store_quota: int | float
    transfer_rate: int | float
    webhook_allow: Sequence[str]
    webhook_hours: int | float
    mdns: bool
    log_level: str
    log_format: str
