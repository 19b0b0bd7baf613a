"""The kinds of value an option may have, each read from text, from TOML and from Python alike.

Every reader raises ValidationFailed with a sentence that says what the value should be.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmesh.core.amount import Amount
from llmesh.core.invite import Invite, invite_from_text
from llmesh.core.reference import ModelRef, model_name, model_version
from llmesh.errors import ValidationFailed
from llmesh.gateway.addresses import Network
from llmesh.gateway.rates import Rates, read_rates
from llmesh.net.libp2p.addresses import endpoint, peer_address

__all__ = [
    "Deployment",
    "Replication",
    "amount",
    "bootstrap_address",
    "callee",
    "choice",
    "deployment",
    "dial_address",
    "duration",
    "folder",
    "hostname",
    "hours",
    "invite",
    "listen_address",
    "name_of",
    "network",
    "port",
    "rate",
    "rates",
    "replication",
    "size",
    "switch",
    "threads",
]

_SWITCH = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])\Z")
_NOTHING = Amount(0)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A bundle (or bare .onnx) to deploy at start; without a name it takes that of its folder."""

    path: Path
    name: str | None = None
    fee: Amount = _NOTHING
    version: str = "1.0.0"


@dataclass(frozen=True, slots=True)
class Replication:
    """A model of the mesh to fetch and serve too; without a fee, at that of the offer it is found by."""

    ref: ModelRef
    fee: Amount | None = None


def port(value: object) -> int:
    """A TCP port, 0 to 65535; 0 means any free one."""
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise ValidationFailed(f"A port is a whole number from 0 to 65535, not {text[:40]!r}.")
    return int(text)


def amount(value: object) -> Amount:
    """An amount of MESH."""
    return Amount.parse(value)  # type: ignore[arg-type]  # it refuses what is not one of its types


def switch(value: object) -> bool:
    """On or off."""
    found = value if isinstance(value, bool) else _SWITCH.get(str(value).strip().lower())
    if found is None:
        raise ValidationFailed(f"A switch is true or false, not {str(value)[:40]!r}.")
    return found


def folder(value: object) -> Path:
    """A path, with `~` for the home directory."""
    if not isinstance(value, str | Path) or not str(value):
        raise ValidationFailed(f"A path is a text, not {value!r}.")
    return Path(value).expanduser()


def hostname(value: object) -> str:
    """An IP address or the name of a host."""
    text = _text(value)
    if not (_is_ip(text) or _HOST.match(text)):
        raise ValidationFailed(f"A host is an IP address or a name such as localhost, not {text[:80]!r}.")
    return text


def duration(text: str) -> float:
    """Seconds in a text such as 90s, 15m, 12h or 30d."""
    found = _DURATION.match(text.strip())
    if found is None:
        raise ValidationFailed(f"A time is a number with s, m, h or d, such as 30d, not {text[:40]!r}.")
    return int(found[1]) * _SECONDS[found[2]]


def network(value: object) -> Network:
    """An IP address or a network in CIDR form."""
    text = _text(value)
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValidationFailed(
            f"A network is an IP address or a range such as 10.0.0.0/8, not {text[:80]!r}."
        ) from None


def rates(value: object) -> Rates:
    """Rate limits: on, off, or changes to the defaults."""
    return read_rates(("off", "on")[value] if isinstance(value, bool) else _text(value))


def listen_address(value: object) -> str:
    """A multiaddr of this machine, such as `/ip4/0.0.0.0/tcp/4001`."""
    at = endpoint(_text(value))
    if at.kind.startswith("dns"):
        raise ValidationFailed(
            f"{str(at)!r} has a name; listen on an IP address, such as /ip4/0.0.0.0/tcp/4001."
        )
    return str(at)


def dial_address(value: object) -> str:
    """A multiaddr that others dial, such as `/dns4/node.example.org/tcp/4001`; a peer id is dropped."""
    at = endpoint(_text(value).partition("/p2p/")[0])
    if not at.port:
        raise ValidationFailed(f"{str(at)!r} cannot be dialled: say the port.")
    return str(at)


def bootstrap_address(value: object) -> str:
    """A multiaddr that ends with the peer to expect there: `/ip4/192.0.2.7/tcp/4001/p2p/12D3KooW...`."""
    text = _text(value)
    peer_address(text)
    return text


def invite(value: object) -> Invite | None:
    """The line that `invite` prints on a member.  Whether it has expired matters only to who joins by it."""
    if value is None or isinstance(value, Invite):
        return value
    found = invite_from_text(_text(value), now=0.0)
    for text in found.addresses:
        peer_address(text)
    return found


def deployment(value: object) -> Deployment:
    """`PATH[,name=N][,fee=F][,version=V]`, or a Deployment."""
    if isinstance(value, Deployment):
        return value
    if isinstance(value, Path):
        return Deployment(value)
    path, *settings = _text(value).split(",")
    given: dict[str, str] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in ("name", "fee", "version") or key in given or not text:
            raise ValidationFailed(
                f"A deployment is PATH[,name=N][,fee=F][,version=V]; {setting[:80]!r} is none of these."
            )
        given[key] = text
    name = model_name(given["name"]) if "name" in given else None
    version = model_version(given.get("version", "1.0.0"))
    return Deployment(folder(path), name, Amount.parse(given.get("fee", "0")), version)


def name_of(path: Path) -> str:
    """What a model is called if nothing is said: as its folder, also for `folder/model.onnx`, or file."""
    whole = path.resolve()
    generic = whole.suffix == ".onnx" and whole.stem == "model"
    return whole.parent.name if generic else whole.stem if whole.suffix == ".onnx" else whole.name


def replication(value: object) -> Replication:
    """`REF[,fee=F]`, or a Replication; REF is `name`, `name:version` or `name@id`."""
    if isinstance(value, Replication):
        return value
    ref, comma, setting = _text(value).partition(",")
    key, _, fee = setting.partition("=")
    if comma and (key != "fee" or not fee):
        raise ValidationFailed(f"A replication is REF[,fee=F]; {setting[:80]!r} is no fee.")
    return Replication(ModelRef.parse(ref), Amount.parse(fee) if comma else None)


def threads(value: object) -> int:
    """How many threads each model runs on."""
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise ValidationFailed(f"This must be a whole number of threads from 1, not {text[:40]!r}.")
    return int(text)


def size(value: object) -> int:
    """Bytes, from a number of gigabytes (10**9)."""
    return int(_positive(value) * 10**9)


def rate(value: object) -> float:
    """Bytes per second, from a number of megabytes (10**6) per second."""
    return _positive(value) * 10**6


def hours(value: object) -> float:
    """A time in hours."""
    return _positive(value)


def callee(value: object) -> str:
    """The name of a host, an IP address or a network in CIDR form."""
    text = _text(value)
    return text if _HOST.match(text) else str(network(text))


def _positive(value: object) -> float:
    try:
        number = float(str(value)) if not isinstance(value, bool) else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise ValidationFailed(f"This must be a number above 0, not {str(value)[:40]!r}.")
    return number


def choice(*words: str) -> Callable[[object], str]:
    """One of a few words."""

    def read(value: object) -> str:
        text = str(value).lower()
        if text not in words:
            raise ValidationFailed(f"This must be one of {', '.join(words)}, not {text[:40]!r}.")
        return text

    return read


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValidationFailed(f"This must be a text, not {value!r}.")
    return value.strip()


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
