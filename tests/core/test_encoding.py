from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmesh.core.encoding import DTYPES, Json, Tensor, canonical_json, parse_canonical_json
from llmesh.core.model import BundleFile, model_id_of
from llmesh.errors import ValidationFailed

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
values: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
)


@given(values)
def test_canonical_json_round_trip(value: Json) -> None:
    assert parse_canonical_json(canonical_json(value)) == value


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"1.5",
        b" 1",
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'"\\u0041"',
        b"NaN",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_other_spellings_are_refused(data: bytes) -> None:
    with pytest.raises(ValidationFailed):
        parse_canonical_json(data)


@pytest.mark.parametrize("value", [1.0, [0.5], {"a": 1e9}, "\ud800"])
def test_what_has_no_canonical_form_is_refused(value: Json) -> None:
    with pytest.raises(ValidationFailed):
        canonical_json(value)


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4))
def test_a_tensor_knows_its_size(dtype: str, shape: list[int]) -> None:
    size = DTYPES[dtype]
    for length in shape:
        size *= length
    assert Tensor(dtype, tuple(shape), bytes(size)).data == bytes(size)
    with pytest.raises(ValidationFailed):
        Tensor(dtype, tuple(shape), bytes(size + 1))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("object", (1,)), ("float32", (-1,)), ("float32", (1,) * 17), ("float32", (1 << 70, 0))],
)
def test_strange_tensors_are_refused(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValidationFailed):
        Tensor(dtype, shape, b"1")


def test_a_model_id_depends_on_every_file_and_not_on_their_order() -> None:
    files = [BundleFile("a", 1, "00"), BundleFile("b", 2, "11")]
    assert model_id_of(files) == model_id_of(reversed(files))
    others = [
        files[:1],
        [BundleFile("a", 1, "01"), files[1]],
        [BundleFile("c", 1, "00"), files[1]],
        [BundleFile("a", 3, "00"), files[1]],
    ]
    assert len({model_id_of(f) for f in [files, *others]}) == 5


@pytest.mark.parametrize(
    ("tensor", "nested"),
    [
        (
            Tensor("float32", (2, 2), bytes.fromhex("0000803f000000400000404000008040")),
            [[1.0, 2.0], [3.0, 4.0]],
        ),
        (Tensor("int64", (), (7).to_bytes(8, "little")), 7),
        (Tensor("bool", (2,), b"\x01\x00"), [True, False]),
        (Tensor("uint8", (3, 0), b""), []),
    ],
)
def test_a_tensor_as_nested_lists(tensor: Tensor, nested: Json) -> None:
    assert tensor.tolist() == nested
