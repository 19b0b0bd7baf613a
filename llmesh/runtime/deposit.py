"""Deposit: whatever an owner brings as a model, copied into the store, from where it is served.

What is served is the store's own copy: later edits of the original change nothing, and before every
worker starts the files' digests are compared.
"""

from __future__ import annotations

import json
from pathlib import Path

import trio

from llmesh.core.encoding import Json
from llmesh.core.model import Card
from llmesh.errors import ValidationFailed
from llmesh.runtime.bundle import Bundle
from llmesh.runtime.store import Store

__all__ = ["card_of", "deposit"]

_MANIFEST = "llmesh.json"
_MAX_MANIFEST = 64 << 10


async def deposit(store: Store, source: Path | bytes, graph: str | None = None) -> Bundle:
    """Take a folder, an `.onnx` file or a `.zip`/`.tar` of a folder, or the bytes of one of these files.

    Of several graphs, `graph` names the one to run.  Raises as `Store.add` does.
    """
    if isinstance(source, Path):
        return await store.add(source, graph)
    async with store.incoming() as incoming:
        await incoming.write(source)
        return await store.add(await incoming.finish(), graph)


async def card_of(bundle: Bundle, name: str) -> Card:
    """The card that the bundle's optional llmesh.json suggests; `name` where it has no name.

    Raises ValidationFailed where it is not a JSON object with texts.
    """
    if all(file.path != _MANIFEST for file in bundle.files):
        return Card(name)
    said = await trio.to_thread.run_sync(_read_manifest, bundle.folder / _MANIFEST)
    texts = {field: said.get(field, "") for field in ("name", "version", "description", "licence")}
    for field, text in texts.items():
        if not isinstance(text, str):
            raise ValidationFailed(f"{_MANIFEST}: {field} must be a text, not {type(text).__name__}.")
    plain = {field: text for field, text in texts.items() if text and isinstance(text, str)}
    return Card(**{"name": name, **plain})


def _read_manifest(path: Path) -> dict[str, Json]:
    with path.open("rb") as file:
        data = file.read(_MAX_MANIFEST + 1)
    try:
        content: Json = json.loads(data) if len(data) <= _MAX_MANIFEST else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValidationFailed(f"{_MANIFEST} is not a JSON object of at most {_MAX_MANIFEST >> 10} KiB.")
    return content
