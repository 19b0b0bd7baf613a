"""The program `llmesh`, which is `python -m llmesh.node` too."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from llmesh.node.extra import missing_extra


def main() -> None:
    """Run the command line; without the extra [node] say what to install."""
    name = "llmesh" if Path(sys.argv[0]).name == "llmesh" else "python -m llmesh.node"
    fault = missing_extra()
    if fault is not None:
        sys.stderr.write(f"llmesh: {fault}\n")
        sys.exit(2)
    # Loading takes a second; nothing is open yet that would have to be closed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _quit)
    from llmesh.node.cli import command

    command(name=name)


def _quit(number: int, frame: FrameType | None) -> None:
    os._exit(0 if number == signal.SIGTERM else 128 + number)


if __name__ == "__main__":
    main()
