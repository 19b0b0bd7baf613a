"""No byte and no connection goes to what is not public, however it is spelt."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import httpcore2
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from llmesh.errors import NetworkError, ValidationFailed
from llmesh.net.callout import MAX_ANSWER, Allowed, Callout, is_public, read_allowed, resolve_name

HIDDEN = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "fc00::1",
    "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "2002:a00:1::", "2001:db8::1", "2001:0:7f00:1::", "64:ff9b:1::a00:1",
    "::ffff:0:7f00:1", "192.0.0.8", "192.88.99.1", "3fff::1", "5f00::1",
]  # fmt: skip
SPELLINGS = [
    "http://2130706433/", "https://2130706433/", "https://0x7f000001/", "https://0177.0.0.1/",
    "https://127.1/", "https://127.0.0.1:443/", "https://[::1]/", "https://[::ffff:7f00:1]/",
    "https://localhost/", "https://LOCALHOST./", "https://0/", "https://[::]:8443/",
]  # fmt: skip
TLS = ssl.create_default_context()
PUBLIC = ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"]


@pytest.mark.parametrize("text", HIDDEN)
def test_these_are_not_public(text: str) -> None:
    assert not is_public(ip_address(text.partition("%")[0]))


@pytest.mark.parametrize("text", PUBLIC)
def test_these_are_public(text: str) -> None:
    assert is_public(ip_address(text))


def naming(*addresses: str) -> Any:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        if not addresses:
            raise OSError(host)
        return addresses

    return resolve


@pytest.fixture
def no_connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    async def connect(self: Any, host: str, *args: Any, **kwargs: Any) -> Any:
        made.append(host)
        raise httpcore2.ConnectError

    monkeypatch.setattr(httpcore2.TrioBackend, "connect_tcp", connect)
    return made


@pytest.mark.parametrize("address", HIDDEN)
async def test_a_name_that_points_inside_is_never_connected_to(
    no_connections: list[str], address: str
) -> None:
    for addresses in ((address,), ("1.1.1.1", address)):
        callout = Callout(Allowed(), naming(*addresses))
        with pytest.raises(ValidationFailed, match="not one of the public internet"):
            await callout.check("https://example.com/hook")
        with pytest.raises(ValidationFailed, match="not one of the public internet"):
            await callout.post("https://example.com/hook", {}, b"{}")
    assert not no_connections


@pytest.mark.parametrize("url", SPELLINGS)
async def test_no_spelling_of_this_machine_is_connected_to(no_connections: list[str], url: str) -> None:
    with pytest.raises((ValidationFailed, NetworkError)):
        await Callout(Allowed(), resolve_name).post(url, {}, b"{}")
    assert not no_connections


async def test_a_name_that_changes_is_looked_at_again(no_connections: list[str]) -> None:
    answers = iter([("1.1.1.1",), ("127.0.0.1",)])

    async def rebinding(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return next(answers)

    callout = Callout(Allowed(), rebinding)
    await callout.check("https://example.com/")
    with pytest.raises(ValidationFailed):
        await callout.post("https://example.com/", {}, b"{}")
    assert not no_connections


async def test_the_very_address_that_was_looked_at_is_connected_to(no_connections: list[str]) -> None:
    callout = Callout(Allowed(), naming("1.1.1.1", "8.8.8.8"))
    with pytest.raises(NetworkError, match="could not be reached"):
        await callout.post("https://example.com/", {}, b"{}")
    assert no_connections == ["1.1.1.1", "8.8.8.8"]


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "https://", "https:///x", "example.com", "https://u:p@example.com/",
        "https://example.com:99999/", "https://example.com:0/", "http://example.com/", "https://[::1/",
        "https://example.com/\u043f", "https://\u043f\u0440.example/", "https://example.com/?\u00e9",
        "https://exa mple.com/", "https://example.com/a b", "https://example.com/\r\nX: y", "https://a/\x7f",
    ],
)  # fmt: skip
async def test_what_is_no_url_of_a_webhook_is_refused(no_connections: list[str], url: str) -> None:
    for call in (Callout(Allowed(), naming("1.1.1.1")).check(url),
                 Callout(Allowed(), naming("1.1.1.1")).post(url, {}, b"")):  # fmt: skip
        with pytest.raises(ValidationFailed):
            await call
    assert not no_connections


async def test_a_name_without_address_may_get_one_later() -> None:
    callout = Callout(Allowed(), naming())
    await callout.check("https://example.com/")
    with pytest.raises(NetworkError, match="does not resolve"):
        await callout.post("https://example.com/", {}, b"{}")


async def test_what_resolves_only_later_may_not_lead_inside_then(no_connections: list[str]) -> None:
    answers: list[list[str]] = [[], ["127.0.0.1"]]

    async def later(host: str, port: int) -> list[str]:
        return answers.pop(0)

    callout = Callout(Allowed(), later)
    await callout.check("https://example.com/")
    with pytest.raises(ValidationFailed, match="--webhook-allow"):
        await callout.post("https://example.com/", {}, b"{}")
    assert not no_connections


@pytest.mark.parametrize("host", ["a" * 70 + ".com", "a..b", ".com"])
async def test_a_name_that_no_resolver_takes_is_refused(host: str) -> None:
    callout = Callout(Allowed())
    with pytest.raises(ValidationFailed, match="no name of the DNS"):
        await callout.check(f"https://{host}/")
    with pytest.raises(ValidationFailed, match="no name of the DNS"):
        await callout.post(f"https://{host}/", {}, b"{}")


@given(st.text(st.characters(max_codepoint=255), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_refused_or_fails_in_our_words(text: str) -> None:
    """The node's courier posts to whatever was registered: no other error may come out."""

    async def post() -> None:
        callout = Callout(Allowed(), naming("127.0.0.1"), TLS)
        for url in (f"https://{text}", f"https://example.com/{text}"):
            with suppress(ValidationFailed, NetworkError):
                await callout.post(url, {}, b"{}")

    trio.run(post)


class Server:
    """An HTTP server that answers everything with `answer`."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        self.heard: list[bytes] = []
        self.port = 0

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            self.heard.append(await stream.receive_some())
            with trio.move_on_after(5):
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(self.answer)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, server.handle, 0)
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("allowed", [["localhost"], ["127.0.0.0/8", "::1"]])
async def test_what_the_operator_allows_is_called(server: Server, allowed: list[str]) -> None:
    callout = Callout(read_allowed(allowed))
    host = "localhost" if allowed == ["localhost"] else "127.0.0.1"
    await callout.check(f"http://{host}:{server.port}/x")
    status = await callout.post(f"http://{host}:{server.port}/x", {"webhook-id": "1"}, b'{"a":1}')
    assert status == 204
    assert server.heard[0].startswith(b"POST /x HTTP/1.1\r\n")
    assert b"webhook-id: 1" in server.heard[0]


async def test_a_redirect_is_not_followed(server: Server) -> None:
    server.answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    callout = Callout(read_allowed(["127.0.0.1"]))
    assert await callout.post(f"http://127.0.0.1:{server.port}/", {}, b"{}") == 302
    assert len(server.heard) == 1


async def test_an_endless_answer_is_cut(server: Server) -> None:
    server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (4 * MAX_ANSWER)
    callout = Callout(read_allowed(["127.0.0.1"]))
    assert await callout.post(f"http://127.0.0.1:{server.port}/", {}, b"{}") == 200


async def test_a_certificate_of_somebody_else_is_refused(server: Server) -> None:
    callout = Callout(read_allowed(["127.0.0.1"]), context=ssl.create_default_context())
    with pytest.raises(NetworkError, match="could not be reached"):
        await callout.post(f"https://127.0.0.1:{server.port}/", {}, b"{}")
