"""One set of questions, asked of a running node by its socket and of its files while none runs."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from click.testing import CliRunner
from llmesh_sdk import MeshClient
from openapi_spec_validator import validate

from llmesh.core.address import Address
from llmesh.core.amount import Amount
from llmesh.core.ids import AttemptId, ModelId, PeerId, RequestId
from llmesh.core.receipt import Charge, Receipt, SignedReceipt, Work
from llmesh.core.voucher import ChannelId
from llmesh.errors import (
    Conflict,
    InsufficientBalance,
    InsufficientStake,
    ModelNotFound,
    NodeUnreachable,
    NotFound,
    Unauthorized,
    ValidationFailed,
)
from llmesh.journal.columns import Side
from llmesh.journal.open import open_journal
from llmesh.journal.receipts import ReceiptRow, StoreReceipt
from llmesh.node.backup import restore
from llmesh.node.cli import main
from llmesh.node.config import NodeConfig
from llmesh.node.desk import Desk, open_desk
from llmesh.node.faults import StartRefused
from llmesh.node.home import held, open_home
from llmesh.node.open import open_node
from llmesh.node.swarm import account_signer, open_log


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(port=0, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False, data_dir=tmp_path / "home")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A verb lets signals end its process."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


async def start_once(config: NodeConfig) -> None:
    """What a first start leaves behind."""
    with open_home(config.data_dir) as home:
        async with open_log(home, account_signer(home), Amount(0), None):
            pass


@asynccontextmanager
async def files(config: NodeConfig) -> AsyncIterator[Desk]:
    await start_once(config)
    async with open_desk(config.data_dir) as desk:
        yield desk


@asynccontextmanager
async def running(config: NodeConfig) -> AsyncIterator[Desk]:
    async with open_node(config), open_desk(config.data_dir) as desk:
        yield desk


@pytest.fixture
async def owner(config: NodeConfig) -> AsyncIterator[Desk]:
    async with running(config) as desk:
        yield desk


@pytest.mark.parametrize("open_one", [files, running])
async def test_keys_and_backups(config: NodeConfig, tmp_path: Path, open_one: Any) -> None:
    async with open_one(config) as desk:
        made = await desk.post("/owner/keys", {"name": "a", "budget": "2.5", "scopes": ["deploy"]})
        assert made["key"].startswith("llmesh_")
        assert made["scopes"] == ["deploy", "read"]
        [listed] = (await desk.get("/owner/keys"))["keys"]
        assert (listed["left"], listed["in_force"]) == (2.5, True)
        assert "key" not in listed
        for bad in ({"scopes": ["all"]}, {"budget": -1}, {"lifetime": 0}, {"nonsense": 1}):
            with pytest.raises(ValidationFailed):
                await desk.post("/owner/keys", {"name": "b", **bad})
        with pytest.raises(Conflict):
            await desk.post("/owner/keys", {"name": "a"})
        assert (await desk.post("/owner/keys/revoke", {"key": "a"}))["revoked"]
        with pytest.raises(ValidationFailed):
            await desk.post("/owner/backup", {"path": "here"})
        saved = await desk.post("/owner/backup", {"path": str(tmp_path / "saved")})
        assert {path.name for path in (tmp_path / "saved").iterdir()} == set(saved["files"])
        await desk.post("/owner/backup", {"path": str(tmp_path / "saved")})
        with pytest.raises(Conflict, match="other files"):
            await desk.post("/owner/backup", {"path": str(tmp_path)})
    owner, _ = restore(tmp_path / "saved", tmp_path / "elsewhere")
    async with open_desk(tmp_path / "elsewhere") as desk:
        [listed] = (await desk.get("/owner/keys"))["keys"]
        assert listed["revoked"]
    with open_home(config.data_dir) as home:
        assert home.peer_id == owner


async def test_only_the_socket_has_the_owners_routes(config: NodeConfig) -> None:
    async with open_node(config) as node, open_desk(config.data_dir) as desk:
        assert (await desk.get("/api/v1/status"))["node_id"] == node.peer_id
        with pytest.raises(ModelNotFound):
            await desk.post("/api/v1/inference", {"model": "m", "input": "x"})
        async with httpx2.AsyncClient(base_url=node.url, trust_env=False) as http:
            assert (await http.get("/owner/keys")).status_code == 404
            assert (await http.get("/api/v1/status")).status_code == 200
            await desk.post("/owner/keys", {"name": "a"})
            assert (await http.get("/api/v1/status")).status_code == 401
        await desk.get("/api/v1/status")


BAD: list[tuple[str, dict[str, Any]]] = [
    ("unbond", {"amount": -1}), ("unbond", {"amount": "1e-7"}), ("unbond", {}), ("unbond", {"amount": None}),
    ("send", {"to": "bob", "amount": 1}), ("send", {"to": "0x" + "1" * 40, "amount": 0}),
    ("send", {"to": "0x" + "1" * 40, "amount": -1}), ("send", {"to": "0x" + "0" * 40, "amount": 1}),
    ("send", {"to": "0x" + "1" * 40, "amount": 1e60}), ("send", {"to": "0x" + "1" * 40, "amount": "1e-7"}),
    ("send", {"amount": 1}), ("send", {"to": None, "amount": 1}),
    ("fetch", {"model": "!"}), ("fetch", {"model": ""}), ("fetch", {"model": "m", "fee": 1}),
    ("fetch", {"model": "m", "replicate": True, "fee": -1}), ("fetch", {"model": "m", "folder": "/"}),
]  # fmt: skip


async def test_bad_questions_are_refused(owner: Desk) -> None:
    for path, body in BAD:
        with pytest.raises(ValidationFailed):
            await owner.post(f"/owner/{path}", body)


async def test_what_is_not_there_is_refused(owner: Desk) -> None:
    with pytest.raises(InsufficientStake, match="has 0 MESH bonded, not 1"):
        await owner.post("/owner/unbond", {"amount": "1"})
    with pytest.raises(InsufficientBalance, match="has 1000000 MESH free"):
        await owner.post("/owner/send", {"to": "0x" + "1" * 40, "amount": "1e9"})
    with pytest.raises(NotFound, match="announced no account"):
        await owner.post("/owner/send", {"to": "12D3KooW" + "A" * 44, "amount": 1})
    with pytest.raises(Conflict):
        await owner.post("/owner/withdraw", {})
    with pytest.raises(ModelNotFound):
        await owner.post("/owner/fetch", {"model": "nothing", "replicate": True, "fee": "0.5"})
    document = await owner.get("/openapi.json")
    validate(document)
    assert {"/owner/fetch", "/owner/send", "/owner/unbond", "/owner/withdraw"} <= document["paths"].keys()


async def test_the_sdk_goes_by_the_socket_too(config: NodeConfig) -> None:
    async with open_node(config) as node, MeshClient(node.url, uds=config.data_dir / "owner.sock") as client:
        async with MeshClient(node.url) as other, open_desk(config.data_dir) as desk:
            await desk.post("/owner/keys", {"name": "a"})
            with pytest.raises(Unauthorized):
                await other.status()
        assert (await client.status()).node_id == node.peer_id
        with pytest.raises(ModelNotFound):
            await anext(client.stream("none", "x"))


async def test_beyond_loopback_nobody_is_let_in_without_a_key(config: NodeConfig) -> None:
    async with (
        open_node(replace(config, host="0.0.0.0")) as node,
        open_desk(config.data_dir) as desk,
        httpx2.AsyncClient(base_url=node.url.replace("0.0.0.0", "127.0.0.1"), trust_env=False) as http,
    ):
        assert not node.has_keys
        assert (await http.get("/api/v1/status")).status_code == 401
        key = (await desk.post("/owner/keys", {"name": "a"}))["key"]
        answer = await http.get("/api/v1/status", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200


async def test_behind_a_proxy_too_and_by_the_names_it_is_given(config: NodeConfig) -> None:
    proxied = replace(config, trusted_proxy=(ip_network("127.0.0.1"),), allow_host=("node.example.org",))
    async with (
        open_node(proxied) as node,
        open_desk(config.data_dir) as desk,
        httpx2.AsyncClient(base_url=node.url, trust_env=False) as http,
    ):
        assert (await http.get("/api/v1/status")).status_code == 401
        key = (await desk.post("/owner/keys", {"name": "a"}))["key"]
        for host, status in (("node.example.org", 200), ("evil.example", 401)):
            headers = {"Authorization": f"Bearer {key}", "Host": host}
            assert (await http.get("/api/v1/status", headers=headers)).status_code == status


async def test_where_no_node_ever_was_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="no node"):
        async with open_desk(tmp_path / "typo"):
            pass
    assert not (tmp_path / "typo").exists()


def test_restoring_is_refused_where_it_would_lose_something(config: NodeConfig, tmp_path: Path) -> None:
    trio.run(start_once, config)
    invoke(config, "keys", "create", "--name", "a")
    assert invoke(config, "backup", str(tmp_path / "saved"))["files"]
    with held(config.data_dir), pytest.raises(StartRefused, match="held"):
        restore(tmp_path / "saved", config.data_dir)
    invoke(config, "keys", "revoke", "a")
    with pytest.raises(Conflict, match="does not know"):
        restore(tmp_path / "saved", config.data_dir)
    assert invoke(config, "keys", "list")["keys"][0]["revoked"]
    with open_home(tmp_path / "other"):
        pass
    with pytest.raises(Conflict, match="another node"):
        restore(tmp_path / "saved", tmp_path / "other")
    (tmp_path / "saved" / "account.key").unlink()
    with pytest.raises(ValidationFailed, match=r"account\.key"):
        restore(tmp_path / "saved", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def invoke(config: NodeConfig, *arguments: str) -> Any:
    done = CliRunner().invoke(main, [*arguments, "--data-dir", str(config.data_dir), "--json"])
    if done.exception is not None:
        raise done.exception
    return json.loads(done.stdout)


def test_the_verbs_print_for_people(config: NodeConfig, tmp_path: Path) -> None:
    trio.run(start_once, config)

    def said(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["--data-dir", str(config.data_dir), *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert said("keys", "list") == "There are no keys.\n"
    made = said("keys", "create", "--name", "[bold]x", "--budget", "5", "--expires", "30d")
    assert made.startswith("llmesh_")
    assert "5 MESH a day; until 2" in made
    assert "[bold]x" in said("keys", "list")
    assert "account.key" in said("backup", str(tmp_path / "saved"))
    assert "again" in said("restore", str(tmp_path / "saved"))
    assert "revoked" in said("keys", "revoke", "[bold]x")
    assert "1000000" in said("wallet")
    assert "Spent: nothing in 7 days." in said("wallet", "--days", "7")


def test_an_explanation_reads_like_one(config: NodeConfig) -> None:
    trio.run(start_once, config)
    request = "ab" * 16
    with pytest.raises(NotFound, match="cost nothing"):
        invoke(config, "explain", request)
    trio.run(store_a_receipt, config, request)
    done = CliRunner().invoke(main, ["explain", request, "--data-dir", str(config.data_dir)])
    for part in ("0.000005 MESH paid to 12D3", "charge 1 on channel", "NOT genuinely signed"):
        assert part in done.stdout
    spent = invoke(config, "wallet")["spending"]
    assert [row["fees"] for row in spent] == [0.000005]


async def store_a_receipt(config: NodeConfig, request: str) -> None:
    charge = Charge(ChannelId(b"c" * 32), 1, Amount(5), Amount(5))
    work = Work(ModelId("ab" * 32), "fp32-strict", bytes(32), bytes(32))
    attempt = AttemptId(RequestId(request), 1)
    receipt = Receipt(Address(b"p" * 20), attempt, bytes(32), work, charge, int(time.time()))
    row = ReceiptRow(Side.PAYER, PeerId("12D3KooW" + "B" * 44), SignedReceipt(receipt, bytes(65)))
    with open_home(config.data_dir) as home:
        async with open_journal(config.data_dir / "journal.db", home.peer_id) as journal:
            await journal.commit(StoreReceipt(row))


def test_bad_verbs_are_refused(config: NodeConfig) -> None:
    trio.run(start_once, config)
    with pytest.raises(ValidationFailed):
        invoke(config, "keys", "create", "--name", "a", "--scopes", "all")
    with pytest.raises(NodeUnreachable, match=f"`llmesh start --data-dir {config.data_dir}`"):
        invoke(config, "invite")
