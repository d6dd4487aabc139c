"""One ``multipart/form-data`` body (RFC 7578), parsed as it comes: fields into memory, the file to where it belongs."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.pace import PaceRules, pace_rules
from whisper_api.server.uploads.part_headers import display_name, file_name_in, parameters_of, shown, text_of, unescaped

__all__ = [
    "FILE_FIELD",
    "FILE_URL_FIELD",
    "HOW_TO_SEND",
    "URL_FIELD",
    "FormReader",
    "Limits",
    "boundary_of",
    "display_name",
    "field_name",
    "invalid_form",
    "media_type_of",
    "no_file",
    "shown",
    "too_large",
]

# The parser warns of what a client did wrong, which the client is told.
parser_log = logging.getLogger(f"{__name__}.parser")
parser_log.setLevel(logging.ERROR)

FILE_FIELD = "file"
URL_FIELD = "url"
# The name that Mistral's clients give the same field.
FILE_URL_FIELD = "file_url"
MAX_PART_HEADERS = 16
HOW_TO_SEND = f'Send the audio as multipart/form-data in the field "{FILE_FIELD}" (curl -F {FILE_FIELD}=@call.wav)'

# RFC 2046 allows 70 characters of fewer kinds; clients are not that exact.
_BOUNDARY = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")
# Text parts may say that they are not UTF-8 (RFC 7578, section 5.1.2); these are what clients say.
_CHARSETS = ("ISO-8859-1", "WINDOWS-1252")


@dataclass(frozen=True)
class Limits:
    """What an upload may take.

    Attributes:
        max_file_size: bytes of the file.
        timeout_seconds: that a sender may be silent.
        max_fields: besides the file.
        max_field_bytes: of all fields together.
        max_header_bytes: of the headers of all parts together.
        min_bytes_per_second: the least rate of the whole body; 0 for none.
        upload_seconds: that the whole body may take.
        file_fields: names of the fields that may hold the file.
    """

    max_file_size: int
    timeout_seconds: float
    max_fields: int = 100
    max_field_bytes: int = 1 << 20
    max_header_bytes: int = 32 << 10
    min_bytes_per_second: float = 0.0
    upload_seconds: float = math.inf
    file_fields: tuple[str, ...] = (FILE_FIELD,)

    @property
    def pace(self) -> PaceRules:
        """How slowly the body may come."""
        return pace_rules(self.timeout_seconds, self.min_bytes_per_second, self.upload_seconds)

    @property
    def max_other_bytes(self) -> int:
        """What a body may have besides the contents of its parts: headers, boundaries, padding."""
        return 2 * self.max_header_bytes + 512 * (self.max_fields + 2)


def boundary_of(content_type: str, how_to_send: str = HOW_TO_SEND) -> bytes:
    """The boundary that a request's Content-Type names.

    Args:
        content_type: of the request.
        how_to_send: what to say to a client that sends something else.

    Raises:
        Problem: it is not ``multipart/form-data``, or without a usable boundary.
    """
    kind, parameters = parameters_of(content_type)
    if kind != "multipart/form-data":
        raise Problem(400, "not_multipart", f"Not a form. {how_to_send}")
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise Problem(
            400,
            "not_multipart",
            f"The Content-Type names no usable boundary between the parts of the form. {how_to_send}",
        )
    return boundary.encode("ascii")


def field_name(name: str) -> str:
    """The name under which the server reads a field that may have two."""
    return URL_FIELD if name == FILE_URL_FIELD else name


def media_type_of(content_type: str) -> str:
    """What a Content-Type says first."""
    return content_type.partition(";")[0].strip().lower()


def too_large(size: int, limit: int) -> Problem:
    """The answer to a file that is larger than it may be, both in bytes."""
    return Problem(413, "file_too_large", f"File too large: {size} bytes exceeds limit of {limit} bytes")


class FormReader:
    """Takes the bytes of one form, in pieces of any size, and gives its fields and its file.

    Args:
        boundary: between the parts.
        limits: what the form may take.
        write: called with the file's bytes, in order.
        stated_bytes: of the whole body, if its header says; for the message when it is too large.

    Attributes:
        fields: name and value of each text field, in order.
        file_name: the client's name for the file, fit for display.
        size: bytes of the file so far.
    """

    def __init__(
        self,
        boundary: bytes,
        limits: Limits,
        write: Callable[[memoryview], None],
        stated_bytes: int | None = None,
    ) -> None:
        self.fields: list[tuple[str, str]] = []
        self.file_name: str | None = None
        self.size = 0
        self._limits = limits
        self._write = write
        self._stated_bytes = stated_bytes
        self._opening = b"--" + boundary
        self._head: bytes | None = b""
        self._received = self._field_bytes = self._header_bytes = 0
        self._has_file = self._named = self._ended = False
        self._header_name = self._header_value = b""
        self._headers: dict[str, str] = {}
        self._field = ""
        self._charset = "UTF-8"
        self._value: bytearray | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_piece,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
            max_header_count=MAX_PART_HEADERS,
            max_header_size=limits.max_header_bytes,
        )
        self._parser.logger = parser_log

    def feed(self, data: bytes) -> None:
        """Take some more of the body.

        Raises:
            Problem: the form is broken, or more than it may be. Nothing more can be fed then.
        """
        self._received += len(data)
        if self._head is not None:
            # The parser takes some bytes before the first boundary, and which depends on how they are cut: none pass.
            data = (self._head + data).lstrip(b"\r\n")
            if len(data) < len(self._opening) and self._opening.startswith(data):
                self._head = data
                self._check_other_bytes()
                return
            if not data.startswith(self._opening):
                raise invalid_form("it does not begin with the boundary that the Content-Type names")
            self._head = None
        try:
            self._parser.write(data)
        except FormParserError as error:
            # Not in the parser's words: they count from where the piece at hand begins.
            raise invalid_form("a boundary or the header of a part is malformed") from error
        self._check_other_bytes()

    def finish(self) -> None:
        """Say that the body has ended.

        Raises:
            Problem: the form has not ended, or holds no file.
        """
        if not self._ended:
            raise invalid_form("it ends before its last boundary")
        if not self.has_file and not any(name == URL_FIELD and value.strip() for name, value in self.fields):
            raise no_file("no part holds one")

    @property
    def has_file(self) -> bool:
        """Whether a file came; what a browser sends of a field that was left alone is none."""
        return self._has_file and bool(self.size or self._named)

    def _check_other_bytes(self) -> None:
        """Bytes that belong to nothing cost time, and would pass every other limit."""
        if self._received - self.size - self._field_bytes > self._limits.max_other_bytes:
            raise invalid_form("there is too much outside of its parts")

    def _part_begin(self) -> None:
        self._headers = {}

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_name += data[start:end]

    def _header_piece(self, data: bytes, start: int, end: int) -> None:
        self._count_header(end - start)
        self._header_value += data[start:end]

    def _count_header(self, count: int) -> None:
        self._header_bytes += count
        if self._header_bytes > self._limits.max_header_bytes:
            raise invalid_form(f"the headers of its parts have more than {self._limits.max_header_bytes} bytes")

    def _header_end(self) -> None:
        name = self._header_name.decode("ascii").lower()
        if name in self._headers:
            raise invalid_form(f"a part has two headers {shown(name)}")
        self._headers[name] = text_of(self._header_value)
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        kind, parameters = parameters_of(self._headers.get("content-disposition", ""))
        if kind != "form-data" or "name" not in parameters:
            raise invalid_form("a part has no name")
        encoding = self._headers.get("content-transfer-encoding", "binary").strip().lower()
        if encoding not in ("binary", "8bit", "7bit"):
            raise invalid_form(f"Content-Transfer-Encoding {shown(encoding)} is not known; send the bytes as they are")
        content_type, type_parameters = parameters_of(self._headers.get("content-type", ""))
        self._field = unescaped(parameters["name"])
        file_name = file_name_in(parameters)
        if (
            file_name is None
            and self._field in self._limits.file_fields
            and content_type
            and not content_type.startswith("text/")
        ):
            file_name = ""
        if file_name is not None:
            self._begin_file(file_name)
            return
        if self._field in self._limits.file_fields:
            self._text_for_file()
            return
        if len(self.fields) >= self._limits.max_fields:
            raise invalid_form(f"it has more than {self._limits.max_fields} fields")
        charset = type_parameters.get("charset", "").upper()
        self._charset = charset if charset in _CHARSETS else "UTF-8"
        self._value = bytearray()

    def _begin_file(self, file_name: str) -> None:
        if self._has_file:
            raise invalid_form("it has more than one file")
        if self._field not in self._limits.file_fields:
            allowed = " or ".join(f'"{name}"' for name in self._limits.file_fields)
            raise no_file(f"the part {shown(self._field)} is a file, and only {allowed} may be one")
        self._has_file = True
        self._named = bool(file_name)
        self.file_name = display_name(file_name)

    def _text_for_file(self) -> None:
        raise no_file(f'the field "{self._field}" is text')

    def _file_data(self, data: memoryview) -> None:
        self.size += len(data)
        if self.size > self._limits.max_file_size:
            raise too_large(max(self.size, self._stated_bytes or 0), self._limits.max_file_size)
        self._write(data)

    def _end_file(self) -> None:
        """For whoever takes several."""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self._file_data(memoryview(data)[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > self._limits.max_field_bytes:
            raise invalid_form(f"its fields besides the file have more than {self._limits.max_field_bytes} bytes")
        self._value += data[start:end]

    def _part_end(self) -> None:
        if self._value is None:
            self._end_file()
            return
        try:
            text = self._value.decode(self._charset)
        except UnicodeDecodeError as error:
            detail = f"The field {shown(self._field)} is not {self._charset} text, at byte {error.start + 1}"
            raise Problem(400, "invalid_field", detail) from None
        self._add_field(field_name(self._field), text)
        self._value = None

    def _add_field(self, name: str, text: str) -> None:
        self.fields.append((name, text))

    def _end(self) -> None:
        self._ended = True


def invalid_form(reason: str) -> Problem:
    """The answer to a form that cannot be read."""
    return Problem(400, "invalid_form", f"The form cannot be read: {reason}")


def no_file(reason: str) -> Problem:
    """The answer to a form without a file where one must be."""
    return Problem(400, "no_file", f"No file: {reason}. {HOW_TO_SEND}")
