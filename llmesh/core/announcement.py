"""Announcement: a provider's signed record of what it offers, and where it is to be reached.

The signature covers the canonical JSON that travels, so a holder passes on fields it does not
know.  A record is replaced only by one of the same peer with a higher sequence number; it dies at
`expires_at`.  A record without offers withdraws all of its peer's earlier ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from llmesh import crypto
from llmesh.core.amount import Amount
from llmesh.core.binding import BINDING_BYTES, SignedBinding, read_binding
from llmesh.core.encoding import Json, canonical_json, parse_canonical_json
from llmesh.core.fields import hexed
from llmesh.core.ids import ModelId, PeerId, model_id, peer_id
from llmesh.core.model import Card
from llmesh.core.reference import model_name, model_version
from llmesh.core.terms import TERMS_BYTES, SignedTerms, read_terms
from llmesh.errors import ValidationFailed

__all__ = [
    "DOMAIN", "MAX_ADDRESSES", "MAX_LIFETIME", "MAX_OFFERS", "MAX_PAYLOAD", "Announcement", "Offer",
    "SignedAnnouncement", "author_of", "read_announcement", "read_packed", "sign_announcement",
]  # fmt: skip

DOMAIN = b"llmesh-announcement"
"""What an announcement's signature is scoped to."""
MAX_PAYLOAD = 16 * 1024
"""Bytes of canonical JSON."""
MAX_OFFERS = 64
MAX_ADDRESSES = 16
MAX_LIFETIME = 24 * 3600
"""Seconds from issue to expiry."""
CLOCK_SKEW = 300
"""Seconds by which another node's clock may run ahead of ours."""
MAX_DESCRIPTION = 512
MAX_LICENCE = 64
MAX_VARIANT = 256
SIGNATURE_BYTES = 64
_MAX_SEQUENCE = (1 << 63) - 1
# The shape of a multiaddr only: an address of a kind that we cannot dial is carried, not refused.
_ADDRESS = re.compile(r"(?=.{1,256}\Z)(?:/[A-Za-z0-9._:%-]+){2,}\Z")
_TASK = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_MICRO = re.compile(r"(?:0|[1-9][0-9]{0,38})\Z")
# Texts are shown to people, some of them in a terminal.
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Offer:
    """One variant of one model at one price by one provider; `fee` is per inference.

    `variant` is the ONNX file that runs, `execution` its class of arithmetic (see `model.EXECUTIONS`);
    both are empty where the provider says nothing of them.  What costs something has `terms`, which
    are signed anew each week without making it another offer; to check them is for who means to pay.
    """

    model_id: ModelId
    card: Card
    task: str
    fee: Amount
    variant: str = ""
    execution: str = ""
    terms: SignedTerms | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Announcement:
    """`sequence` only grows, over restarts too; times are whole seconds since 1970 (UTC).

    `account` says which account the provider signs receipts by, and on which ledger; it is of this peer,
    and its signatures are for `core.credentials` to check.
    """

    peer_id: PeerId
    sequence: int
    addresses: tuple[str, ...]
    offers: tuple[Offer, ...]
    stake: Amount
    issued_at: int
    expires_at: int
    account: SignedBinding | None = None

    def renews(self, before: Announcement) -> bool:
        """Whether this says the same as the one before, only later."""
        ours, theirs = (self.addresses, self.offers), (before.addresses, before.offers)
        return (*ours, self.stake, self.account) == (*theirs, before.stake, before.account)


@dataclass(frozen=True, slots=True)
class SignedAnnouncement:
    """An announcement as it travels: canonical JSON and 64 bytes of Ed25519 over it."""

    payload: bytes
    signature: bytes
    announcement: Announcement

    @property
    def packed(self) -> bytes:
        """Signature and payload in one, as the DHT keeps it."""
        return self.signature + self.payload


def sign_announcement(
    announcement: Announcement, sign: Callable[[bytes], bytes], *, now: float
) -> SignedAnnouncement:
    """Sign what `read_announcement` will accept; `sign` is Ed25519 under `DOMAIN` by the peer's own key.

    Raises ValidationFailed for an announcement that others would refuse.
    """
    payload = canonical_json(_to_json(announcement))
    return read_announcement(payload, sign(payload), now=now)


def read_announcement(payload: bytes, signature: bytes, *, now: float) -> SignedAnnouncement:
    """Check a record from anywhere: size, canonical form, signature of the peer it names, every field.

    Raises ValidationFailed for whatever is forged, malformed, expired at `now` (seconds since 1970)
    or issued more than five minutes after it.
    """
    fields = _signed_fields(payload, signature)
    announcement = _from_json(fields)
    _check_times(announcement, now)
    return SignedAnnouncement(payload, signature, announcement)


def read_packed(packed: bytes, *, now: float) -> SignedAnnouncement:
    """`read_announcement` for the DHT's form of a record.  Raises ValidationFailed."""
    return read_announcement(packed[SIGNATURE_BYTES:], packed[:SIGNATURE_BYTES], now=now)


def author_of(payload: bytes) -> tuple[PeerId, int]:
    """Whose record this claims to be, and its sequence number; nothing is verified.

    For deciding cheaply that a record is not wanted.  Raises ValidationFailed.
    """
    fields = _object(_bounded(payload), "An announcement")
    return peer_id(_text(fields, "peer_id", 64)), _whole(fields, "sequence", 1, _MAX_SEQUENCE)


def _bounded(payload: bytes) -> Json:
    if len(payload) > MAX_PAYLOAD:
        raise ValidationFailed(f"An announcement takes at most {MAX_PAYLOAD} bytes, not {len(payload)}.")
    return parse_canonical_json(payload)


def _signed_fields(payload: bytes, signature: bytes) -> dict[str, Json]:
    """The fields, once the key inside the peer id they name is known to have signed them."""
    fields = _object(_bounded(payload), "An announcement")
    author = peer_id(_text(fields, "peer_id", 64))
    try:
        genuine = crypto.verify(crypto.public_key_of(author), DOMAIN, payload, signature)
    except ValueError:
        raise ValidationFailed(f"{author} does not name an Ed25519 key.") from None
    if not genuine:
        raise ValidationFailed(f"An announcement in the name of {author} was not signed by it.")
    return fields


def _check_times(announcement: Announcement, now: float) -> None:
    lifetime = announcement.expires_at - announcement.issued_at
    if not 0 < lifetime <= MAX_LIFETIME:
        raise ValidationFailed(f"An announcement lives 1 to {MAX_LIFETIME} seconds, not {lifetime}.")
    if announcement.expires_at <= now:
        raise ValidationFailed(f"The announcement of {announcement.peer_id} has expired.")
    if announcement.issued_at > now + CLOCK_SKEW:
        raise ValidationFailed(f"The announcement of {announcement.peer_id} is from the future.")


def _to_json(announcement: Announcement) -> Json:
    account = announcement.account
    return {
        **({} if account is None else {"account": account.packed.hex()}),
        "addresses": list(announcement.addresses),
        "expires_at": announcement.expires_at,
        "issued_at": announcement.issued_at,
        "offers": [_offer_to_json(offer) for offer in announcement.offers],
        "peer_id": announcement.peer_id,
        "sequence": announcement.sequence,
        "stake": str(announcement.stake.micro),
    }


def _offer_to_json(offer: Offer) -> Json:
    return {
        "description": offer.card.description,
        "execution": offer.execution,
        "fee": str(offer.fee.micro),
        "licence": offer.card.licence,
        "model_id": offer.model_id,
        "name": offer.card.name,
        "task": offer.task,
        **({} if offer.terms is None else {"terms": offer.terms.packed.hex()}),
        "variant": offer.variant,
        "version": offer.card.version,
    }


def _from_json(fields: dict[str, Json]) -> Announcement:
    offers = tuple(_offer_from_json(item) for item in _list(fields, "offers", MAX_OFFERS))
    if len({(offer.model_id, offer.card.name, offer.card.version) for offer in offers}) < len(offers):
        raise ValidationFailed("An announcement offers the same model twice.")
    author = peer_id(_text(fields, "peer_id", 64))
    account = _account(fields)
    if account is not None and account.binding.node != author:
        raise ValidationFailed(f"The announcement of {author} names the account of another.")
    return Announcement(
        peer_id=author,
        sequence=_whole(fields, "sequence", 1, _MAX_SEQUENCE),
        addresses=tuple(_address(item) for item in _list(fields, "addresses", MAX_ADDRESSES)),
        offers=offers,
        stake=_amount(fields, "stake"),
        issued_at=_whole(fields, "issued_at", 0, 1 << 40),
        expires_at=_whole(fields, "expires_at", 0, 1 << 41),
        account=account,
    )


def _offer_from_json(item: Json) -> Offer:
    fields = _object(item, "An offer")
    silent: dict[str, Json] = {"variant": "", "execution": ""}
    said = silent | fields
    return Offer(
        model_id=model_id(_text(fields, "model_id", 64)),
        card=Card(
            name=model_name(_text(fields, "name", 128)),
            version=model_version(_text(fields, "version", 64)),
            description=_text(fields, "description", MAX_DESCRIPTION),
            licence=_text(fields, "licence", MAX_LICENCE),
        ),
        task=_matching(_text(fields, "task", 64), _TASK, "a task"),
        fee=_amount(fields, "fee"),
        variant=_text(said, "variant", MAX_VARIANT),
        execution=_text(said, "execution", 64),
        terms=read_terms(_packed(fields, "terms", TERMS_BYTES)) if "terms" in fields else None,
    )


def _account(fields: dict[str, Json]) -> SignedBinding | None:
    return read_binding(_packed(fields, "account", BINDING_BYTES)) if "account" in fields else None


def _packed(fields: dict[str, Json], key: str, size: int) -> bytes:
    return hexed(_text(fields, key, 2 * size), size)


def _address(item: Json) -> str:
    if not isinstance(item, str):
        raise ValidationFailed("The addresses of an announcement must be texts.")
    return _matching(item, _ADDRESS, "an address")


def _matching(text: str, pattern: re.Pattern[str], what: str) -> str:
    if not pattern.match(text):
        raise ValidationFailed(f"{text[:80]!r} is not {what}.")
    return text


def _object(value: Json, what: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise ValidationFailed(f"{what} must be an object.")
    return value


def _list(fields: dict[str, Json], key: str, limit: int) -> list[Json]:
    value = fields.get(key)
    if not isinstance(value, list) or len(value) > limit:
        raise ValidationFailed(f"The {key} of an announcement must be a list of at most {limit}.")
    return value


def _text(fields: dict[str, Json], key: str, limit: int) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or len(value) > limit or _CONTROL.search(value):
        raise ValidationFailed(f"The {key} of an announcement must be a text of at most {limit} characters.")
    return value


def _whole(fields: dict[str, Json], key: str, least: int, most: int) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValidationFailed(f"The {key} of an announcement must be a whole number from {least} to {most}.")
    return value


def _amount(fields: dict[str, Json], key: str) -> Amount:
    text = _matching(_text(fields, key, 39), _MICRO, f"a {key} in whole micro-MESH")
    return Amount(int(text))
