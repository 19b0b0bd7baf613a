"""Write llmesh/wire/*_pb2.py and .pyi from the .proto files beside this script.

Usage: python proto/generate.py [OUTPUT_ROOT]   (default: the repository; needs the `test` extra)
"""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent


def generate(root: Path) -> None:
    """Compile every protocol into `root`/llmesh/wire; raises SystemExit where the compiler fails."""
    (root / "llmesh" / "wire").mkdir(parents=True, exist_ok=True)
    sources = sorted(str(path.relative_to(HERE)) for path in HERE.glob("llmesh/wire/*.proto"))
    status = protoc.main(["protoc", f"-I{HERE}", f"--python_out={root}", f"--pyi_out={root}", *sources])
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent)
