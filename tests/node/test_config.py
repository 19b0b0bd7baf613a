"""One declaration of the options, and the order in which their sources win."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmesh.core.amount import Amount
from llmesh.core.reference import ModelRef
from llmesh.errors import ValidationFailed
from llmesh.node.config import OPTIONS, NodeConfig, NodeOptions
from llmesh.node.sources import configure, strangers
from llmesh.node.values import Deployment, Replication

PEER = "12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"
SEED = f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER}"


def test_keywords_are_the_fields() -> None:
    assert set(NodeOptions.__annotations__) == set(OPTIONS) == set(NodeConfig.__dataclass_fields__)


def test_without_any_source_the_defaults_hold() -> None:
    config = configure({}, {})
    assert config == NodeConfig()
    assert (config.host, config.port, config.mdns, config.demo) == ("127.0.0.1", 8080, True, False)
    assert config.stake == config.min_stake == Amount(0)
    assert config.data_dir.name == "llmesh"


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('port = 1\nhost = "0.0.0.0"\nstake = 0.1\nlog-level = "info"\nmdns = false\n')
    environ = {"LLMESH_PORT": "2", "LLMESH_STAKE": "5", "LLMESH_URL": "http://elsewhere"}
    config = configure({"port": 3}, environ, file)
    assert (config.port, config.stake, config.host) == (3, Amount(5_000_000), "0.0.0.0")
    assert (config.log_level, config.mdns) == ("info", False)
    assert configure({}, {**environ, "LLMESH_CONFIG": str(file)}).port == 2
    assert configure({}, {"LLMESH_CONFIG": str(file)}).port == 1


def test_a_variable_that_nothing_reads_is_named() -> None:
    known = {"LLMESH_PORT": "1", "LLMESH_URL": "", "LLMESH_KEY": "", "LLMESH_CONFIG": "", "PATH": "/"}
    assert list(strangers(known)) == []
    assert list(strangers(known | {"LLMESH_PROT": "1", "LLMESH_XYZW": "1"})) == [
        "LLMESH_PROT is ignored: nothing reads such a variable; LLMESH_PORT is one.",
        "LLMESH_XYZW is ignored: nothing reads such a variable.",
    ]


def test_every_source_reads_every_kind_of_value(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        f'listen = ["/ip4/127.0.0.1/tcp/0"]\nbootstrap = "{SEED}"\ndemo = true\n'
        f'deploy = ["{tmp_path},name=a b,fee=0.1"]\ndata_dir = "~/x"\n'
    )
    by_file = configure({}, {}, file)
    by_environment = configure(
        {},
        {
            "LLMESH_LISTEN": "/ip4/127.0.0.1/tcp/0",
            "LLMESH_BOOTSTRAP": f"{SEED};{SEED}",
            "LLMESH_DEMO": "yes",
            "LLMESH_DEPLOY": f"{tmp_path},name=a b,fee=0.1;",
            "LLMESH_DATA_DIR": "~/x",
        },
    )
    assert by_file == by_environment
    assert by_file.deploy == (Deployment(tmp_path, "a b", Amount(100_000)),)
    assert by_file.data_dir == Path.home() / "x"
    assert by_file.bootstrap == (SEED,)


def test_a_deployment_may_be_given_in_python() -> None:
    given = Deployment(Path("m"), "n", Amount(1))
    assert configure({"deploy": [given, Path("x"), "y"]}, {}).deploy == (
        given,
        Deployment(Path("x")),
        Deployment(Path("y")),
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("port", "80a", "80a"),
        ("port", 65536, "65536"),
        ("port", True, "True"),
        ("port", -1, "-1"),
        ("port", 80.5, "80.5"),
        ("host", "a b", "a b"),
        ("host", 1, "text"),
        ("stake", "NaN", "NaN"),
        ("stake", -1, "-1"),
        ("stake", float("inf"), "inf"),
        ("stake", True, "True"),
        ("min_stake", "1.2345678", "six decimals"),
        ("listen", ["/ip4/1.2.3.4/udp/1"], "udp"),
        ("listen", ["/ip4/1.2.3.400/tcp/1"], "1.2.3.400"),
        ("listen", ["/dns4/example.org/tcp/1"], "IP address"),
        ("announce", ["/ip4/1.2.3.4/tcp/0"], "port"),
        ("announce", [7], "text"),
        ("bootstrap", ["/ip4/1.2.3.4/tcp/1"], "/p2p/"),
        ("bootstrap", ["/ip4/1.2.3.4/tcp/1/p2p/QmX"], "QmX"),
        ("bootstrap", "localhost:4001", "localhost:4001"),
        ("deploy", ["m,fee=-1"], "-1"),
        ("deploy", ["m,price=1"], "price=1"),
        ("deploy", ["m,name="], "name="),
        ("deploy", ["m,fee=1,fee=2"], "fee=2"),
        ("deploy", ["m,name=/x"], "/x"),
        ("data_dir", "", "path"),
        ("demo", "maybe", "maybe"),
        ("log_level", "loud", "loud"),
        ("prot", 1, "no such option"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_option(name: str, value: object, says: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        configure({name: value}, {})
    assert caught.value.message.startswith(f"{name}: ")
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_the_variable_and_the_file_are_named_too(tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match=r"LLMESH_PORT: .*'x'"):
        configure({}, {"LLMESH_PORT": "x"})
    file = tmp_path / "node.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(ValidationFailed, match=r"prot in .*node.toml: there is no such option"):
        configure({}, {}, file)
    file.write_text("port = \n")
    with pytest.raises(ValidationFailed, match="is not TOML"):
        configure({}, {}, file)
    file.write_bytes(b"\xff")
    with pytest.raises(ValidationFailed, match="cannot be read"):
        configure({}, {}, file)
    with pytest.raises(ValidationFailed, match="No such file"):
        configure({}, {}, tmp_path / "none.toml")


def test_a_deployment_has_a_version_if_it_is_given_one() -> None:
    assert configure({"deploy": ["m,version=2.1,name=n"]}, {}).deploy == (
        Deployment(Path("m"), "n", Amount(0), "2.1"),
    )


def test_a_replication_may_have_a_fee() -> None:
    assert configure({"replicate": ["m:1", "n,fee=0.5"]}, {}).replicate == (
        Replication(ModelRef("m", "1")),
        Replication(ModelRef("n"), Amount(500_000)),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replicate", "m,fee"), ("replicate", "m,name=n"), ("replicate", ""), ("threads", 0),
        ("threads", "x"),
        ("store_quota", -1), ("store_quota", "nan"), ("transfer_rate", 0), ("transfer_rate", True),
        ("require_sandbox", "high"), ("provider", "tpu"),
    ],
)  # fmt: skip
def test_bad_settings_of_models_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationFailed, match=name):
        configure({name: value}, {})


def test_sizes_and_rates_are_in_bytes() -> None:
    config = configure({"store_quota": "1.5", "transfer_rate": 2, "threads": "3"}, {})
    assert (config.store_quota, config.transfer_rate, config.threads) == (1_500_000_000, 2_000_000.0, 3)
