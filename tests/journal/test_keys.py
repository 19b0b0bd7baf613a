"""Keys: found by digest only, revoked once and for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmesh.core.amount import Amount
from llmesh.errors import Conflict, ValidationFailed
from llmesh.journal.keys import AddKey, KeyRow, RevokeKey, all_keys, digest_key, find_key
from llmesh.journal.open import open_journal

if TYPE_CHECKING:
    from tests.journal.conftest import Rows

SECRET = b"s" * 32
KEY = KeyRow("k1", digest_key(SECRET, "a key"), "laptop", frozenset({"infer", "deploy"}), 10.0)


async def test_a_key_is_found_by_its_digest_until_revoked(path: Path, rows: Rows) -> None:
    limited = KeyRow("k2", digest_key(SECRET, "other"), "", frozenset(), 5.0, 20.0, None, Amount(2**128 - 1))
    async with open_journal(path, rows.owner) as journal:
        await journal.commit(AddKey(KEY), AddKey(limited))
        assert await journal.read(find_key, digest_key(SECRET, "a key")) == KEY
        assert await journal.read(find_key, digest_key(SECRET, "no key")) is None
        assert await journal.read(all_keys) == [limited, KEY]
        for taken in (replace(KEY, digest=b"d" * 32), replace(KEY, id="k3")):
            with pytest.raises(Conflict):
                await journal.commit(AddKey(taken))
        for time in (30.0, 40.0):
            await journal.commit(RevokeKey("k1", time))
        with pytest.raises(Conflict, match="no key k9"):
            await journal.commit(RevokeKey("k9", 1.0))
        revoked = await journal.read(find_key, KEY.digest)
        assert revoked == replace(KEY, revoked=30.0)
        assert not revoked.is_valid(0.0)
    assert b"a key" not in path.read_bytes()


def test_a_key_is_valid_until_it_expires() -> None:
    assert KEY.is_valid(1e12)
    expiring = replace(KEY, expires=20.0)
    assert expiring.is_valid(19.9)
    assert not expiring.is_valid(20.0)


def test_a_digest_depends_on_the_nodes_secret() -> None:
    assert digest_key(SECRET, "a key") != digest_key(b"t" * 32, "a key")
    assert len(KEY.digest) == 32


@pytest.mark.parametrize("scope", ["", "a b", " a", "a\n"])
def test_a_scope_is_one_word(scope: str) -> None:
    with pytest.raises(ValidationFailed):
        replace(KEY, scopes=frozenset({scope}))
