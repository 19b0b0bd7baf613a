"""Two machines become one swarm by one line, and stay it through the issuer's death."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

from node_process import Mesh, NodeProcess, until

from llmesh.demo import SENTIMENT_ANALYZER


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def verb(node: NodeProcess, *arguments: str) -> str:
    return _asked(node, *arguments).stdout


def said_beside(node: NodeProcess, *arguments: str) -> str:
    """What a verb says on standard error."""
    return _asked(node, *arguments).stderr


def _asked(node: NodeProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmesh.node", *arguments, "--data-dir", str(node.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done


def swarm(node: NodeProcess) -> dict[str, Any]:
    found: dict[str, Any] = node.get("/api/v1/status")["swarm"]
    return found


def head(node: NodeProcess) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(verb(node, "ledger", "verify", "--json"))
    return found


def test_two_commands_make_two_machines_one_swarm(mesh: Mesh) -> None:
    place = f"/ip4/127.0.0.1/tcp/{free_port()}"
    issuer = mesh.start("issuer", "--min-stake", "500", "--listen", place).ready()
    line = verb(issuer, "invite", "--credit", "5000").strip()
    member = mesh.start(
        "member", "--join", line, "--stake", "1000", "--deploy", f"{SENTIMENT_ANALYZER},name=shared,fee=0.1"
    ).ready()
    assert swarm(member)["balance"] == 4000
    assert member.get("/api/v1/status")["stake"] == 1000
    until(lambda: issuer.models("?name=shared"), 20, "the member's offer")
    [offer] = issuer.models("?name=shared")
    assert (offer["provider"], offer["stake"]) == (member.id, 1000)
    assert swarm(issuer)["id"] == swarm(member)["id"]
    assert (swarm(issuer)["issuer"], swarm(member)["issuer"]) == (True, False)

    issuer.kill()
    assert member.infer("shared")[0] == 200
    poor = mesh.start("poor", "--join", line).process  # its swarm's only known member is dead
    assert poor.wait(60) == 2
    again = mesh.start("issuer", "--listen", place).ready()
    assert (swarm(again)["entries"], swarm(again)["id"]) == (2, swarm(member)["id"])
    second = verb(again, "invite", "--credit", "7").strip()
    third = mesh.start("third", "--join", second).ready()
    assert swarm(third)["balance"] == 7
    until(lambda: swarm(member)["entries"] == 3, 60, "what the issuer entered since")
    assert head(again) == head(member)
    until(lambda: third.models("?name=shared"), 60, "the member's offer at the newcomer")
    assert "receipt genuine" in said_beside(third, "run", "shared", "好", "--max-fee", "0.1")
    [spent] = json.loads(verb(third, "wallet", "--json"))["spending"]
    assert (spent["model"], spent["fees"]) == ("shared", 0.1)
    assert {node.stop() for node in (again, member, third)} == {0}
