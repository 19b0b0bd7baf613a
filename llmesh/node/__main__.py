"""`python -m llmesh.node`."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from llmesh.node.extra import missing_extra


def main() -> None:
    """Run the command line; without the extra [node] say what to install."""
    fault = missing_extra()
    if fault is not None:
        sys.stderr.write(f"llmesh: {fault}\n")
        sys.exit(2)
    # Loading takes a second; nothing is open yet that would have to be closed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _quit)
    from llmesh.node.cli import main as command

    command(prog_name="python -m llmesh.node")


def _quit(number: int, frame: FrameType | None) -> None:
    os._exit(0)


if __name__ == "__main__":
    main()
