"""The small parts: drain, banner, the missing extra, the exports."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import llmesh
from llmesh import errors
from llmesh.core.amount import Amount
from llmesh.core.announcement import Offer
from llmesh.core.ids import ModelId, PeerId
from llmesh.core.model import TEXT_CLASSIFICATION, Card
from llmesh.errors import NodeBusy
from llmesh.gateway.status import NodeStatus, SwarmView
from llmesh.node.banner import banner, reachability_line
from llmesh.node.config import NodeConfig
from llmesh.node.drain import Drain
from llmesh.node.faults import lone_errors

STATUS = NodeStatus(PeerId("me"), "1", 0, 1, Amount(5), Amount(0), ("/ip4/192.0.2.1/tcp/4001",))


async def test_a_drain_lets_finish_what_is_in_and_nothing_new_in() -> None:
    drain, order = Drain(), list[str]()

    async def work() -> None:
        with drain.entered():
            await trio.testing.wait_all_tasks_blocked()
            order.append("finished")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        await drain.close()
        order.append("closed")
    assert order == ["finished", "closed"]
    with pytest.raises(NodeBusy), drain.entered():
        pass
    await drain.close()


def test_lone_errors_are_raised_as_themselves_and_others_as_they_come() -> None:
    with pytest.raises(KeyError), lone_errors():
        raise ExceptionGroup("", [ExceptionGroup("", [KeyError()])])
    with pytest.raises(ExceptionGroup), lone_errors():
        raise ExceptionGroup("", [KeyError(), ValueError()])
    with pytest.raises(ValueError, match="alone"), lone_errors():
        raise ValueError("alone")


def test_the_banner_shows_every_address_and_offer_and_a_line_that_fits_them() -> None:
    text = Offer(ModelId("a" * 64), Card("it's", "2"), TEXT_CLASSIFICATION, Amount(100_000))
    raw = Offer(ModelId("b" * 64), Card("raw"), "raw-tensors", Amount(0))
    status = replace(STATUS, addresses=(*STATUS.addresses, "/ip6/::1/tcp/1"))
    shown = banner(status, "http://h:1", [raw, text], Path("/h"), True)
    for part in (
        "/ip4/192.0.2.1/tcp/4001/p2p/me",
        "/ip6/::1/tcp/1/p2p/me",
        "raw:1.0.0  free",
        "it's:2  0.1 MESH",
    ):
        assert part in shown
    command = next(line for line in shown.splitlines() if "curl" in line)
    echoed = subprocess.run(
        ["sh", "-c", command.replace("curl", "printf '%s\\n'", 1)], capture_output=True, text=True, check=True
    ).stdout
    assert '{"model": "it\'s", "input"' in echoed
    assert "/api/v1/models" in banner(STATUS, "http://h:1", [raw], Path("/h"), False)


def test_the_banner_says_who_needs_a_key_and_how_to_make_one() -> None:
    home, make = Path("/my home"), "keys create --name NAME --data-dir '/my home'"
    assert make in banner(STATUS, "http://0.0.0.0:1", [], home, False)
    assert make not in banner(STATUS, "http://0.0.0.0:1", [], home, True)
    assert "asks every caller for a key" in banner(STATUS, "http://0.0.0.0:1", [], home, True)
    assert "key" not in banner(STATUS, "http://127.0.0.1:1", [], home, False).lower()
    assert "Bearer KEY" in banner(STATUS, "http://127.0.0.1:1", [], home, True)


def test_reachability_in_words() -> None:
    assert "/ip4/192.0.2.1/tcp/4001/p2p/me" in reachability_line(STATUS.addresses, PeerId("me"))
    assert "consumer only" in reachability_line((), PeerId("me"))


# A module that is None in sys.modules is one that is not installed.
HIDING = "import sys; sys.modules.update(dict.fromkeys(['libp2p', 'onnxruntime', 'click']))\n"


def without_the_extra(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDING + program], capture_output=True, text=True, check=False
    )


def test_without_the_extra_the_program_says_what_to_install() -> None:
    done = without_the_extra("import runpy; runpy.run_module('llmesh.node', run_name='__main__')")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'llmesh-network[node]'" in done.stderr
    assert "click, libp2p, onnxruntime" in done.stderr


def test_without_the_extra_meshnode_says_what_to_install_and_the_rest_works() -> None:
    done = without_the_extra(
        "from llmesh import MeshNode, MeshClient, Amount\nMeshClient()\n"
        "try: MeshNode(stake=1)\nexcept ImportError as error: print(error)"
    )
    assert "pip install 'llmesh-network[node]'" in done.stdout, done.stderr


def test_every_export_is_there_and_every_error_is_exported() -> None:
    for name in llmesh.__all__:
        assert getattr(llmesh, name) is not None
    assert set(errors.__all__) - {"ERRORS", "error_from_code"} <= set(llmesh.__all__)
    assert dir(llmesh) == sorted(llmesh.__all__)
    with pytest.raises(AttributeError):
        llmesh.nothing_of_the_kind  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == llmesh.__version__


def test_the_banner_has_an_invite_that_this_node_can_make() -> None:
    own = SwarmView("aa", "0x1", True, Amount(1), 0)
    member = replace(own, issuer=False)

    def shown(swarm: SwarmView, home: Path) -> str:
        return banner(replace(STATUS, swarm=swarm), "http://127.0.0.1:1", [], home, False)

    assert " invite --credit 5000 --data-dir '/my home'\n" in shown(own, Path("/my home"))
    assert " invite --credit 5000\n" in shown(own, NodeConfig().data_dir)
    assert " invite\n" in shown(member, NodeConfig().data_dir)


def test_the_banners_commands_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = tmp_path / "my env/bin", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir(parents=True)
    program = own / "llmesh"
    monkeypatch.setattr(sys, "executable", str(own / "python"))
    monkeypatch.setenv("PATH", str(other))

    def shown() -> str:
        return banner(STATUS, "http://127.0.0.1:1", [], NodeConfig().data_dir, False)

    assert f"  '{own / 'python'}' -m llmesh.node invite\n" in shown()
    for path in (program, other / "llmesh"):
        path.touch(0o755)
    assert f"  '{program}' invite\n" in shown()  # another environment's is not ours
    monkeypatch.setenv("PATH", str(own))
    assert "  llmesh invite\n" in shown()
