"""A request of the gateway: Quart's, with an id of our own, and how its JSON body is read."""

from __future__ import annotations

import secrets
from functools import cached_property

from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import UnsupportedMediaType

from llmesh.core.ids import RequestId

__all__ = ["Request", "new_request_id"]


def new_request_id() -> RequestId:
    """A name that no other request has."""
    return RequestId(secrets.token_hex(16))


class Request(TrioRequest):
    """One HTTP request."""

    @cached_property
    def id(self) -> RequestId:
        """Names this request in answers, errors, logs and on the mesh."""
        return new_request_id()

    async def json_bytes(self) -> bytes:
        """The body, unparsed.

        Raises UnsupportedMediaType unless it is said to be JSON, RequestEntityTooLarge as soon as it
        is known to be over the limit, RequestTimeout (all werkzeug's) if it is slow to come.
        """
        if self.mimetype != "application/json":
            raise UnsupportedMediaType("The body must be sent with Content-Type: application/json.")
        return await self.get_data(cache=True, as_text=False, parse_form_data=False)
