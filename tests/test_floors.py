"""Imports only point down, and each library behind a door is named only behind that door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "errors": 0, "crypto": 0, "core": 1, "wire": 2,
    "net": 3, "runtime": 3, "ledger": 3, "journal": 3,
    "mesh": 4, "gateway": 5, "node": 6,
}  # fmt: skip
# Rooms of one floor never import each other; wire is for the doors that speak protobuf.
FORBIDDEN = {
    ("runtime", "wire"),
    ("ledger", "wire"),
    ("mesh", "wire"),
    ("gateway", "wire"),
    ("gateway", "net"),
}
SDK_MAY = {"llmesh.errors", "llmesh.core"}
DOORS = {
    "libp2p": ("llmesh/net/libp2p/",),
    "multiaddr": ("llmesh/net/libp2p/",),
    "zeroconf": ("llmesh/net/libp2p/",),
    "onnxruntime": ("llmesh/runtime/",),
    "tokenizers": ("llmesh/runtime/",),
    "numpy": ("llmesh/runtime/",),
    "jinja2": ("llmesh/runtime/",),
    "rich": ("llmesh/node/",),
    # The scanner reads a graph before it is trusted; a decoder's worker, locked in, rewrites it.
    "onnx": (
        "llmesh/runtime/scan.py",
        "llmesh/runtime/generation/fusion.py",
        "llmesh/runtime/generation/patterns.py",
        "llmesh/runtime/generation/web.py",
    ),
    "google": ("llmesh/wire/", "llmesh/runtime/scan.py"),  # an ONNX file is a protobuf message
    "nacl": ("llmesh/crypto.py",),
    "coincurve": ("llmesh/crypto.py",),
    "Crypto": ("llmesh/crypto.py",),
    "blake3": ("llmesh/crypto.py",),
    "quart": ("llmesh/gateway/",),
    "quart_trio": ("llmesh/gateway/",),
    "hypercorn": ("llmesh/gateway/",),
    "msgspec": ("llmesh/gateway/",),
    "click": ("llmesh/node/",),
    "limits": ("llmesh/gateway/limits.py",),
    "prometheus_client": ("llmesh/gateway/metrics.py",),
}
CORE_MAY = set(sys.stdlib_module_names) | {"llmesh"}
CORE_MAY_NOT = {"asyncio", "random", "secrets", "socket", "threading", "time"}


def modules() -> list[Path]:
    return sorted(p for p in (ROOT / "llmesh").rglob("*.py") if "_pb2" not in p.name) + sorted(
        (ROOT / "sdk").rglob("*.py")
    )


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "llmesh" and len(parts) > 1 and parts[1] in FLOORS else None


def allowed(here: str, there: str) -> bool:
    if here == there:
        return True
    return FLOORS[there] < FLOORS[here] and (here, there) not in FORBIDDEN


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    here = room(relative.removesuffix(".py").replace("/", "."))
    for name in imports(path):
        if here is not None and (there := room(name)) is not None:
            assert allowed(here, there), f"{relative} imports {name}"
        if relative.startswith("sdk/") and name.startswith("llmesh."):
            assert any(name == m or name.startswith(m + ".") for m in SDK_MAY), f"{relative} imports {name}"
        door = DOORS.get(name.split(".")[0])
        if door is not None:
            assert relative.startswith(door), f"{relative} imports {name}, which belongs to {door}"


@pytest.mark.parametrize("path", sorted((ROOT / "llmesh/core").glob("*.py")), ids=lambda p: p.name)
def test_core_is_sans_io(path: Path) -> None:
    found = set(imports(path))
    if "random.Random" in found:  # the type of a source that is handed in
        found -= {"random", "random.Random"}
    for name in found:
        top = name.split(".")[0]
        assert top in CORE_MAY, f"{path.name} imports {name}"
        assert top not in CORE_MAY_NOT, f"{path.name} imports {name}"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        (
            "import llmesh, llmesh_sdk",
            "libp2p onnxruntime numpy trio quart hypercorn google.protobuf nacl msgspec",
        ),
        ("import llmesh.sync; llmesh.sync.MeshClient()", "anyio httpx2 httpcore2 wsproto trio"),
        (
            "import llmesh; llmesh.MeshClient()",
            "libp2p onnxruntime numpy quart hypercorn google.protobuf nacl",
        ),
    ],
)
def test_light_imports_stay_light(statement: str, heavy: str) -> None:
    program = f"{statement}\nimport sys\nprint(*[m for m in {heavy.split()!r} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert loaded.strip() == ""


def test_the_rule_sees_a_wrong_import() -> None:
    assert not allowed("core", "mesh")
    assert not allowed("net", "runtime")
    assert not allowed("gateway", "wire")
    assert allowed("mesh", "net")
