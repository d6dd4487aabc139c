"""Forms without a file: what they hold, and that none takes much memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl, quote_plus, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.incoming import IncomingForm, Limits
from whisper_api.server.uploads.pace import PaceRules
from whisper_api.server.uploads.plain_bodies import UNQUOTED_TOGETHER, UrlencodedReader, unquoted

LIMITS = Limits(max_file_size=1, pace=PaceRules(1), max_fields=3, max_field_bytes=1000)


def read(body: bytes, max_files: int = 1) -> IncomingForm:
    form = IncomingForm(replace(LIMITS, max_files=max_files), lambda: Path("unused"))
    reader = UrlencodedReader(form)
    for at in range(0, len(body), 7):
        reader.feed(body[at : at + 7])
    reader.finish()
    return form


@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=3))
def test_fields_are_those_that_were_sent(fields: list[tuple[str, str]]) -> None:
    body = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in [*fields, ("url", "x")])
    assert read(body.encode()).fields == [*fields, ("url", "x")]


@pytest.mark.parametrize(
    "body", [b"url=a&&b=1", b"url=a%20+b&c", b"url=%e9%zz&a=b=c", b"=x&url=%25", b"url=\xc3\xa9", b"url=%C3%a9&%61=%"]
)
def test_odd_bodies_are_read_as_urllib_reads_them(body: bytes) -> None:
    try:
        expected = parse_qsl(body.decode(), True, errors="strict")
    except UnicodeDecodeError:
        with pytest.raises(Problem, match="UTF-8"):
            read(body)
        return
    assert read(body).fields == expected


def test_addresses_are_not_counted_as_fields() -> None:
    others = b"&a=1&b=2&c=3"
    assert len(read(b"url=x" + others).fields) == 4
    several = read(b"&".join([b"url=x"] * 20) + others, 20)
    assert (len(several.files), len(several.fields)) == (20, 3)
    for body, max_files in ((b"url=x" + others + b"&d=4", 20), (b"&".join([b"url=x"] * 21) + others, 20)):
        with pytest.raises(Problem, match="fields") as raised:
            read(body, max_files)
        assert (raised.value.status, raised.value.code) == (400, "invalid_form")


@pytest.mark.parametrize("before", range(UNQUOTED_TOGETHER - 4, UNQUOTED_TOGETHER + 2))
def test_codes_are_not_torn_apart(before: int) -> None:
    for data in (b"a" * before + b"%41%zz%4", b"%" * before, b"a" * before + b"%4", b"a" * before + b"%"):
        assert unquoted(data) == unquote_to_bytes(data)


def test_codes_take_little_memory() -> None:
    data = b"%41" * 300_000
    tracemalloc.start()
    try:
        assert unquoted(data) == b"A" * 300_000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * len(data)
