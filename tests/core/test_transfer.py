from __future__ import annotations

import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmesh.core import manifest as manifest_module
from llmesh.core.ids import PeerId
from llmesh.core.manifest import Block, Manifest, ManifestFile
from llmesh.core.manifest import block_digest as digest
from llmesh.core.model import BundleFile
from llmesh.core.transfer import IN_FLIGHT, Transfer
from llmesh.errors import ValidationFailed

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_module, "BLOCK", 10)
        yield


def model(size: int = 95, seed: int = 1) -> tuple[Manifest, dict[Block, bytes]]:
    rng = random.Random(seed)
    files, blocks = [], {}
    for path in ("a", "b/c"):
        data = rng.randbytes(size)
        pieces = [data[i : i + 10] for i in range(0, size, 10)]
        blocks |= {Block(path, n): piece for n, piece in enumerate(pieces)}
        digests = tuple(digest(piece) for piece in pieces)
        files.append(ManifestFile(BundleFile(path, size, sha256(data).hexdigest()), digests))
    return Manifest(tuple(files)), blocks


def test_one_source_brings_everything_in_order() -> None:
    manifest, blocks = model()
    transfer = Transfer(manifest)
    transfer.join(A)
    order = []
    while (block := transfer.next(A, 0.0)) is not None:
        order.append(block)
        assert transfer.arrived(A, block, digest(blocks[block]), 1.0)
    assert order == list(manifest.blocks())
    assert transfer.done
    assert transfer.remaining == 0


def test_what_is_held_is_never_asked_for() -> None:
    manifest, blocks = model()
    held = list(manifest.blocks())[::2]
    transfer = Transfer(manifest, held)
    transfer.join(A)
    asked = set()
    while (block := transfer.next(A, 0.0)) is not None:
        asked.add(block)
        transfer.arrived(A, block, digest(blocks[block]), 0.0)
    assert asked == set(blocks) - set(held)


def test_a_source_owes_a_bounded_number_of_blocks() -> None:
    transfer = Transfer(model()[0])
    transfer.join(A)
    assert sum(transfer.next(A, 0.0) is not None for _ in range(20)) == IN_FLIGHT


def test_a_wrong_block_expels_its_source_and_is_asked_of_another() -> None:
    transfer = Transfer(model()[0])
    transfer.join(A)
    transfer.join(B)
    owed = [transfer.next(A, 0.0) for _ in range(3)]
    assert owed[1] is not None
    with pytest.raises(ValidationFailed) as failure:
        transfer.arrived(A, owed[1], digest(b"nonsense"), 1.0)
    assert failure.value.peer_id == A
    assert transfer.sources == {B}
    assert {transfer.next(B, 1.0) for _ in range(3)} == set(owed)


@pytest.mark.parametrize("block", [Block("a", 9), Block("nowhere", 0)])
def test_a_block_that_was_not_asked_for_expels_its_source(block: Block) -> None:
    manifest, blocks = model()
    transfer = Transfer(manifest)
    transfer.join(A)
    with pytest.raises(ValidationFailed):
        transfer.arrived(A, block, digest(blocks.get(block, b"")), 0.0)
    assert transfer.sources == frozenset()
    transfer.join(B)
    assert transfer.next(B, 0.0) == Block("a", 0)


def test_a_stalled_source_is_taken_over_and_its_late_block_does_no_harm() -> None:
    manifest, blocks = model(size=10)
    transfer = Transfer(manifest)
    transfer.join(A)
    transfer.join(B)
    stalled, other = transfer.next(A, 0.0), transfer.next(B, 0.0)
    assert stalled is not None
    assert other is not None
    assert transfer.arrived(B, other, digest(blocks[other]), 0.1)
    assert transfer.next(B, 0.15) is None
    assert transfer.next(B, 5.0) == stalled
    assert transfer.arrived(B, stalled, digest(blocks[stalled]), 5.1)
    assert transfer.done
    assert not transfer.arrived(A, stalled, digest(blocks[stalled]), 6.0)


@pytest.mark.parametrize(("speeds", "twice"), [((1, 1, 1), 0), ((1, 1.5, 1), 2), ((3, 4, 5), 2)])
def test_sources_of_like_speed_bring_next_to_nothing_twice(speeds: tuple[float, ...], twice: int) -> None:
    """A source answers in order, one block after the other; 120 blocks in all."""
    manifest, blocks = model(size=600)
    transfer, asked = Transfer(manifest), list[Block]()
    queues: dict[PeerId, list[Block]] = {A: [], B: [], C: []}
    for source in queues:
        transfer.join(source)
    due = dict(zip(queues, (1 / speed for speed in speeds), strict=True))
    while not transfer.done:
        now, source = min((at, source) for source, at in due.items())
        if queues[source]:
            block = queues[source].pop(0)
            transfer.arrived(source, block, digest(blocks[block]), now)
        while (wanted := transfer.next(source, now)) is not None:
            queues[source].append(wanted)
            asked.append(wanted)
        due[source] = now + 1 / speeds[(A, B, C).index(source)]
    assert set(asked) == set(blocks)
    assert len(asked) - len(blocks) <= twice


def test_a_slow_source_is_left_behind_in_the_end() -> None:
    """With one source a hundred times slower, the whole takes little longer than without it."""
    manifest, blocks = model(size=600)
    transfer, queues = Transfer(manifest), {A: list[Block](), B: list[Block]()}
    due = {A: 1.0, B: 100.0}
    for source in queues:
        transfer.join(source)
    while not transfer.done:
        now, source = min((at, source) for source, at in due.items())
        if queues[source]:
            block = queues[source].pop(0)
            transfer.arrived(source, block, digest(blocks[block]), now)
        for each in queues:
            while (wanted := transfer.next(each, now)) is not None:
                queues[each].append(wanted)
        due[source] = now + (1 if source == A else 100)
    assert now < len(blocks) + 10


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(1, 120))
def test_any_mix_of_sources_finishes_and_writes_each_block_once(seed: int, size: int) -> None:
    """Sources come, stall, lie and leave at random; one honest source stays."""
    manifest, blocks = model(size, seed)
    rng = random.Random(seed)
    transfer, written, now = Transfer(manifest), dict[Block, bytes](), 0.0
    owed: dict[PeerId, list[Block]] = {C: []}
    transfer.join(C)
    for _ in range(5000):
        if transfer.done:
            break
        now += rng.random()
        source = rng.choice([A, B, C])
        if source not in transfer.sources:
            transfer.join(source)
            owed[source] = []
        if source != C and rng.random() < 0.1:
            transfer.leave(source)
        elif owed[source] and rng.random() < 0.5:
            block = owed[source].pop(rng.randrange(len(owed[source])))
            data = blocks[block] if source == C or rng.random() < 0.8 else b"lie"
            try:
                if transfer.arrived(source, block, digest(data), now):
                    assert block not in written
                    written[block] = data
            except ValidationFailed:
                assert data == b"lie"
        elif (wanted := transfer.next(source, now)) is not None:
            owed[source].append(wanted)
    assert transfer.done
    assert written == blocks
