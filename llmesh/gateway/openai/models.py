"""GET /v1/models: every name that somebody of the mesh serves, once."""

from __future__ import annotations

from collections.abc import Iterable

from quart import Response

from llmesh.core.announcement import Announcement, Offer
from llmesh.core.reference import ModelRef
from llmesh.errors import ModelNotFound, ValidationFailed
from llmesh.gateway.models import Catalogue
from llmesh.gateway.openai.answers import ModelAnswer, ModelsAnswer
from llmesh.gateway.request import Request
from llmesh.gateway.schema import MAX_MODELS, encode, mesh

__all__ = ["expect_task", "get_model", "get_models"]


async def get_models(catalogue: Catalogue, request: Request) -> Response:
    """List the names."""
    answer = ModelsAnswer(_named(await catalogue.search("", None, MAX_MODELS)))
    return Response(encode(answer), content_type="application/json")


async def get_model(catalogue: Catalogue, request: Request) -> Response:
    """One name.  Raises ModelNotFound where nobody serves it."""
    ref = ModelRef.parse(request.variable("model"))
    for model in _named(catalogue.lookup(ref)):
        return Response(encode(model), content_type="application/json")
    raise ModelNotFound(f"Nobody offers {ref}.")


def expect_task(catalogue: Catalogue, ref: ModelRef, task: str) -> None:
    """Refuse, before anything is run or paid, a model that everybody offers for another task.

    Raises ValidationFailed.
    """
    tasks = {offer.task for offer, _ in catalogue.lookup(ref)}
    if tasks and task not in tasks:
        raise ValidationFailed(f"{ref} does {', '.join(sorted(tasks))}, not {task}.")


def _named(found: Iterable[tuple[Offer, Announcement]]) -> list[ModelAnswer]:
    """The cheapest offer stands for its name."""
    cheapest: dict[str, tuple[Offer, Announcement]] = {}
    for offer, announcement in found:
        held = cheapest.get(offer.card.name)
        if held is None or offer.fee < held[0].fee:
            cheapest[offer.card.name] = offer, announcement
    return [
        ModelAnswer(name, announcement.peer_id, offer.task, mesh(offer.fee))
        for name, (offer, announcement) in sorted(cheapest.items())
    ]
