"""A JSON body with its audio in base64, as the form that it stands for, made while the body comes.

Open WebUI (with its request format ``json``) and clients of OpenRouter send ``{"model": ..., "input_audio": {"data":
"<base64>", "format": "wav"}}``. Others send the audio as ``file``, in base64 or as a data URL, or its address as
``url`` or ``file_url``. What comes out is ``multipart/form-data``, so every bound of an upload holds for these bodies.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator

import msgspec
from starlette.requests import Request
from starlette.types import Message

from whisper_api.errors import InvalidInput
from whisper_api.server.openai.json_audio import JsonAudio
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.multipart import FILE_FIELD, FILE_URL_FIELD, URL_FIELD, media_type_of

__all__ = ["MEDIA_TYPE", "JsonForm", "form_of_json"]

MEDIA_TYPE = "application/json"
# Where a string stands that is the audio, or the address of it: the keys that lead to it.
AUDIO_PATHS = frozenset(((FILE_FIELD,), ("input_audio",), ("input_audio", "data")))
ADDRESS_PATHS = frozenset(((URL_FIELD,), (FILE_URL_FIELD,)))
SOURCES = frozenset(path[0] for path in AUDIO_PATHS | ADDRESS_PATHS)
# As much as the text fields of a form may have.
MAX_OTHER_BYTES = 16 << 20
MAX_KEY_BYTES = 1 << 10
MAX_DEPTH = 32
# Braces, brackets, commas, colons and strings: each costs time, and no request has so many.
MAX_TOKENS = 20_000

_TOKEN = re.compile(rb'[{}\[\],:"]')
_END_OR_ESCAPE = re.compile(rb'["\\]')
_QUOTED = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}


def form_of_json(request: Request) -> Request:
    """The request with a form as its body, if its body is JSON; else the request itself.

    Args:
        request: whose body was not read yet. The headers in its scope are changed.
    """
    if media_type_of(request.headers.get("content-type", "")) != MEDIA_TYPE:
        return request
    boundary = secrets.token_hex(16)
    form = JsonForm(boundary.encode())
    receive = request.receive
    ended = False

    async def receive_form() -> Message:
        nonlocal ended
        message = await receive()
        if ended or message["type"] == "http.disconnect":
            return message
        ended = not message.get("more_body", False)
        body = form.feed(message.get("body", b""))
        return {**message, "body": body + form.finish() if ended else body}

    # The form's length is known only at its end.
    replaced = (b"content-type", b"content-length")
    headers = [(name, value) for name, value in request.scope["headers"] if name not in replaced]
    request.scope["headers"] = [*headers, (b"content-type", f"multipart/form-data; boundary={boundary}".encode())]
    return Request(request.scope, receive_form)


class JsonForm:
    """Takes the bytes of a JSON object, in pieces of any size, and gives those of a form.

    Args:
        boundary: between the form's parts; must not occur in the audio.
    """

    def __init__(self, boundary: bytes) -> None:
        self._boundary = boundary
        # The body with an empty string in the place of its audio.
        self._rest = bytearray()
        self._levels: list[_Level] = []
        self._tokens = 0
        self._in_string = self._escaped = False
        self._key: bytearray | None = None
        self._audio: JsonAudio | None = None
        self._in_file = self._has_source = False

    def feed(self, data: bytes) -> bytes:
        """Take some more of the body.

        Raises:
            InvalidInput: it has more in it than a request may have.
            InvalidOption: its audio is not base64.
        """
        form = bytearray()
        position = 0
        while position < len(data):
            if self._in_string:
                position = self._read_string(data, position, form)
            else:
                position = self._read_structure(data, position)
            if len(self._rest) > MAX_OTHER_BYTES:
                raise _unusable(f"it has more than {MAX_OTHER_BYTES} bytes beside the audio")
        return bytes(form)

    def finish(self) -> bytes:
        """Say that the body has ended, and give the rest of the form.

        Raises:
            InvalidInput: the body is no JSON object.
            Problem: 400 ``no_file``, it has no audio.
        """
        try:
            fields = msgspec.json.decode(bytes(self._rest), type=dict[str, object])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _unusable(str(error)) from None
        if not self._has_source:
            raise Problem(
                400,
                "no_file",
                'No audio: send it in base64 as "input_audio": {"data": ..., "format": "wav"} or as "file", or its '
                'address as "url"; or send a form (multipart/form-data)',
            )
        parts = [
            self._part(field, text.encode("utf-8", "replace"))
            for name, value in fields.items()
            if name not in SOURCES
            for field, text in _as_fields(name, value)
        ]
        return b"".join(parts) + b"--%b--\r\n" % self._boundary

    def _read_structure(self, data: bytes, start: int) -> int:
        """Read what is not in a string, up to the beginning of one; where that is."""
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
                if len(self._levels) == MAX_DEPTH:
                    raise _unusable("it is nested too deep")
                self._levels.append(_Level(is_object=token == b"{"))
            elif self._levels and token in b"}]":
                self._levels.pop()
            elif self._levels:
                self._levels[-1].at_key = token == b"," and self._levels[-1].is_object
        self._rest += data[start:]
        return len(data)

    def _begin_string(self) -> None:
        self._in_string = True
        if self._levels and self._levels[-1].at_key:
            self._key = bytearray()
            return
        path = tuple(level.key for level in self._levels)
        if path in AUDIO_PATHS or path in ADDRESS_PATHS:
            self._audio = JsonAudio(path[0], is_address=path in ADDRESS_PATHS)

    def _read_string(self, data: bytes, start: int, form: bytearray) -> int:
        """Read what is in a string, up to its end or that of the data; where that is."""
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
            self._write_file(self._audio.feed(piece), form)
        else:
            self._rest += piece
            if self._key is not None and len(self._key) < MAX_KEY_BYTES:
                self._key += piece
        if ends:
            self._end_string(form)
        return position

    def _end_string(self, form: bytearray) -> None:
        self._in_string = False
        self._rest += b'"'
        if self._key is not None:
            self._levels[-1].key = self._key.decode("utf-8", "replace")
            self._key = None
        if self._audio is None:
            return
        audio, self._audio = self._audio, None
        self._write_file(audio.finish(), form)
        if audio.address:
            form += self._part(URL_FIELD, audio.address.encode())
        elif self._in_file:
            form += b"\r\n"
        self._has_source |= bool(audio.address) or self._in_file
        self._in_file = False

    def _write_file(self, audio: bytes, form: bytearray) -> None:
        if audio and not self._in_file:
            self._in_file = True
            form += self._opening(FILE_FIELD, '; filename="audio"')
        form += audio

    def _part(self, name: str, value: bytes) -> bytes:
        return self._opening(name) + value + b"\r\n"

    def _opening(self, name: str, more: str = "") -> bytes:
        disposition = f'Content-Disposition: form-data; name="{name.translate(_QUOTED)}"{more}'
        return b"--%b\r\n%b\r\n\r\n" % (self._boundary, disposition.encode("utf-8", "replace"))


class _Level:
    """An object or array that the reader is in.

    Attributes:
        is_object: which of the two.
        at_key: whether the next string is a key.
        key: of an object, the last that came.
    """

    def __init__(self, *, is_object: bool) -> None:
        self.is_object = self.at_key = is_object
        self.key = ""


def _as_fields(name: str, value: object) -> Iterator[tuple[str, str]]:
    """A value as the fields of a form that say the same; null is the same as nothing."""
    if isinstance(value, list):
        for each in value:
            yield from ((f"{name}[]", text) for _, text in _as_fields(name, each))
    elif isinstance(value, str):
        yield name, value
    elif value is not None:
        yield name, msgspec.json.encode(value).decode()


def _unusable(reason: str) -> InvalidInput:
    return InvalidInput(f"The body cannot be used: {reason}")
