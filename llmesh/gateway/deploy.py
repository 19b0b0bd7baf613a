"""This node's own models over REST: bring one, look at one, take one away."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

from quart import Response
from werkzeug.exceptions import UnsupportedMediaType

from llmesh.core.amount import Amount
from llmesh.core.announcement import Announcement, Offer
from llmesh.core.ids import ModelId, model_id
from llmesh.core.reference import model_name, model_version
from llmesh.errors import (
    Conflict,
    InsufficientStake,
    ModelFailed,
    ModelNotFound,
    TooLarge,
    Unauthorized,
    ValidationFailed,
)
from llmesh.gateway.callers import Counted, Scope
from llmesh.gateway.deploy_schema import (
    METADATA_LIMIT,
    UPLOADS,
    DeployBody,
    DeployedBody,
    MetadataBody,
    ModelDetailBody,
    RemovedBody,
    UploadQuery,
    decode_deploy,
    decode_metadata,
)
from llmesh.gateway.idempotency import IDEMPOTENCY_KEY, Idempotency
from llmesh.gateway.models import render_offer
from llmesh.gateway.multipart import Piece, pieces_of_parts
from llmesh.gateway.openapi import Route
from llmesh.gateway.request import Request
from llmesh.gateway.schema import decode, decode_query, encode
from llmesh.runtime.incoming import Incoming

__all__ = ["Shelf", "deploy_routes"]


_Said: TypeAlias = MetadataBody | UploadQuery


class Shelf(Protocol):
    """The models of a node."""

    def incoming(self) -> AbstractAsyncContextManager[Incoming]:
        """Where a model is written piece by piece; it is gone at the end of the block."""

    async def deploy(self, source: Path, name: str, fee: Amount, version: str, description: str) -> ModelId:
        """Take a copy of a model, serve and announce it.  Raises MeshError; then nothing has changed."""

    async def remove(self, model: ModelId) -> None:
        """Serve it no longer and give its space back.  Raises ModelNotFound for one of others."""

    def serves(self, model: ModelId) -> bool:
        """Whether this node has it on offer."""

    def offers_of(self, model: ModelId) -> Sequence[tuple[Offer, Announcement]]:
        """Every offer of it, by whomever."""


def deploy_routes(shelf: Shelf) -> tuple[Route, ...]:
    """The routes of one shelf."""
    id = {"id": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "A model id."}}
    path = "/api/v1/models/{id}"
    return (
        Route(
            "POST", "/api/v1/models", Scope.DEPLOY, partial(post_model, _Desk(shelf)),
            "Serve a model: upload it, or name a path on the node's own disk.",
            answers=(DeployedBody,), status=201, body=DeployBody, uploads=UPLOADS, query=UploadQuery,
            headers=IDEMPOTENCY_KEY, errors=(InsufficientStake, Conflict, ModelFailed),
        ),
        Route("GET", path, Scope.READ, partial(get_model, shelf), "Who offers a model, and on what terms.",
              answers=(ModelDetailBody,), variables=id, errors=(ModelNotFound,)),
        Route("DELETE", path, Scope.DEPLOY, partial(delete_model, shelf),
              "Serve one of this node's models no longer.", answers=(RemovedBody,), variables=id,
              errors=(ModelNotFound,)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Desk:
    """Where models are brought, each under its Idempotency-Key once."""

    shelf: Shelf
    idempotency: Idempotency = field(default_factory=Idempotency)

    async def deploy(self, request: Request, source: Path, said: _Said, digest: bytes) -> Response:
        """Serve what lies at a path; `digest` is that of the bytes that were sent."""
        _check(said)

        async def run() -> Response:
            model = await self.shelf.deploy(source, said.name, said.price, said.version, said.description)
            return _json(DeployedBody(model, said.name, said.version), 201)

        fingerprint = hashlib.blake2b(encode(said) + digest).digest()
        return await self.idempotency.once(request, fingerprint, run)


async def post_model(desk: _Desk, request: Request) -> Response:
    """Serve a model that comes with the request or lies on this machine."""
    said = decode_query(request.query_string, UploadQuery)
    match request.mimetype:
        case "application/json":
            return await _deploy_path(desk, request)
        case "application/octet-stream":
            return await _deploy_stream(desk, request, said)
        case "multipart/form-data":
            return await _deploy_form(desk, request)
    raise UnsupportedMediaType(
        "A model comes as multipart/form-data or application/octet-stream, a path as application/json."
    )


async def get_model(shelf: Shelf, request: Request) -> Response:
    """Tell of one model."""
    model = model_id(request.variable("id"))
    offers = [render_offer(offer, said) for offer, said in shelf.offers_of(model)]
    own = shelf.serves(model)
    if not offers and not own:
        raise ModelNotFound(f"No valid offer of model {model} is known here.")
    return _json(ModelDetailBody(model, own, offers))


async def delete_model(shelf: Shelf, request: Request) -> Response:
    """Take a model of this node away."""
    model = model_id(request.variable("id"))
    await shelf.remove(model)
    return _json(RemovedBody(model))


async def _deploy_path(desk: _Desk, request: Request) -> Response:
    body = decode(await request.json_bytes(), decode_deploy)
    if not request.is_local:
        raise Unauthorized("Only programs on the node's own machine may name a path; upload the model.")
    path = _path(body.path)
    _check(body)
    request.caller.count(Counted.DEPLOY)
    return await desk.deploy(request, path, body, b"")


async def _deploy_stream(desk: _Desk, request: Request, said: UploadQuery) -> Response:
    _check(said)
    request.caller.count(Counted.DEPLOY)  # before anything of the body is taken in
    async with desk.shelf.incoming() as incoming, aclosing(request.pieces()) as pieces:
        upload = _Upload(incoming)
        async for piece in pieces:
            await upload.write(piece)
        return await desk.deploy(request, await incoming.finish(), said, upload.digest())


async def _deploy_form(desk: _Desk, request: Request) -> Response:
    boundary = request.mimetype_params.get("boundary", "")
    async with (
        desk.shelf.incoming() as incoming,
        aclosing(request.pieces()) as body,
        aclosing(pieces_of_parts(body, boundary)) as pieces,
    ):
        upload = _Upload(incoming)
        form = _Form(upload, partial(request.caller.count, Counted.DEPLOY))
        async for piece in pieces:
            await form.take(piece)
        return await desk.deploy(request, await incoming.finish(), form.metadata(), upload.digest())


class _Upload:
    """A file on its way to the disk, and the digest of what has passed."""

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._hash = hashlib.blake2b()

    async def write(self, piece: bytes) -> None:
        self._hash.update(piece)
        await self._incoming.write(piece)

    def digest(self) -> bytes:
        return self._hash.digest()


class _Form:
    """The two parts of an upload as they come: `metadata` is kept here, `file` goes to disk.

    `count` is called before anything of the file is taken in, and raises RateLimited.
    """

    def __init__(self, upload: _Upload, count: Callable[[], None]) -> None:
        self._upload = upload
        self._count = count
        self._seen: set[str] = set()
        self._metadata = b""

    async def take(self, piece: Piece) -> None:
        if piece.first:
            self._begin(piece.name)
        if piece.name == "file":
            await self._upload.write(piece.data)
            return
        self._metadata += piece.data
        if len(self._metadata) > METADATA_LIMIT:
            raise TooLarge(f"The metadata takes more than {METADATA_LIMIT} bytes.")

    def metadata(self) -> MetadataBody:
        """What is said, once both parts have come."""
        if missing := {"metadata", "file"} - self._seen:
            raise ValidationFailed(f"The form lacks the part {' and '.join(sorted(missing))}.")
        return decode(self._metadata, decode_metadata)

    def _begin(self, name: str) -> None:
        if name not in ("metadata", "file") or name in self._seen:
            raise ValidationFailed(
                f"The form has the part {name[:80]!r}; it takes one `metadata` (JSON) and one `file`."
            )
        if name == "file":
            if "metadata" in self._seen:
                _check(decode(self._metadata, decode_metadata))
            self._count()
        self._seen.add(name)


def _check(said: _Said) -> None:
    """Refuse bad words before a large file has come in vain."""
    model_name(said.name)
    model_version(said.version)
    _ = said.price


def _path(text: str) -> Path:
    if "\0" in text or not Path(text).is_absolute():
        raise ValidationFailed(f"{text[:200]!r} is not an absolute path.")
    return Path(text)


def _json(body: DeployedBody | RemovedBody | ModelDetailBody, status: int = 200) -> Response:
    return Response(encode(body), status, content_type="application/json")
