"""Nodes as real processes on loopback, watched through what they say and write."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from llmesh.node.owner import fitting_path

T = TypeVar("T")
JSON = {"content-type": "application/json"}

DEMO = "sentiment-analyzer"
TEXT = "这太棒了！"


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """The first true value; fails once the time is over."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return value


class NodeProcess:
    """One `python -m llmesh.node` with a data directory of its own."""

    id: str
    url: str
    address: str

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "llmesh.node", "--no-mdns", "--port", "0",
                    "--data-dir", str(folder), "--listen", "/ip4/127.0.0.1/tcp/0", "--limits", "off",
                    *arguments,
                ],
                stdout=log, stderr=log, start_new_session=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("LLMESH_")},
            )  # fmt: skip

    def ready(self, seconds: float = 30.0) -> NodeProcess:
        """Wait until it answers requests; from then on `id`, `url` and `address` are known."""
        until(lambda: self._facts() or self.process.poll() is not None, seconds, "ready")
        facts = self._facts()
        assert facts is not None, self.said()
        self.id, self.url, self.address = facts["node_id"], facts["url"], facts["addresses"][0]
        return self

    def _facts(self) -> dict[str, Any] | None:
        try:
            facts: dict[str, Any] = json.loads((self.folder / "node.json").read_text())
        except (OSError, ValueError):
            return None
        return facts if facts["pid"] == self.process.pid else None

    def said(self) -> str:
        return self.log.read_text()

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and how it ended within the five seconds a node may take (and slack for a busy box)."""
        self.process.terminate()
        return self.process.wait(10)

    def kill(self) -> None:
        """SIGKILL to the node alone: its workers have to notice by themselves."""
        self.process.kill()
        self.process.wait()

    def invite(self, credit: float = 0) -> str:
        """A line by which another node joins its swarm, made by its owner's socket."""
        with fitting_path(self.folder) as path, socket.socket(socket.AF_UNIX) as stream:
            stream.connect(path)
            asked = http.client.HTTPConnection("owner")
            asked.sock = stream
            asked.request("POST", "/owner/invite", json.dumps({"credit": credit}), JSON)
            answer = json.load(asked.getresponse())
        line: str = answer["invite"]
        return line

    # --- its gateway --------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        return self._open(urllib.request.Request(self.url + path))[1]

    def models(self, query: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(f"/api/v1/models{query}")["models"]
        return found

    def infer(self, model: str = DEMO, values: Any = TEXT, **more: Any) -> tuple[int, Any]:
        """The HTTP status and the body of one inference."""
        body = json.dumps({"model": model, "input": values, **more}).encode()
        return self._open(urllib.request.Request(self.url + "/api/v1/inference", body, JSON))

    def _open(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


class Mesh:
    """The processes of one test module; all are gone at its end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._all: list[NodeProcess] = []

    def start(self, name: str, *arguments: str) -> NodeProcess:
        """Start a node, or one that was stopped again, under the same identity."""
        node = NodeProcess(self.folder / name, *arguments)
        self._all.append(node)
        return node

    def close(self) -> None:
        for node in self._all:
            if node.process.poll() is None:
                node.signal(signal.SIGCONT)
                node.kill()
