"""Whether the extra [node] is installed; the bare install has the SDK only."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["missing_extra"]

_NEEDED = (
    "apsw", "click", "hypercorn", "libp2p", "limits", "msgspec", "multiaddr", "nacl", "numpy", "onnx",
    "onnxruntime", "platformdirs", "quart_trio", "rich", "tokenizers", "trio", "zeroconf",
)  # fmt: skip


def missing_extra() -> str | None:
    """One line that says what to install; None where nothing is missing."""
    absent = [module for module in _NEEDED if find_spec(module) is None]
    if not absent:
        return None
    return (
        "A node needs the extra [node]; install it with: pip install 'llmesh-network[node]'"
        f" (not installed: {', '.join(absent)})."
    )
