"""The way in to /ws: who may open a socket, and how many there may be."""

from __future__ import annotations

from functools import partial

from quart import Websocket, websocket
from quart_trio import QuartTrio

from llmesh.errors import NodeBusy, Unauthorized
from llmesh.gateway.gate import Gate, presented_key
from llmesh.gateway.inference import Router
from llmesh.gateway.websocket.socket import BUSY, Bounds, Socket
from llmesh.mesh.events import Events

__all__ = ["PATH", "Sockets", "add_websocket"]

PATH = "/ws"


class Sockets:
    """All sockets of one gateway."""

    def __init__(self, router: Router, events: Events, gate: Gate, bounds: Bounds) -> None:
        self._router = router
        self._events = events
        self._gate = gate
        self._bounds = bounds
        self._open: set[Socket] = set()

    async def serve(self, websocket: Websocket) -> None:
        """Serve one client for as long as it stays.

        Raises Unauthorized, RateLimited and NodeBusy before the handshake is answered.
        """
        self._gate.check(websocket)
        admit = partial(self._gate.caller, self._gate.address(websocket))
        with self._events.subscribed(()) as subscription:
            socket = Socket(websocket, self._router, subscription, admit, self._bounds)
            _let_in(socket, presented_key(websocket.headers.get("Authorization", "")))
            self._make_room()
            self._open.add(socket)
            try:
                await websocket.accept()
                await socket.run()
            finally:
                self._open.discard(socket)

    def _make_room(self) -> None:
        """The socket that nobody has used for longest goes for a new one.  Raises NodeBusy."""
        if len(self._open) < self._bounds.sockets:
            return
        unused = [socket for socket in self._open if socket.unused]
        if not unused:
            raise NodeBusy(f"{len(self._open)} sockets are open and in use.", retry_after=5.0)
        idlest = min(unused, key=lambda socket: socket.heard_at)
        self._open.discard(idlest)
        idlest.end(BUSY)


def add_websocket(app: QuartTrio, sockets: Sockets) -> None:
    """Serve the sockets at /ws."""

    async def view() -> None:
        await sockets.serve(websocket._get_current_object())  # type: ignore[attr-defined]

    app.add_websocket(PATH, view_func=view)


def _let_in(socket: Socket, key: str | None) -> None:
    """Without a key in the handshake it may still come in the first frame."""
    try:
        socket.enter(key)
    except Unauthorized:
        if key is not None:
            raise
