"""One ``multipart/form-data`` body (RFC 7578), parsed as it comes: fields into memory, the file to where it belongs."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from whisper_api.server.problems import Problem

__all__ = ["FILE_FIELD", "FormReader", "Limits", "boundary_of", "display_name", "shown", "too_large"]

# The parser warns of what a client did wrong, which the client is told.
parser_log = logging.getLogger(f"{__name__}.parser")
parser_log.setLevel(logging.ERROR)

FILE_FIELD = "file"
MAX_NAME_CHARACTERS = 255
MAX_PART_HEADERS = 16
HOW_TO_SEND = f'Send the audio as multipart/form-data in the field "{FILE_FIELD}" (curl -F {FILE_FIELD}=@call.wav)'

# RFC 2046 allows 70 characters of fewer kinds; clients are not that exact.
_BOUNDARY = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")
_PARAMETER = re.compile(
    r""";[ \t]*(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*
        (?:"(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)"|(?P<bare>[^;]*))""",
    re.VERBOSE | re.DOTALL,
)
# What browsers write for the three characters that would end a quoted name (WHATWG, multipart form data).
_ESCAPED = {"%0D": "\r", "%0A": "\n", "%22": '"'}
# They turn the reading direction, so that a name looks like another.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Text parts may say that they are not UTF-8 (RFC 7578, section 5.1.2); these are what clients say.
_CHARSETS = ("ISO-8859-1", "WINDOWS-1252")


@dataclass(frozen=True)
class Limits:
    """What an upload may take.

    Attributes:
        max_file_size: bytes of the file.
        timeout_seconds: without a byte, after which a sender is cut off.
        max_fields: besides the file.
        max_field_bytes: of all fields together.
        max_header_bytes: of the headers of all parts together.
    """

    max_file_size: int
    timeout_seconds: float
    max_fields: int = 100
    max_field_bytes: int = 1 << 20
    max_header_bytes: int = 32 << 10

    @property
    def max_other_bytes(self) -> int:
        """What a body may have besides the contents of its parts: headers, boundaries, padding."""
        return 2 * self.max_header_bytes + 512 * (self.max_fields + 2)


def boundary_of(content_type: str) -> bytes:
    """The boundary that a request's Content-Type names.

    Raises:
        Problem: it is not ``multipart/form-data``, or without a usable boundary.
    """
    kind, parameters = _parameters(content_type)
    if kind != "multipart/form-data":
        raise Problem(400, "not_multipart", f"Not a form. {HOW_TO_SEND}")
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise Problem(
            400,
            "not_multipart",
            f"The Content-Type names no usable boundary between the parts of the form. {HOW_TO_SEND}",
        )
    return boundary.encode("ascii")


def display_name(name: str) -> str | None:
    """A client's name for its file, to be shown to people: without directories and control characters, not too long."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(c for c in name if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in _DIRECTIONS)
    name = name.strip()[:MAX_NAME_CHARACTERS].strip()
    return name if name.strip(".") else None


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
                raise _invalid("it does not begin with the boundary that the Content-Type names")
            self._head = None
        try:
            self._parser.write(data)
        except FormParserError as error:
            # Not in the parser's words: they count from where the piece at hand begins.
            raise _invalid("a boundary or the header of a part is malformed") from error
        self._check_other_bytes()

    def finish(self) -> None:
        """Say that the body has ended.

        Raises:
            Problem: the form has not ended, or holds no file.
        """
        if not self._ended:
            raise _invalid("it ends before its last boundary")
        if not self._has_file or not (self.size or self._named):
            raise _no_file("no part holds one")

    def _check_other_bytes(self) -> None:
        """Bytes that belong to nothing cost time, and would pass every other limit."""
        if self._received - self.size - self._field_bytes > self._limits.max_other_bytes:
            raise _invalid("there is too much outside of its parts")

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
            raise _invalid(f"the headers of its parts have more than {self._limits.max_header_bytes} bytes")

    def _header_end(self) -> None:
        name = self._header_name.decode("ascii").lower()
        if name in self._headers:
            raise _invalid(f"a part has two headers {shown(name)}")
        self._headers[name] = _text(self._header_value)
        self._header_name = self._header_value = b""

    def _headers_finished(self) -> None:
        kind, parameters = _parameters(self._headers.get("content-disposition", ""))
        if kind != "form-data" or "name" not in parameters:
            raise _invalid("a part has no name")
        encoding = self._headers.get("content-transfer-encoding", "binary").strip().lower()
        if encoding not in ("binary", "8bit", "7bit"):
            raise _invalid(f"Content-Transfer-Encoding {shown(encoding)} is not known; send the bytes as they are")
        content_type, type_parameters = _parameters(self._headers.get("content-type", ""))
        self._field = _unescaped(parameters["name"])
        file_name = _file_name(parameters)
        if file_name is None and self._field == FILE_FIELD and content_type and not content_type.startswith("text/"):
            file_name = ""
        if file_name is not None:
            self._begin_file(file_name)
            return
        if self._field == FILE_FIELD:
            raise _no_file(f'the field "{FILE_FIELD}" is text')
        if len(self.fields) >= self._limits.max_fields:
            raise _invalid(f"it has more than {self._limits.max_fields} fields")
        charset = type_parameters.get("charset", "").upper()
        self._charset = charset if charset in _CHARSETS else "UTF-8"
        self._value = bytearray()

    def _begin_file(self, file_name: str) -> None:
        if self._has_file:
            raise _invalid("it has more than one file")
        if self._field != FILE_FIELD:
            raise _no_file(f'the part {shown(self._field)} is a file, and only "{FILE_FIELD}" may be one')
        self._has_file = True
        self._named = bool(file_name)
        self.file_name = display_name(file_name)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self.size += end - start
            if self.size > self._limits.max_file_size:
                raise too_large(max(self.size, self._stated_bytes or 0), self._limits.max_file_size)
            self._write(memoryview(data)[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > self._limits.max_field_bytes:
            raise _invalid(f"its fields besides the file have more than {self._limits.max_field_bytes} bytes")
        self._value += data[start:end]

    def _part_end(self) -> None:
        if self._value is None:
            return
        try:
            text = self._value.decode(self._charset)
        except UnicodeDecodeError as error:
            detail = f"The field {shown(self._field)} is not {self._charset} text, at byte {error.start + 1}"
            raise Problem(400, "invalid_field", detail) from None
        self.fields.append((self._field, text))
        self._value = None

    def _end(self) -> None:
        self._ended = True


def _invalid(reason: str) -> Problem:
    return Problem(400, "invalid_form", f"The form cannot be read: {reason}")


def _no_file(reason: str) -> Problem:
    return Problem(400, "no_file", f"No file: {reason}. {HOW_TO_SEND}")


def shown(text: str) -> str:
    """What a client wrote, short and printable, for a message."""
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _parameters(header: str) -> tuple[str, dict[str, str]]:
    """What a header says first, and its parameters; of two with the same name, the first."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(header):
        quoted = match["quoted"]
        # No other backslash is an escape: some browsers send a Windows path as it is.
        value = match["bare"].strip(' \t"') if quoted is None else re.sub(r'\\(["\\])', r"\1", quoted)
        found.setdefault(match["name"].lower(), value)
    return header.partition(";")[0].strip().lower(), found


def _file_name(parameters: dict[str, str]) -> str | None:
    """The file name in a Content-Disposition, None when the part is no file.

    ``filename*`` (RFC 5987) has no place in a form (RFC 7578, section 4.2), but some clients send it.
    """
    charset, _, encoded = parameters.get("filename*", "").partition("'")
    if charset.lower() in ("utf-8", "iso-8859-1"):
        return unquote(encoded.partition("'")[2], charset, "replace")
    name = parameters.get("filename")
    return None if name is None else _unescaped(name)


def _unescaped(name: str) -> str:
    return re.sub("%0[AD]|%22", lambda match: _ESCAPED[match[0].upper()], name, flags=re.IGNORECASE)
