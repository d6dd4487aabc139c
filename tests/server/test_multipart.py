"""Forms as bytes: what they hold, and that nothing in them, nor how they are cut, can do harm."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.upload_server import BOUNDARY, field_part, file_part, form
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.incoming import IncomingForm, Limits
from whisper_api.server.uploads.multipart import MultipartReader, boundary_of
from whisper_api.server.uploads.pace import PaceRules
from whisper_api.server.uploads.part_headers import display_name

LIMITS = Limits(max_file_size=4000, pace=PaceRules(1), max_fields=5, max_field_bytes=1000, max_header_bytes=2000)


class Read(NamedTuple):
    fields: list[tuple[str, str]]
    file_name: str | None
    audio: bytes


def read(pieces: Iterable[bytes], boundary: str = BOUNDARY, limits: Limits = LIMITS) -> Read:
    with tempfile.TemporaryDirectory() as directory:
        form = IncomingForm(limits, lambda: Path(directory))
        reader = MultipartReader(boundary.encode(), form)
        try:
            for piece in pieces:
                reader.feed(piece)
            reader.finish()
            form.finish()
            (file,) = form.files
            audio = (Path(directory) / "audio").read_bytes()
            assert file.size == form.file_bytes == len(audio)
            return Read(form.fields, file.file_name, audio)
        finally:
            form.discard()


def outcome(pieces: Iterable[bytes], boundary: str = BOUNDARY) -> Read | str:
    try:
        return read(pieces, boundary)
    except Problem as problem:
        return f"{problem.status} {problem.code}"


def refused(body: bytes, limits: Limits = LIMITS) -> Problem:
    with pytest.raises(Problem) as raised:
        read([body], limits=limits)
    return raised.value


def every_byte(body: bytes) -> list[bytes]:
    return [body[at : at + 1] for at in range(len(body))]


AUDIO = bytes(range(256)) * 3

# --- what a form holds ---


def test_file_and_fields_in_any_order() -> None:
    parts = [
        field_part("language", "en"),
        file_part(AUDIO),
        field_part("prompt", "Zürich 東京"),
        field_part("model", ""),
    ]
    fields = [("language", "en"), ("prompt", "Zürich 東京"), ("model", "")]
    assert read([form(*parts)]) == Read(fields, "call.wav", AUDIO)
    assert read([form(*parts[::-1])]) == Read(fields[::-1], "call.wav", AUDIO)


@pytest.mark.parametrize(
    "audio",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"--" + BOUNDARY.encode(),
        f"\r\n--{BOUNDARY[:-1]}\r\n".encode(),
        f"\r\n-{BOUNDARY}--\r\n".encode(),
        f"\r\n--{BOUNDARY}x".encode(),
        f"\r\n\r\n--{BOUNDARY.lower()}--".encode(),
        f"\r\n--{BOUNDARY}-".encode(),
        f"\n--{BOUNDARY}\n".encode(),
        b"\r" * 50 + b"\n",
    ],
)
def test_bytes_that_only_resemble_a_boundary_are_audio(audio: bytes) -> None:
    body = form(file_part(audio + b"!"), field_part("sync", "yes"))
    assert read([body]).audio == audio + b"!"
    assert read(every_byte(body)).audio == audio + b"!"


def test_bytes_after_the_last_boundary_are_dropped() -> None:
    assert read([form(file_part(AUDIO)) + b"\r\n" + form(file_part(b"other"))]).audio == AUDIO


def test_headers_in_any_case_and_others_are_overlooked() -> None:
    part = b"CONTENT-disposition: FORM-DATA; NAME=file; FileName=a.wav\r\nX-Other: yes\r\n\r\n" + AUDIO
    assert read([form(part)]) == Read([], "a.wav", AUDIO)


def test_a_part_whose_type_is_not_text_is_a_file_without_a_name() -> None:
    part = b'Content-Disposition: form-data; name="file"\r\nContent-Type: audio/wav\r\n\r\n' + AUDIO
    assert read([form(part)]) == Read([], None, AUDIO)


def test_text_may_say_that_it_is_latin_1() -> None:
    part = (
        b'Content-Disposition: form-data; name="prompt"\r\nContent-Type: text/plain; charset=ISO-8859-1\r\n\r\nol\xe9'
    )
    assert read([form(part, file_part(AUDIO))]).fields == [("prompt", "olé")]


def test_an_empty_file_with_a_name_is_a_file() -> None:
    assert read([form(file_part(b""))]) == Read([], "call.wav", b"")


# --- file names ---


@pytest.mark.parametrize(
    ("disposition", "shown"),
    [
        (b'filename="call.wav"', "call.wav"),
        (b"filename=call.wav", "call.wav"),
        (b'filename=""', None),
        (b'filename="../../etc/passwd"', "passwd"),
        (b'filename="..\\..\\boot.ini"', "boot.ini"),
        (b'filename="C:\\music\\"', None),
        (b'filename="/"', None),
        (b'filename=".."', None),
        (b'filename="..."', None),
        (b'filename=" a b.wav "', "a b.wav"),
        (b'filename="a\0b\x1b[31m\x7f.wav"', "ab[31m.wav"),
        (b'filename="a%0D%0Ab%22.wav"', 'ab".wav'),
        (b'filename="a\\"b\\\\c.wav"', "c.wav"),
        (b'filename="a\\"b;c=.wav"; x="y"', 'a"b;c=.wav'),
        ('filename="Zürich 東京 🎙.m4a"'.encode(), "Zürich 東京 🎙.m4a"),
        (b'filename="Z\xfcrich.m4a"', "Zürich.m4a"),
        ('filename="\u202egpj.wav"'.encode(), "gpj.wav"),
        (b"filename*=UTF-8''caf%C3%A9%20%E2%82%AC.wav", "café €.wav"),
        (b"filename*=iso-8859-1'fr'caf%E9.wav", "café.wav"),
        (b"filename*=utf-8''%2e%2e%2fa%00%2Fb.wav", "b.wav"),
        (b"filename=\"plain.wav\"; filename*=UTF-8''better.wav", "better.wav"),
        (b"filename=\"plain.wav\"; filename*=klingon''worse.wav", "plain.wav"),
        (b'filename="first.wav"; filename="second.wav"', "first.wav"),
        (b'filename="unfinished.wav', "unfinished.wav"),
        (b'filename="' + b"../" * 400 + b'end.wav"', "end.wav"),
        (b'filename="' + b"long" * 300 + b'.wav"', ("long" * 300)[:255]),
    ],
)
def test_file_names_are_for_people(disposition: bytes, shown: str | None) -> None:
    assert read([form(file_part(AUDIO, disposition))]) == Read([], shown, AUDIO)


def test_a_file_name_of_ten_thousand_bytes() -> None:
    limits = Limits(max_file_size=4000, pace=PaceRules(1))
    name = read([form(file_part(AUDIO, b'filename="' + b"../x" * 2500 + b'.wav"'))], limits=limits).file_name
    assert name == "x.wav"


@given(st.text())
def test_no_file_name_is_a_path(name: str) -> None:
    shown = display_name(name)
    if shown is not None:
        assert 0 < len(shown) <= 255
        assert not set(shown) & set("/\\\0\r\n\x1b")
        assert shown.strip(".")
        assert display_name(shown) == shown


# --- what is refused ---


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_form"),
        (b"hello", "invalid_form"),
        (b"\r\n" * 10, "invalid_form"),
        (f"--{BOUNDARY}--\r\n".encode(), "no_file"),
        (form(file_part(AUDIO))[:-5], "invalid_form"),
        (form(file_part(AUDIO))[:300], "invalid_form"),
        (b"preamble\r\n" + form(file_part(AUDIO)), "invalid_form"),
        (b"\r\npreamble\r\n" + form(file_part(AUDIO)), "invalid_form"),
        (form(file_part(AUDIO), boundary="another"), "invalid_form"),
        (form(file_part(AUDIO), file_part(AUDIO)), "invalid_form"),
        (form(file_part(AUDIO), file_part(AUDIO, name=b"more")), "invalid_form"),
        (form(file_part(AUDIO, name=b"audio")), "no_file"),
        (form(field_part("file", "call.wav")), "no_file"),
        (form(file_part(b"", b'filename=""')), "no_file"),
        (form(field_part("language", "en")), "no_file"),
        (form(b"no header\r\n\r\nx"), "invalid_form"),
        (form(b"\r\nx"), "invalid_form"),
        (form(b": x\r\n\r\nx"), "invalid_form"),
        (form(b"A\0: x\r\n\r\nx"), "invalid_form"),
        (form(b'Content-Disposition: form-data; name="a"\rx\r\n\r\nx'), "invalid_form"),
        (form(b'Content-Disposition: form-data; name="a"\r\n folded\r\n\r\nx'), "invalid_form"),
        (form(b'Content-Disposition: attachment; name="file"; filename="a"\r\n\r\nx'), "invalid_form"),
        (form(b'Content-Disposition: form-data; filename="a"\r\n\r\nx'), "invalid_form"),
        (form(b'Content-Disposition: form-data; name="a"\r\n' * 2 + b"\r\nx"), "invalid_form"),
        (form(b"Content-Transfer-Encoding: base64\r\n" + file_part(AUDIO)), "invalid_form"),
        (form(*[field_part("a", "")] * 6, file_part(AUDIO)), "invalid_form"),
        (form(*[field_part("a", "x" * 300)] * 4, file_part(AUDIO)), "invalid_form"),
        (form(b"X: " + b"y" * 3000 + b"\r\n" + file_part(AUDIO)), "invalid_form"),
        (form(b"X" * 3000 + b": y\r\n" + file_part(AUDIO)), "invalid_form"),
        (form(b"X: " + b" " * 3000 + b"y\r\n" + file_part(AUDIO)), "invalid_form"),
        (form(*[b"X: " + b"y" * 700 + b"\r\n" + field_part("a", "")] * 3, file_part(AUDIO)), "invalid_form"),
        (form(b"".join(b"X-%d: y\r\n" % number for number in range(30)) + file_part(AUDIO)), "invalid_form"),
        (b"\r\n" * 20_000 + form(file_part(AUDIO)), "invalid_form"),
        (form(file_part(AUDIO)) + b"x" * 20_000, "invalid_form"),
        (form(field_part("prompt", b"caf\xe9"), file_part(AUDIO)), "invalid_field"),
        (form(field_part("prompt", b"\xed\xa0\x80"), file_part(AUDIO)), "invalid_field"),
    ],
)
def test_a_form_that_is_refused(body: bytes, code: str) -> None:
    problem = refused(body)
    assert (problem.status, problem.code) == (400, code)
    assert problem.detail.isprintable()
    assert outcome(every_byte(body)) == f"400 {code}"


def test_a_refusal_says_what_to_do() -> None:
    assert 'in the field "file"' in refused(form(field_part("language", "en"))).detail
    assert "'audio'" in refused(form(file_part(AUDIO, name=b"audio"))).detail
    assert "'prompt' is not UTF-8" in refused(form(field_part("prompt", b"\xff"))).detail
    assert "5 fields" in refused(form(*[field_part("a", "")] * 6)).detail
    long = refused(form(field_part("x" * 1500, b"\xff"))).detail
    assert len(long) < 200


def test_a_file_may_be_as_large_as_the_limit_and_no_larger() -> None:
    assert len(read([form(file_part(bytes(4000)))]).audio) == 4000
    problem = refused(form(file_part(bytes(4001))))
    assert (problem.status, problem.code) == (413, "file_too_large")
    assert problem.detail == "File too large: 4001 bytes exceeds limit of 4000 bytes"


# --- how it is cut ---

FRAGMENTS = st.sampled_from(
    [
        b"\r\n",
        b"\r",
        b"\n",
        b"--",
        b"-",
        b" ",
        BOUNDARY.encode(),
        f"\r\n--{BOUNDARY}".encode(),
        f"--{BOUNDARY}\r\n".encode(),
        f"\r\n--{BOUNDARY}--\r\n".encode(),
        BOUNDARY[:3].encode(),
        b'Content-Disposition: form-data; name="file"; filename="a"',
        b'Content-Disposition: form-data; name="b"',
        b"\r\n\r\n",
        b"x",
        b":",
        b"\0\xff",
    ]
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Whole and broken forms, with pieces of their own boundary in all places."""
    contents = st.lists(FRAGMENTS, max_size=8).map(b"".join)
    if draw(st.booleans()):
        return draw(contents) + draw(contents)
    parts = draw(st.lists(st.one_of(contents.map(file_part), contents.map(lambda c: field_part("a", c))), max_size=3))
    body = form(*parts)
    start, end = sorted(draw(st.tuples(st.integers(0, len(body)), st.integers(0, len(body)))))
    return draw(st.sampled_from([body, body, body[:start] + draw(contents) + body[end:]]))


@given(bodies(), st.data())
@example(b"\r\nabc" + form(file_part(b"x")), None)
def test_the_parsed_form_does_not_depend_on_how_its_bytes_are_cut(body: bytes, data: st.DataObject | None) -> None:
    whole = outcome([body])
    assert outcome(every_byte(body)) == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
        assert outcome([body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]) == whole


@given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.binary(max_size=60), max_size=3))
def test_no_bytes_make_anything_but_a_form_or_a_problem(pieces: list[bytes], headers: list[bytes]) -> None:
    outcome(pieces)
    outcome([b"--" + BOUNDARY.encode() + b"\r\n", *pieces])
    outcome([form(*(header + b"\r\n\r\n" for header in headers))])
    outcome([form(*(b"Content-Disposition: form-data;" + header + b"\r\n\r\n" for header in headers))])


# --- the boundary ---


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data ; charset=utf-8; Boundary="a b:c"', b"a b:c"),
        ("multipart/form-data;boundary=----WebKitFormBoundary7MA4", b"----WebKitFormBoundary7MA4"),
        (f"multipart/form-data; boundary={'x' * 200}", b"x" * 200),
    ],
)
def test_the_boundary_of_a_content_type(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/mixed; boundary=abc",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=é",
        f"multipart/form-data; boundary={'x' * 201}",
        'multipart/form-data; boundary="a\r\nb"',
    ],
)
def test_a_content_type_without_a_boundary(content_type: str) -> None:
    with pytest.raises(Problem) as raised:
        boundary_of(content_type)
    assert (raised.value.status, raised.value.code) == (400, "not_multipart")
    assert "multipart/form-data" in raised.value.detail


@given(st.text(), st.text())
def test_no_content_type_makes_anything_but_a_boundary_or_a_problem(start: str, end: str) -> None:
    for text in (start, f"multipart/form-data;{start}", f"multipart/form-data; boundary={start}{end}"):
        with contextlib.suppress(Problem):
            assert 0 < len(boundary_of(text)) <= 200


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=' "\\;'), min_size=1, max_size=70))
def test_every_boundary_that_is_taken_can_be_read(boundary: str) -> None:
    assert boundary_of(f"multipart/form-data; boundary={boundary}") == boundary.encode()
    body = form(file_part(AUDIO), field_part("a", "b"), boundary=boundary)
    assert outcome([body], boundary) == Read([("a", "b")], "call.wav", AUDIO)
    assert outcome(every_byte(body), boundary) == Read([("a", "b")], "call.wav", AUDIO)
