"""Every verb of `llmesh` once, against one real node; signals and pipes with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from node_process import DEMO, TEXT, Mesh, NodeProcess, until

from llmesh.demo import SENTIMENT_ANALYZER
from llmesh.node.cli import main

LLMESH = Path(sys.executable).parent / "llmesh"
FRIEND = "0x52908400098527886E0F7030069857D2E4169EE7"
LOOPS = {"times": 1 << 62, "x": [1.0, 2.0, 3.0]}


@pytest.fixture(scope="module")
def node(mesh: Mesh) -> NodeProcess:
    """One that was started by the verb, with stake."""
    return mesh.start("verbs", "start", "--demo", "--stake", "10").ready()


def invoke(node: NodeProcess, *arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(main, [*arguments, "--data-dir", str(node.folder)], input)


def said(node: NodeProcess, *arguments: str, input: str | None = None) -> str:
    done = invoke(node, *arguments, input=input)
    assert done.exception is None, (arguments, done.exception)
    return done.stdout


def told(node: NodeProcess, *arguments: str) -> Any:
    return json.loads(said(node, *arguments, "--json"))


def test_looking(node: NodeProcess) -> None:
    assert told(node, "status")["node_id"] == node.id
    assert node.address in said(node, "status")
    assert {row["name"] for row in told(node, "models")["models"]} >= {DEMO, "gpt-mini"}
    [found] = told(node, "search", "sentim")["models"]
    assert found["provider"] == node.id
    assert told(node, "search", "sentim", "--limit", "1")["models"]
    assert told(node, "peers") == {"peers": []}
    found = {row["subject"]: row for row in told(node, "doctor")["findings"]}
    assert (found["node"]["level"], found["gateway"]["text"]) == ("ok", f"{node.url} answers")
    assert (found["journal"]["level"], found["ledger"]["level"], found["swarm"]["level"]) == ("ok",) * 3
    assert "MESH" in said(node, "search")


def test_running(node: NodeProcess) -> None:
    done = invoke(node, "run", "gpt-mini", "Hi", "--max-tokens", "5", "--temperature", "0", "--seed", "1")
    assert len(done.stdout.strip()) > 5
    assert f"gpt-mini by {node.id}: free, 5 tokens" in done.stderr
    assert "label: positive\n" in said(node, "run", DEMO, "-", input=f"{TEXT}\n")
    *chunks, last = map(
        json.loads, said(node, "run", "gpt-mini", "Hi", "--max-tokens", "3", "--json").splitlines()
    )
    assert "".join(chunk["text"] for chunk in chunks) == last["output"]["text"]
    assert (last["type"], last["usage"]["output_tokens"]) == ("completed", 3)
    assert "ModelNotFound" in str(invoke(node, "run", "nothing", "x").exception)


def test_models_come_and_go(node: NodeProcess, endless_model: Path) -> None:
    id = told(node, "deploy", str(endless_model), "--name", "slow", "--fee", "0.5")["model_id"]
    [row] = [row for row in told(node, "models")["models"] if row["name"] == "slow"]
    assert (row["model_id"], row["fee"]) == (id, 0.5)
    assert told(node, "fetch", "slow") == {"model_id": id}
    assert told(node, "fetch", "slow", "--replicate", "--fee", "0.25") == {"model_id": id}
    assert told(node, "search", "slow")["models"][0]["fee"] == 0.25
    assert json.loads(said(node, "run", "slow", "--input", '{"times": 1, "x": [1, 2, 3]}')) == [2, 4, 6]
    assert told(node, "remove", "slow") == {"model_id": id}
    assert told(node, "search", "slow") == {"models": []}
    again = CliRunner().invoke(
        main, ["deploy", str(SENTIMENT_ANALYZER), "--url", node.url, "--name", DEMO, "--json"]
    )
    assert json.loads(again.stdout)["name"] == DEMO


def test_money_and_keys(node: NodeProcess, tmp_path: Path) -> None:
    assert told(node, "wallet")["stake"] == 10
    assert f"2.5 MESH were sent to {FRIEND}; the balance is 999987.5" in said(node, "send", FRIEND, "2.5")
    assert told(node, "send", FRIEND, "2.5")["balance"] == 999985
    assert [(row["account"], row["amount"]) for row in told(node, "wallet")["sent"]] == [(FRIEND, 2.5)] * 2
    assert "InsufficientBalance" in str(invoke(node, "send", FRIEND, "1000000").exception)
    assert "4 MESH are leaving the stake" in said(node, "unbond", "4")
    assert (told(node, "wallet")["stake"], told(node, "wallet")["unbonding"]) == (6, 4)
    assert "Conflict" in str(invoke(node, "withdraw").exception), "seven days have not passed"
    assert "NotFound" in str(invoke(node, "explain", "0" * 32).exception)
    assert told(node, "invite", "--credit", "5")["invite"].startswith("llmesh1-")
    assert told(node, "ledger", "verify")["accounts"] == 2
    assert told(node, "backup", str(tmp_path / "saved"))["files"]
    again = ["restore", str(tmp_path / "saved"), "--data-dir", str(tmp_path / "new")]
    assert "issues its swarm's money" in str(CliRunner().invoke(main, again).exception)
    restored = CliRunner().invoke(main, [*again, "--latest-ledger"])
    assert node.id in restored.stdout
    key = told(node, "keys", "create", "--name", "a")
    assert (
        json.loads(
            CliRunner().invoke(main, ["status", "--url", node.url, "--key", key["key"], "--json"]).stdout
        )["node_id"]
        == node.id
    )
    assert "Unauthorized" in str(CliRunner().invoke(main, ["status", "--url", node.url]).exception)
    assert told(node, "keys", "revoke", "a")["revoked"]
    assert [row["name"] for row in told(node, "keys", "list")["keys"]] == ["a"]


def test_an_interrupt_stops_the_work_and_is_130(node: NodeProcess, endless_model: Path) -> None:
    id = told(node, "deploy", str(endless_model), "--name", "endless")["model_id"]
    command = [LLMESH, "run", "endless", "--input", json.dumps(LOOPS), "--data-dir", str(node.folder)]

    def calls() -> int:
        workers = node.get("/api/v1/status")["workers"]
        return sum(worker["calls"] for worker in workers if worker["model_id"] == id)

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
        until(lambda: calls() == 1, 20, "running")
        asking.send_signal(signal.SIGINT)
        assert asking.wait(10) == 130
        assert asking.stderr is not None
        assert asking.stderr.read() == "llmesh: interrupted.\n"
    until(lambda: calls() == 0, 10, "the provider has stopped")
    told(node, "remove", "endless")


def test_a_reader_who_has_read_enough_is_no_fault(node: NodeProcess) -> None:
    line = f"'{LLMESH}' search --limit 1000 --data-dir '{node.folder}' --json | head -c 1"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == ("{", "")


def test_a_refusal_is_one_line_and_its_exit_code(tmp_path: Path) -> None:
    environ = {**os.environ, "LLMESH_DATA_DIR": str(tmp_path)}
    for arguments, code in ((["status"], 2), (["status", "--url", "http://127.0.0.1:9"], 2)):
        done = subprocess.run(
            [LLMESH, *arguments], env=environ, capture_output=True, text=True, timeout=30, check=False
        )
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
        assert done.stderr.startswith("llmesh: ")
