"""The machine: Python, packages, what an install needs, ports, and what its workers may do."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata

from packaging.requirements import Requirement

from llmesh.errors import MeshError
from llmesh.gateway.server import bind
from llmesh.net.libp2p.ports import port_is_free
from llmesh.node.checks.finding import Finding
from llmesh.node.config import NodeConfig
from llmesh.prerequisites import NEWEST, OLDEST, missing
from llmesh.runtime.workers import probe_workers

__all__ = ["packages", "ports", "prerequisites", "python", "sandbox", "workers"]

_DISTRIBUTION = "llmesh-network"
_EXTRAS = ("base", "verify")
_SHOWN = ("libp2p", "trio", "quart", "apsw")
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_INSTALL = "Install again: pip install 'llmesh-network[node]'."


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Whether this Python is one that LLMESH is made for."""
    text = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.platform(terse=True)}"
    )
    if OLDEST <= version <= NEWEST:
        return Finding("ok", "python", text)
    return Finding("fail", "python", text, "Use Python 3.11, 3.12 or 3.13.")


def packages() -> Finding:
    """Whether what is installed is what LLMESH asks for."""
    runtimes = [name for name in _RUNTIMES if _version(name)]
    if len(runtimes) != 1:
        found = " and ".join(runtimes) or "none"
        return Finding(
            "fail", "packages", f"builds of onnxruntime: {found}; there must be exactly one",
            f"Uninstall them all. {_INSTALL}",
        )  # fmt: skip
    if wrong := list(_wrong()):
        return Finding("fail", "packages", "; ".join(wrong), _INSTALL)
    return Finding("ok", "packages", ", ".join(f"{name} {_version(name)}" for name in (*_SHOWN, *runtimes)))


def _wrong() -> Iterator[str]:
    """Each requirement that is not met."""
    for line in metadata.requires(_DISTRIBUTION) or ():
        asked = Requirement(line)
        wanted = asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in _EXTRAS)
        if not wanted or asked.name == _DISTRIBUTION:
            continue
        found = _version(asked.name)
        if found is None:
            yield f"{asked.name} is not installed"
        elif not asked.specifier.contains(found, prereleases=True):
            yield f"{asked.name} is {found}, not {asked.specifier}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def prerequisites() -> Finding:
    """Whether an install would find what it builds with."""
    faults = missing(sys.version_info[:2])
    if not faults:
        return Finding("ok", "prerequisites", "C compiler and GMP headers are there")
    return Finding(
        "warn", "prerequisites", " ".join(faults),
        "Only an install or an update needs this: python -m llmesh.prerequisites says how.",
    )  # fmt: skip


def ports(config: NodeConfig) -> Iterator[Finding]:
    """Whether a start would find its ports free."""
    try:
        with closing(bind(config.host, config.port)):
            yield Finding("ok", "gateway port", f"{config.host} port {config.port} is free")
    except OSError as error:
        yield Finding(
            "fail", "gateway port", f"{config.host} port {config.port}: {error.strerror or error}",
            "Stop what uses it, or start with another --port (0 takes any free one).",
        )  # fmt: skip
    for address in config.listen:
        if port_is_free(address):
            yield Finding("ok", "mesh port", f"{address} is free")
        else:
            yield Finding(
                "fail",
                "mesh port",
                f"{address} is taken, or not this machine's",
                "Choose another with --listen.",
            )


async def workers(config: NodeConfig) -> list[Finding]:
    """What this machine allows the processes that run models; starts one for a moment."""
    try:
        found = await probe_workers()
    except MeshError as error:
        return [Finding("fail", "workers", error.message, error.next_step)]
    return [sandbox(found.level.name.lower()), providers(config, found.providers)]


_LEVELS = {
    "confined": "models have no network, no other programs and no files but their own",
    "filtered": "models have no network and no other programs, but can read files",
    "limits": "models are bounded in memory only",
    "none": "models are not locked in at all",
}


def sandbox(level: str) -> Finding:
    """How far models can be locked in here."""
    if level == "confined":
        return Finding("ok", "sandbox", f"{level}: {_LEVELS[level]}")
    return Finding(
        "warn", "sandbox", f"{level}: {_LEVELS.get(level, 'not known yet')}",
        "Serve only models that you trust; Linux 5.13 or later with Landlock and seccomp locks them in.",
    )  # fmt: skip


def providers(config: NodeConfig, found: tuple[str, ...]) -> Finding:
    """What runs graphs here."""
    text = f"graphs run on {', '.join(found) or 'nothing'}"
    if config.provider in found:
        return Finding("ok", "providers", text)
    return Finding(
        "fail", "providers", f"{text}, not on {config.provider}",
        "Install the extra [cuda] and the driver, or start with --provider cpu.",
    )  # fmt: skip
