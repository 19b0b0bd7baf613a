"""The verbs of the command line against a gateway that is a fake: what they ask, print and refuse."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from click.testing import CliRunner
from llmesh_sdk import InferenceResult
from llmesh_sdk.results import StreamChunk

from llmesh.core.amount import Amount
from llmesh.core.ids import ModelId, PeerId, RequestId
from llmesh.errors import NetworkError
from llmesh.node.cli import command, main
from llmesh.node.tables import table
from llmesh.node.verbs import VERBS, money
from llmesh.node.verbs.asked import Asked
from llmesh.node.verbs.view import lasting

run_module = importlib.import_module("llmesh.node.verbs.run")  # the package has a verb of that name
ME = "12D3KooW" + "M" * 44
OTHER = "12D3KooW" + "B" * 44
ID, ID2 = "ab" * 32, "cd" * 32
STATUS = {
    "node_id": ME, "version": "9.9", "peers": 1, "models": 2, "stake": 5, "earnings": 0.000001,
    "addresses": ["/ip4/192.0.2.7/tcp/4001"], "reachable": False, "uptime": 3700.5, "sandbox": "confined",
    "providers": ["cpu"],
    "transfers": [{"model_id": ID, "done": 10**6, "total": 2_500_000, "rate": 10**5, "sources": ["p"]}],
    "workers": [
        {"model_id": id, "sandbox": "confined", "provider": "cpu", "batch": 1, "resident": 2_000_000,
         "calls": 0}
        for id in (ID, ID2)
    ],
    "swarm": {"id": "f" * 64, "account": "0x", "issuer": False, "balance": 1234567.000001, "entries": 3,
              "followed": 2, "alarm": "two logs", "accused": 1},
}  # fmt: skip


def offer(id: str, name: str, provider: str = ME, version: str = "1.0.0", fee: float = 0.1) -> dict[str, Any]:
    return {"name": name, "version": version, "model_id": id, "task": "raw-tensors", "fee": fee,
            "provider": provider, "stake": 7, "description": "", "licence": ""}  # fmt: skip


@dataclass
class Gateway:
    """Answers by method and path (without query), those of `later` first; whatever else is refused."""

    url: str = ""
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    later: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    fake = Gateway()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fake.asked.append((self.command, self.path, body))
            fake.headers.append(self.headers)
            missing = (404, {"code": 1001, "detail": f"No {self.path}."})
            name = f"{self.command} {self.path.partition('?')[0]}"
            status, told = (
                fake.later[name].pop(0) if fake.later.get(name) else fake.answers.get(name, missing)
            )
            text = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.url = f"http://127.0.0.1:{server.server_port}"
        fake.answers = {
            "GET /api/v1/status": (200, STATUS),
            f"GET /api/v1/models/{ID}": (200, {"offers": [offer(ID, "情感[b]"), offer(ID, "x", OTHER)]}),
            f"GET /api/v1/models/{ID2}": (200, {"offers": [offer(ID2, "情感[b]", version="2", fee=0)]}),
            "GET /api/v1/models": (200, {"models": [offer(ID2, "far", OTHER)]}),
            "GET /api/v1/peers": (200, {"peers": [
                {"peer_id": OTHER, "state": "connected", "addresses": ["/ip4/192.0.2.9/tcp/1"],
                 "latency_ms": 1.25, "models": 3, "stake": 10}]}),
        }  # fmt: skip
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield fake
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No node of this machine is met by a slip of a test."""
    monkeypatch.setenv("LLMESH_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.delenv("LLMESH_URL", raising=False)
    monkeypatch.delenv("LLMESH_KEY", raising=False)


def said(gateway: Gateway, *arguments: str) -> str:
    done = CliRunner().invoke(main, [*arguments, "--url", gateway.url])
    assert done.exception is None, done.exception
    return done.stdout


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the one line of a command that is refused."""
    with pytest.raises(SystemExit) as ended:
        command(list(arguments))
    out, line = capsys.readouterr()
    assert out == ""
    assert line.startswith("llmesh: ")
    assert line.count("\n") == 1
    assert isinstance(ended.value.code, int)
    return ended.value.code, line


def test_status_and_peers_read_well(gateway: Gateway) -> None:
    shown = said(gateway, "status")
    for part in (ME, "1 h 1 min", "/ip4/192.0.2.7/tcp/4001/p2p/", "consumer only", "0.000001 MESH",
                 "1234567.000001", "1.0 of 2.5 MB, 0.1 MB/s from 1", "ledger from 2 of its peers",
                 "two logs"):  # fmt: skip
        assert part in shown
    assert json.loads(said(gateway, "status", "--json")) == STATUS
    heads, row = said(gateway, "peers", "--limit", "7").splitlines()
    assert heads.split() == ["peer", "state", "latency", "models", "MESH", "staked", "address"]
    assert row.split() == [OTHER, "connected", "1.2", "ms", "3", "10", "/ip4/192.0.2.9/tcp/1"]
    assert gateway.asked[-1][1] == "/api/v1/peers?limit=7"
    gateway.answers["GET /api/v1/peers"] = (200, {"peers": []})
    assert "--join" in said(gateway, "peers")


def test_its_own_models_are_told_from_those_of_the_mesh(gateway: Gateway) -> None:
    _, first, second = said(gateway, "models").splitlines()
    assert first.split() == ["情感[b]", "1.0.0", "raw-tensors", "0.1", "2", "MB", "confined", ID]
    assert second.split()[3] == "free"
    told = json.loads(said(gateway, "models", "--json"))["models"]
    assert [row["worker"]["resident"] for row in told] == [2_000_000] * 2
    assert said(gateway, "search", "fa", "--max-fee", "0.50", "--limit", "3").splitlines()[1].split() == [
        "far", "1.0.0", "raw-tensors", "0.1", "7", OTHER,
    ]  # fmt: skip
    assert gateway.asked[-1][1] == "/api/v1/models?name=fa&limit=3&max_fee=0.5"
    gateway.answers["GET /api/v1/models"] = (200, {"models": []})
    assert "No such model" in said(gateway, "search")


def test_a_model_is_removed_by_any_of_its_names(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.answers[f"DELETE /api/v1/models/{ID}"] = (200, {"model_id": ID})
    del gateway.answers[f"GET /api/v1/models/{ID2}"]
    gateway.answers[f"GET /api/v1/models/{ID2}"] = (200, {"offers": [offer(ID2, "a", version="2")]})
    gateway.answers[f"GET /api/v1/models/{ID}"] = (200, {"offers": [offer(ID, "a")]})
    for name in ("a:1.0.0", f"a@{ID}", ID):
        assert ID in said(gateway, "remove", name)
        assert gateway.asked[-1][0] == "DELETE"
    count = len(gateway.asked)
    assert refused(capsys, "remove", "a", "--url", gateway.url)[1].startswith(
        "llmesh: [4003 Conflict] a may be"
    )
    assert refused(capsys, "remove", "b", "--url", gateway.url)[0] == 1
    assert all(method == "GET" for method, _, _ in gateway.asked[count:])


def test_a_model_is_sent_to_a_node_elsewhere(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    path = tmp_path / "my-model" / "model.onnx"
    path.write_bytes(b"onnx")
    gateway.answers["POST /api/v1/models"] = (201, {"model_id": ID, "name": "my-model", "version": "1.0.0"})
    shown = said(gateway, "deploy", str(path), "--fee", "0.25", "--key", "llmesh_k")
    assert shown == f"my-model:1.0.0 is served now (model {ID}).\n"
    [(_, _, body)] = gateway.asked
    assert b'"name": "my-model", "fee": "0.25"' in body
    assert b"\r\nonnx\r\n" in body
    assert gateway.headers[0]["Authorization"] == "Bearer llmesh_k"


MISSING = (404, {"code": 4005, "detail": "None."})


def receipt(*, genuine: bool) -> tuple[int, Any]:
    return 200, {"receipts": [{"charge": {"genuine": genuine}}]}


@pytest.mark.parametrize(
    ("fee", "answers", "line"),
    [
        ("0.5", [receipt(genuine=True)], "receipt genuine; `llmesh explain r --url http://127.0.0.1:"),
        ("0.5", [receipt(genuine=False)], "receipt NOT GENUINE"),
        ("0.5", [MISSING], "no receipt"),
        ("0", [MISSING], "no receipt was kept, as nothing was charged"),
    ],
)  # fmt: skip
async def test_a_receipt_is_told_of(
    gateway: Gateway, fee: str, answers: list[tuple[int, Any]], line: str
) -> None:
    gateway.later["GET /api/v1/receipts/r"] = answers
    result = InferenceResult({}, "m", ModelId(ID), Amount.parse(fee), PeerId(OTHER), 12.4, RequestId("r"))
    told = await run_module._summary(Asked(url=gateway.url), result)
    price = "free" if fee == "0" else "0.5 MESH"
    assert told.startswith(f"m by {OTHER}: {price}, 12 ms\nrequest r: {line}")
    assert not gateway.later["GET /api/v1/receipts/r"]


def test_who_gives_no_key_is_told_how(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    gateway.answers["GET /api/v1/status"] = (401, {"code": 4001, "detail": "It asks for a key."})
    code, line = refused(capsys, "status", "--url", gateway.url)
    assert code == 1
    assert "It asks for a key. A key is given by --key or LLMESH_KEY." in line
    assert "--key" not in refused(capsys, "status", "--url", gateway.url, "--key", "llmesh_k")[1]
    gateway.answers["GET /ws"] = gateway.answers["GET /api/v1/status"]
    assert "by --key" in refused(capsys, "run", "m", "x", "--url", gateway.url)[1]


@pytest.mark.parametrize("option", ["--timeout", "--temperature"])
@pytest.mark.parametrize("number", ["nan", "inf"])
def test_what_is_no_number_is_named(capsys: pytest.CaptureFixture[str], option: str, number: str) -> None:
    code, line = refused(capsys, "run", "m", "x", option, number)
    assert code == 2
    assert f"Invalid value for '{option}'" in line


def test_where_nobody_is_there_to_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = refused(capsys, "status", "--url", "http://127.0.0.1:1")
    assert code == 2
    assert line.startswith("llmesh: No node answers at http://127.0.0.1:1")
    assert "another provider" not in line


def test_what_the_node_says_of_others_is_its_answer(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.answers["GET /api/v1/status"] = (503, {"code": 2002, "detail": "No provider answered."})
    code, line = refused(capsys, "status", "--url", gateway.url)
    assert (code, line.startswith("llmesh: [2002 NodeUnreachable] No provider")) == (1, True)


def test_a_node_elsewhere_explains_by_its_receipts(gateway: Gateway) -> None:
    charge = {
        "attempt": 1, "side": "payer", "peer": OTHER, "provider": "0xab", "model_id": ID, "model": "m",
        "execution": "fp32-strict", "price": 0.5, "channel": "cd", "sequence": 2, "cumulative": 0.75,
        "issued": "2026-01-01T00:00:00Z", "offer": "", "input_digest": "", "output_digest": "",
        "genuine": True,
    }  # fmt: skip
    gateway.answers["GET /api/v1/receipts/r"] = (200, {"request_id": "r", "receipts": [{"charge": charge}]})
    shown = said(gateway, "explain", "r")
    assert f"0.5 MESH paid to {OTHER}" in shown
    assert "0.75 MESH were charged" in shown


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_text_cannot_steer_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    hostile = "a\tb\x1b]52;c;eA==\x07\x9b31m\n\U0001f468\u200d\U0001f469"

    class Stream:
        result = InferenceResult(
            {"label": hostile}, "m", ModelId(ID), Amount(0), PeerId(OTHER), 1.0, RequestId("r")
        )

        def __init__(self, *texts: str) -> None:
            self.texts = list(texts)

        def __aiter__(self) -> Stream:
            return self

        async def __anext__(self) -> StreamChunk:
            await trio.lowlevel.checkpoint()
            if not self.texts:
                raise StopAsyncIteration
            return StreamChunk(0, self.texts.pop(0))

    for texts in ((hostile,), ()):
        with monkeypatch.context() as patched:
            patched.setattr(run_module.sys.stdout, "isatty", lambda: terminal)
            await run_module._as_text(Stream(*texts))
        said = capsys.readouterr().out
        assert ("\x1b" in said, "\x9b" in said, "\ufffd" in said) == (
            (False, False, True) if terminal else (True, True, False)
        )
        assert "a\tb" in said
        assert "\U0001f468\u200d\U0001f469" in said


def test_the_environment_names_the_gateway_and_the_key(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMESH_URL", gateway.url)
    monkeypatch.setenv("LLMESH_KEY", "llmesh_e")
    assert ME in CliRunner().invoke(main, ["status"]).stdout
    assert gateway.headers[0]["Authorization"] == "Bearer llmesh_e"
    for arguments in (["status", "--data-dir", str(tmp_path)], ["invite"], ["keys", "list"]):
        code, line = refused(capsys, *arguments)
        assert (code, "no node in" in line) == (2, True), "what is the owner's is not asked of a gateway"
    assert len(gateway.asked) == 1


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((401, {"code": 4001, "detail": "No key."}), "[4001 Unauthorized] No key. A key is given by"),
        ((418, {"code": 9999, "detail": "Tea."}), "[9999 UnknownError] Tea. "),
        ((200, b"<html>"), "[2001 NetworkError] http"),
        ((500, {"detail": "Oh."}), "[2001 NetworkError] http"),
    ],
)
def test_what_a_node_refuses_is_one_line_and_1(
    gateway: Gateway, capsys: pytest.CaptureFixture[str], answer: tuple[int, Any], line: str
) -> None:
    gateway.answers["GET /api/v1/status"] = answer
    code, told = refused(capsys, "status", "--url", gateway.url)
    assert code == 1
    assert line in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "--max-fee", "-1"], ["search", "--limit", "0"], ["search", "--max-fee", "1e-7"],
        ["remove", "!"], ["remove"], ["run", "!", "x"], ["run", "m"], ["run", "m", "x", "--input", "{}"],
        ["run", "m", "--input", "[1]"], ["run", "m", "--input", "{"], ["run", "m", "--input", "{}"],
        ["run", "m", "x", "--timeout", "0"], ["run", "m", "x", "--timeout", "nan"],
        ["run", "m", "x", "--max-tokens", "0"], ["run", "m", "x", "--temperature", "-1"],
        ["deploy", "/nowhere/at/all"], ["deploy", ".", "--name", "!"], ["deploy", ".", "--fee", "much"],
        ["deploy", ".", "--version", "a b"], ["fetch", "m", "--fee", "1"], ["fetch", "!"],
        ["send", "bob", "1"], ["send", "0x" + "1" * 40, "-1"], ["send", "0x" + "1" * 40], ["send", "5"],
        ["unbond", "-5"], ["unbond", "x"], ["keys", "create", "--name", "a", "--expires", "soon"],
        ["invite", "--expires", "0d"], ["status", "--url", "ftp://x"], ["start", "extra"],
        ["status", "--url", "http://x", "--data-dir", "y"],
        ["peers", "--limit", "many"], ["nonsense"], ["start", "--port", "http"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_words_are_refused_before_anything_is_asked(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path
) -> None:
    assert refused(capsys, *arguments)[0] == 2
    assert not (tmp_path / "home").exists()


def test_a_text_that_is_not_utf8_is_refused() -> None:
    done = CliRunner().invoke(main, ["run", "m", "-"], input=b"\xff")
    assert (done.exit_code, "not UTF-8" in done.stderr) == (2, True)


def test_every_verb_explains_itself() -> None:
    for verb in (*VERBS, main.commands["start"]):
        done = CliRunner().invoke(main, [str(verb.name), "--help"])
        assert done.exit_code == 0
        short = verb.get_short_help_str(60)
        assert short, verb.name
        assert not short.endswith("..."), verb.name
        for parameter in verb.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{verb.name} does not explain {parameter.name}"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (200_000, "2 d 7 h")]
)
def test_lengths_of_time(seconds: float, text: str) -> None:
    assert lasting(seconds) == text


def test_completion_is_offered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_LLMESH_COMPLETE", "bash_source")
    with pytest.raises(SystemExit):
        command([], "llmesh")
    assert "_llmesh_completion" in capsys.readouterr().out


def test_a_narrow_terminal_folds_ids_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("a name", "text-classification", ID)
    [_, line] = table(("name", "task", "model id"), [row]).splitlines()
    assert line.split("  ") == list(row)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    _, *lines = table(("name", "task", "model id"), [row]).splitlines()
    assert lines[0].startswith("a name  text-classification  ab")
    assert "".join("".join(lines).split()).endswith(ID)


def test_without_the_extra_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['rich'] = None; from llmesh.node.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'llmesh-network[node]' (not installed: rich)" in done.stderr


def test_money_is_sent_after_a_question_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    account, asked = "0x52908400098527886E0F7030069857D2E4169EE7", []

    def answers(_: Asked, question: Any) -> Any:
        asked.append(question)
        return {"account": account, "amount": 2, "balance": 3}

    monkeypatch.setattr(money, "ask_node", answers)
    done = CliRunner().invoke(main, ["send", account, "2"])
    assert done.stdout == f"2 MESH were sent to {account}; the balance is 3 MESH.\n"
    monkeypatch.setattr(money, "in_a_terminal", lambda: True)
    refused = CliRunner().invoke(main, ["send", account, "2"], input="n\n")
    assert (refused.exit_code, len(asked)) == (1, 1)
    assert f"Send 2 MESH to {account}, for good? [y/N]" in refused.output
    for more, typed in ((["--yes"], ""), (["--json"], ""), ([], "y\n")):
        assert CliRunner().invoke(main, ["send", account, "2", *more], input=typed).exit_code == 0
    assert len(asked) == 4


def test_whoever_gets_no_answer_is_not_told_to_send_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise NetworkError("The line broke.")

    monkeypatch.setattr(money, "ask_node", lost)
    done = CliRunner().invoke(main, ["send", OTHER, "2"])
    assert "may have been sent: look at what `llmesh wallet` tells" in str(done.exception)


def test_channels_fit_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    row = ("1d47c31e7a98", OTHER, "60", "10.137344", "8.937344", "0", "open")
    lines = table(money._CHANNEL_HEADS, [row], "Channels it pays on, in MESH").splitlines()
    assert len(lines) <= 2 + 4, lines
