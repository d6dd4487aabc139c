"""Metadata of jobs: which values are accepted, and the search for them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.errors import InvalidOption
from whisper_api.store.metadata import MAX_BYTES, metadata_of, searchable, searched

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=10,
)


def padded(size: int) -> str:
    text = '{"key": "é%s"}'
    return text % ("x" * (size - len((text % "").encode())))


@given(value=st.dictionaries(st.text("abcé", max_size=5), JSON, max_size=5))
def test_an_object_comes_back_as_it_was(value: dict[str, Any]) -> None:
    assert metadata_of(json.dumps(value)) == value
    assert metadata_of(json.dumps(value, ensure_ascii=False)) == value


def test_its_size_is_that_of_its_bytes() -> None:
    assert len(metadata_of(padded(MAX_BYTES))["key"].encode()) > MAX_BYTES - 20
    with pytest.raises(InvalidOption, match=r"metadata: expected at most 16384 bytes, not 16385"):
        metadata_of(padded(MAX_BYTES + 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"text"',
        "{",
        '{"a": NaN}',
        '{"a": 1e999}',
        "{'a': 1}",
        '{"a": "\\ud800"}',
        '{"a": "\ud800"}',
        '{"a": 1} {"b": 2}',
        f'{{"a": {"1" * 10_000}}}',
        '{"a": ' + "[" * 8000 + "]" * 8000 + "}",
        '{"a": ' + "[" * 70 + "]" * 70 + "}",
        '{"a":' * 70 + "1" + "}" * 70,
    ],
)
def test_metadata_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidOption, match=r"metadata: "):
        metadata_of(text)


def test_usual_nesting_is_accepted() -> None:
    text = '{"a":' * 64 + "1" + "}" * 64
    assert json.dumps(metadata_of(text), separators=(",", ":")) == text


@pytest.mark.parametrize(
    ("value", "matching", "other"),
    [
        ("Paris", ["Paris", '"Paris"'], ["paris", "Par", "null"]),
        (5, ["5", "5.0", "5e0"], ["05", "5.5", '"5"']),
        (2.5, ["2.5", "25e-1"], ["2", '"2.5"']),
        (10**20, [str(10**20), "1e20"], ["1e19"]),
        ("5", ["5", '"5"'], ["5.0"]),
        (True, ["true"], ["1", "True", '"true"']),
        (None, ["null"], ["none", "0", '"null"']),
        ("", ['""'], ["null"]),
        ('"x"', ['"x"', '"\\"x\\""'], ["x"]),
        ("a\x00b", ["a\x00b"], ["a"]),
        ({"a": 1}, [], ["", '{"a": 1}', "null"]),
        ([1], [], ["1", "[1]"]),
    ],
)
def test_values_are_found_as_text_and_as_json(value: Any, matching: list[str], other: list[str]) -> None:
    [(_, kept)] = searchable({"key": value})
    assert [text for text in [*matching, *other] if kept in searched(text)] == matching


@given(value=JSON, text=st.text())
def test_every_scalar_is_found_by_its_json(value: Any, text: str) -> None:
    [(_, kept)] = searchable({"key": value})
    assert (kept in searched(json.dumps(value))) == (not isinstance(value, (dict, list)))
    [(_, kept)] = searchable({"key": text.encode("utf-8", "replace").decode()})
    assert kept in searched(text.encode("utf-8", "replace").decode())
