"""Hypercorn around the gateway's application: the socket, the limits, the way to stop."""

from __future__ import annotations

import logging
import socket
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_hypercorn
from quart_trio import QuartTrio
from trio import TaskStatus  # type: ignore[attr-defined]  # libp2p brings stubs older than trio

__all__ = ["bind", "serve"]

GRACE = 2.0
"""Seconds that running requests get to finish once `stop` is set."""
KEEP_ALIVE = 30.0
"""Seconds a connection may take to send the next request's head; clients should give up sooner."""
_BACKLOG = 256

_log = logging.getLogger(__name__)
_log.setLevel(logging.WARNING)  # the node itself tells where it listens


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one.  Raises OSError where that cannot be had."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def serve(
    app: QuartTrio,
    listener: socket.socket,
    stop: trio.Event,
    *,
    task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set; then let running requests finish for GRACE seconds.

    Takes the socket over and closes it.  Reports the URL once requests are accepted.  Cancelling
    cuts running requests off at once.
    """
    url = _url(listener)
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = _log
    config.include_server_header = False
    config.graceful_timeout = GRACE
    config.keep_alive_timeout = KEEP_ALIVE
    config.keep_alive_max_requests = 1_000_000
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_hypercorn, app, config, shutdown_trigger=stop.wait))
        task_status.started(url)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
