"""The worker: a process that has one model open and answers its node over stdin and stdout.

It locks itself in before it loads a library or looks at the model, and is then at its `service`.
What nobody expects ends the process, and the node starts another.
It ends with its node too, even while a graph runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from llmesh.core.ids import ModelId
from llmesh.core.model import ModelInfo
from llmesh.errors import MeshError, ModelFailed, ValidationFailed
from llmesh.runtime.memory import own_memory
from llmesh.runtime.orders import LOAD, Event, Load, Loaded, Order, Probe, Scan
from llmesh.runtime.pipe import encode_event
from llmesh.runtime.sandbox import SandboxLevel, enter
from llmesh.runtime.service import Orders, serve

__all__ = ["main"]

_PARENT_WATCH_SECONDS = 1.0


def _take_pipes() -> tuple[Orders, BinaryIO]:
    """The two pipes, out of reach of anything that prints or reads: that meets stderr and nothing."""
    orders, events = os.dup(0), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return Orders(orders), events


def _watch_parent(parent: int) -> None:
    """Ends the process soon after its node, whatever the reader is busy with."""
    while os.getppid() == parent:
        time.sleep(_PARENT_WATCH_SECONDS)
    os._exit(0)


def _end_with_thread(fault: threading.ExceptHookArgs) -> None:
    """A worker must not live on with one thread, deaf while it runs."""
    threading.__excepthook__(fault)
    sys.stderr.flush()
    os._exit(1)


def _be_first_to_go() -> None:
    """When memory runs out, Linux should end a worker and not the node."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _lock_in(readable: list[Path], memory: int, require: SandboxLevel) -> SandboxLevel:
    """For good, and before any thread but this one exists.  Raises ValidationFailed below `require`."""
    level = enter(readable, memory)
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    if level < require:
        raise ValidationFailed(
            f"This node opens models only in a sandbox of level {require.name};"
            f" on this machine workers reach {level.name}."
        )
    return level


def _serve_model(order: Load, orders: Orders, events: BinaryIO) -> None:
    readable = [Path(order.folder) / name for name in order.files]
    event: Event
    try:
        level = _lock_in(readable, order.memory, order.settings.require)
        # Only now: these load native libraries, which start threads and read the model's bytes.
        from llmesh.runtime.model import open_model

        model = open_model(order)
    except (ValidationFailed, ModelFailed) as error:
        event = error
    else:
        info = ModelInfo(ModelId(""), model.task, model.inputs, model.outputs, model.labels)
        event = Loaded(info, level, order.settings.provider, model.batch, own_memory())
    events.write(encode_event(LOAD, event))
    events.flush()
    if isinstance(event, MeshError):
        return
    serve(model, order.settings.window, orders, events)


def _scan_graphs(order: Scan, orders: Orders, events: BinaryIO) -> None:
    following: Order | None = order
    while isinstance(following, Scan):
        events.write(encode_event(LOAD, _scan(following, first=following is order)))
        events.flush()
        received = orders.next()
        following = received[1] if received else None


def _scan(order: Scan, *, first: bool) -> Event:
    try:
        if first:
            _lock_in([Path(order.folder)], order.memory, order.require)
        from llmesh.runtime.scan import scan_graph  # after the door is shut

        return scan_graph(Path(order.folder), order.graph)
    except ValidationFailed as error:
        return error
    except MemoryError:
        return ValidationFailed(f"{order.graph} takes more memory to read than it may.")


def _probe(order: Probe, events: BinaryIO) -> None:
    level = _lock_in([], order.memory, SandboxLevel.NONE)
    from llmesh.runtime.graph import abilities

    events.write(encode_event(LOAD, abilities(level)))
    events.flush()


def main() -> None:
    """Do what the first order says, until that is done or the node closes the pipe."""
    orders, events = _take_pipes()
    threading.excepthook = _end_with_thread
    _be_first_to_go()
    match orders.next():
        case (_, Load() as order):
            _serve_model(order, orders, events)
        case (_, Scan() as order):
            _scan_graphs(order, orders, events)
        case (_, Probe() as order):
            _probe(order, events)


if __name__ == "__main__":
    main()
