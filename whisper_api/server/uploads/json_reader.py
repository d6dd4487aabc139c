"""Reads a JSON body with audio in base64, or with the URL of audio, piece by piece.

Open WebUI (with its request format ``json``) and clients of OpenRouter send ``{"model": ..., "input_audio": {"data":
"<base64>", "format": "wav"}}``. Other clients send the audio as ``file``, in base64 or as a data URL, or its URL as
``url`` or ``file_url``. The audio is decoded while it arrives and never held whole; the other values become fields.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator

import msgspec

from whisper_api.errors import InvalidInput, InvalidOption
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.incoming import FILE_FIELD, FILE_URL_FIELD, URL_FIELD, IncomingForm

JSON_TYPE = "application/json"
# The keys that lead to a string with audio, or with the URL of audio.
AUDIO_PATHS = frozenset(((FILE_FIELD,), ("input_audio",), ("input_audio", "data")))
URL_PATHS = frozenset(((URL_FIELD,), (FILE_URL_FIELD,)))
SOURCES = frozenset(path[0] for path in AUDIO_PATHS | URL_PATHS)
# The same as the limit of the text fields of a form.
MAX_OTHER_BYTES = 16 << 20
MAX_KEY_BYTES = 1 << 10
MAX_DEPTH = 32
# Bounds the time for braces, brackets, commas, colons and strings; no request needs so many.
MAX_TOKENS = 20_000
# The longest URL, or text before the data in a data URL.
MAX_HEAD_BYTES = 8 << 10
FILE_NAME = "audio"

_TOKEN = re.compile(rb'[{}\[\],:"]')
_END_OR_ESCAPE = re.compile(rb'["\\]')
# Some clients write base64 in lines.
_SPACE = b" \t\r\n\f\v"
# The alphabet for URLs (RFC 4648, section 5) differs from the usual one in two characters.
_USUAL_ALPHABET = bytes.maketrans(b"-_", b"+/")
_CUT_ESCAPE = re.compile(rb"\\(?:u[0-9A-Fa-f]{0,3})?\Z")
_HTTP_URL = re.compile(rb"https?:", re.IGNORECASE)
_DATA_URL = re.compile(rb"data:", re.IGNORECASE)


class JsonReader:
    """Reads a JSON object, in pieces of any size.

    Args:
        form: collects the fields and the file.
    """

    def __init__(self, form: IncomingForm) -> None:
        self._form = form
        # The body with an empty string instead of its audio.
        self._rest = bytearray()
        # The last key of each open object, and None for an open array.
        self._path: list[str | None] = []
        # Whether the next string is a key.
        self._at_key = False
        self._tokens = 0
        self._in_string = self._escaped = False
        self._key: bytearray | None = None
        self._audio: _AudioString | None = None
        self._has_source = False

    def feed(self, data: bytes) -> None:
        """Read one more piece of the body.

        Raises:
            InvalidInput: the body exceeds a limit.
            InvalidOption: the audio is not base64.
            Problem: the file is too large, or the body has more than one.
        """
        position = 0
        while position < len(data):
            position = self._read_string(data, position) if self._in_string else self._read_structure(data, position)
            if len(self._rest) > MAX_OTHER_BYTES:
                raise _unusable(f"it has more than {MAX_OTHER_BYTES} bytes besides the audio")

    def finish(self) -> None:
        """End the body, and add its values to the form.

        Raises:
            InvalidInput: the body is not a JSON object.
            Problem: the body has too many fields, or no audio (400 ``no_file``).
        """
        try:
            values = msgspec.json.decode(bytes(self._rest), type=dict[str, object])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _unusable(str(error)) from None
        if not self._has_source:
            raise Problem(
                400,
                "no_file",
                'No audio: send it in base64 as "input_audio": {"data": ..., "format": "wav"} or as "file", or its '
                'address as "url"; or send a form (multipart/form-data)',
            )
        for name, value in values.items():
            if name not in SOURCES:
                for field, text in _as_fields(name, value):
                    self._form.add_field(field, text)

    def _read_structure(self, data: bytes, start: int) -> int:
        """Read up to the beginning of a string, and return that position."""
        for match in _TOKEN.finditer(data, start):
            self._tokens += 1
            if self._tokens > MAX_TOKENS:
                raise _unusable(f"it has more than {MAX_TOKENS} values and marks")
            token = match[0]
            if token == b'"':
                self._rest += data[start : match.end()]
                self._begin_string()
                return match.end()
            if token in b"{[":
                if len(self._path) == MAX_DEPTH:
                    raise _unusable("it is nested too deep")
                self._path.append("" if token == b"{" else None)
            elif self._path and token in b"}]":
                self._path.pop()
            self._at_key = token in b"{," and bool(self._path) and self._path[-1] is not None
        self._rest += data[start:]
        return len(data)

    def _begin_string(self) -> None:
        self._in_string = True
        path = tuple(self._path)
        if self._at_key:
            self._key = bytearray()
        elif path in AUDIO_PATHS or path in URL_PATHS:
            self._audio = _AudioString(str(path[0]), self._form, is_url=path in URL_PATHS)

    def _read_string(self, data: bytes, start: int) -> int:
        """Read up to the end of a string or of the data, and return that position."""
        position, ends = start, False
        while position < len(data) and not ends:
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            match = _END_OR_ESCAPE.search(data, position)
            position = len(data) if match is None else match.end()
            if match is not None:
                ends, self._escaped = match[0] == b'"', match[0] == b"\\"
        piece = data[start : position - ends]
        if self._audio is not None:
            self._audio.feed(piece)
        else:
            self._rest += piece
            if self._key is not None and len(self._key) < MAX_KEY_BYTES:
                self._key += piece
        if ends:
            self._end_string()
        return position

    def _end_string(self) -> None:
        self._in_string = False
        self._rest += b'"'
        if self._key is not None:
            self._path[-1] = self._key.decode("utf-8", "replace")
            self._key = None
        if self._audio is not None:
            self._has_source |= self._audio.finish()
            self._audio = None


class _AudioString:
    """A string with audio in base64, or with the URL of audio.

    Args:
        field: name of the field in errors.
        form: collects the file or the URL.
        is_url: whether the field is for URLs; it may contain a data URL.
    """

    def __init__(self, field: str, form: IncomingForm, *, is_url: bool) -> None:
        self._field = field
        self._form = form
        self._is_url = is_url
        self._escape = b""
        # The beginning of the string; None once the beginning has shown whether this is audio or a URL.
        self._head: bytes | None = b""
        self._undecoded = b""
        self._padded = self._has_audio = False

    def feed(self, piece: bytes) -> None:
        """Read the next piece of the text between the quotes.

        Raises:
            InvalidOption: the text is not base64.
        """
        piece = self._unescaped(self._escape + piece)
        if self._head is None:
            self._decode(piece)
            return
        self._head += piece
        if len(self._head) > MAX_HEAD_BYTES:
            self._begin(self._head, ended=False)

    def finish(self) -> bool:
        """End the string, and return whether it contained audio or a URL.

        Raises:
            InvalidOption: the text is not base64.
        """
        if self._escape:
            raise self._invalid("base64")
        has_url = self._head is not None and self._begin(self._head, ended=True)
        self._write(self._undecoded + b"=" * (-len(self._undecoded) % 4))
        if self._has_audio:
            self._form.end_file()
        return has_url or self._has_audio

    def _begin(self, head: bytes, *, ended: bool) -> bool:
        """Decide by the string's beginning what it is, and return whether it is a URL."""
        head, self._head = head.lstrip(), None
        if _DATA_URL.match(head):
            kind, comma, data = head.partition(b",")
            if not comma or not kind.rstrip().lower().endswith(b";base64"):
                raise self._invalid("a data URL with base64 (data:audio/wav;base64,...)")
            self._decode(data)
            return False
        if not self._is_url and not _HTTP_URL.match(head):
            self._decode(head)
            return False
        if not ended:
            raise self._invalid(f"a URL of at most {MAX_HEAD_BYTES} bytes")
        url = head.decode("utf-8", "replace").strip()
        if url:
            self._form.add_field(URL_FIELD, url)
        return bool(url)

    def _unescaped(self, piece: bytes) -> bytes:
        """Resolve JSON's escapes, because some programs write slashes and plus signs of base64 with a backslash."""
        if b"\\" not in piece:
            self._escape = b""
            return piece
        cut = _CUT_ESCAPE.search(piece)
        self._escape = cut[0] if cut else b""
        try:
            text = msgspec.json.decode(b'"%b"' % piece[: len(piece) - len(self._escape)], type=str)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._invalid("base64") from None
        return text.encode("utf-8", "replace")

    def _decode(self, piece: bytes) -> None:
        packed = piece.translate(_USUAL_ALPHABET, _SPACE)
        if self._padded and packed.strip(b"="):
            raise self._invalid("base64")
        plain = packed.rstrip(b"=")
        self._padded |= plain != packed
        data = self._undecoded + plain
        whole = len(data) - len(data) % 4
        self._undecoded = data[whole:]
        self._write(data[:whole])

    def _write(self, data: bytes) -> None:
        try:
            audio = base64.b64decode(data, validate=True)
        except binascii.Error:
            raise self._invalid("base64") from None
        if audio and not self._has_audio:
            self._has_audio = True
            self._form.begin_file(FILE_FIELD, FILE_NAME)
        self._form.write(audio)

    def _invalid(self, expected: str) -> InvalidOption:
        return InvalidOption(self._field, f"expected {expected}")


def _as_fields(name: str, value: object) -> Iterator[tuple[str, str]]:
    """A value as form fields: a list becomes a field for each item, and null becomes no field."""
    if isinstance(value, list):
        for each in value:
            yield from ((f"{name}[]", text) for _, text in _as_fields(name, each))
    elif isinstance(value, str):
        yield name, value
    elif value is not None:
        yield name, msgspec.json.encode(value).decode()


def _unusable(reason: str) -> InvalidInput:
    return InvalidInput(f"The body cannot be used: {reason}")
