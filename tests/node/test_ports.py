"""Where a node listens: as asked or refused, else the remembered or next free port."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from llmesh.node import ports
from llmesh.node.config import NodeConfig
from llmesh.node.faults import StartRefused
from llmesh.node.home import Home, open_home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with open_home(tmp_path) as opened:
        yield opened


def config(**options: object) -> NodeConfig:
    return NodeConfig(**options)  # type: ignore[arg-type]


def hold(port: int = 0) -> socket.socket:
    """A neighbour that lets others share its port, as libp2p does."""
    neighbour = socket.socket()
    neighbour.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    neighbour.bind(("0.0.0.0", port))
    neighbour.listen(1)
    return neighbour


def port_of(addresses: tuple[str, ...]) -> int:
    [address] = addresses
    assert address.startswith("/ip4/0.0.0.0/tcp/")
    return int(address.rpartition("/")[2])


def test_the_next_free_port_is_taken_and_remembered(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold() as neighbour:
        taken = neighbour.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST_PORT", taken)
        monkeypatch.setattr(ports, "LAST_PORT", 65535)
        found = port_of(ports.listen_addresses(config(), home))
        assert found > taken
    assert home.remembered_port() == found
    assert port_of(ports.listen_addresses(config(), home)) == found
    with hold(found):
        assert port_of(ports.listen_addresses(config(), home)) == taken
    assert home.remembered_port() == taken


def test_no_free_port_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold() as neighbour:
        taken = neighbour.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST_PORT", taken)
        monkeypatch.setattr(ports, "LAST_PORT", taken)
        with pytest.raises(StartRefused, match="choose one with --listen"):
            ports.listen_addresses(config(), home)
    assert home.remembered_port() is None


def test_what_was_asked_for_is_taken_as_it_is_or_refused(home: Home) -> None:
    free = ("/ip4/127.0.0.1/tcp/0",)
    assert ports.listen_addresses(config(listen=free), home) == free
    with ExitStack() as stack:
        taken = stack.enter_context(hold()).getsockname()[1]
        for address in (f"/ip4/127.0.0.1/tcp/{taken}", "/ip4/192.0.2.77/tcp/4001"):
            with pytest.raises(StartRefused, match=address):
                ports.listen_addresses(config(listen=(*free, address)), home)
    assert home.remembered_port() is None


def test_the_gateways_port_is_had_or_refused() -> None:
    with ports.gateway_socket(config(port=0)) as listener:
        taken = listener.getsockname()[1]
        with pytest.raises(StartRefused, match=rf"127\.0\.0\.1 port {taken} .*--port"):
            ports.gateway_socket(config(port=taken))
    with pytest.raises(StartRefused, match="no-such-host"):
        ports.gateway_socket(config(host="no-such-host.invalid", port=0))
