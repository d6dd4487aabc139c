"""Reads a ``multipart/form-data`` body (RFC 7578) piece by piece."""

from __future__ import annotations

import logging
import re
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.incoming import HOW_TO_SEND, Limits, invalid_form
from whisper_api.server.uploads.part_headers import file_name_in, parameters_of, shown, text_of, unescaped

# The parser warns about mistakes of clients, which are not for the log: the response reports them to the client.
parser_log = logging.getLogger(f"{__name__}.parser")
parser_log.setLevel(logging.ERROR)

MAX_PART_HEADERS = 16

# RFC 2046 allows 70 characters of fewer kinds; some clients send more.
_BOUNDARY = re.compile(r"[!-~](?:[ -~]{0,198}[!-~])?")
# Charsets of text parts that are not UTF-8 (RFC 7578, section 5.1.2), by the names that clients use.
_CHARSETS = ("ISO-8859-1", "WINDOWS-1252")


def boundary_of(content_type: str, how_to_send: str = HOW_TO_SEND) -> bytes:
    """The boundary in a request's Content-Type.

    Args:
        content_type: the header of the request.
        how_to_send: advice for a client that sends another media type.

    Raises:
        Problem: the type is not ``multipart/form-data``, or has no usable boundary.
    """
    kind, parameters = parameters_of(content_type)
    if kind != "multipart/form-data":
        raise Problem(400, "not_multipart", f"Not a form. {how_to_send}")
    boundary = parameters.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        detail = f"The Content-Type names no usable boundary between the parts of the form. {how_to_send}"
        raise Problem(400, "not_multipart", detail)
    return boundary.encode("ascii")


class PartsForm(Protocol):
    """Collects the parts of a form, as :class:`~whisper_api.server.uploads.incoming.IncomingForm` does.

    Attributes:
        limits: the limits of the form.
        file_bytes: bytes of all files so far.
    """

    limits: Limits
    file_bytes: int

    def add_field(self, name: str, value: str) -> None: ...
    def begin_file(self, field: str, name: str, *, is_text: bool = False) -> None: ...
    def write(self, data: bytes | memoryview) -> None: ...
    def end_file(self) -> None: ...


class MultipartReader:
    """Reads one body, in pieces of any size.

    Args:
        boundary: the boundary between the parts.
        form: collects the fields and files.
    """

    def __init__(self, boundary: bytes, form: PartsForm) -> None:
        self._form = form
        self._limits = form.limits
        self._opening = b"--" + boundary
        self._head: bytes | None = b""
        self._received = self._field_bytes = self._header_bytes = 0
        self._ended = False
        self._header_name = self._header_value = b""
        self._headers: dict[str, str] = {}
        self._field = ""
        self._charset = "UTF-8"
        # The text of the current field; None in a file.
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
            max_header_size=self._limits.max_header_bytes,
        )
        self._parser.logger = parser_log

    def feed(self, data: bytes) -> None:
        """Read one more piece of the body.

        Raises:
            Problem: the form is broken or too large. The reader cannot be used after that.
        """
        self._received += len(data)
        if self._head is not None:
            # The parser tolerates some bytes before the first boundary, depending on the pieces. Only line ends may
            # precede the boundary here.
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
            # The parser's own message has a position within this piece, which means nothing to the client.
            raise invalid_form("a boundary or the header of a part is malformed") from error
        self._check_other_bytes()

    def finish(self) -> None:
        """End the body.

        Raises:
            Problem: the form has not ended.
        """
        if not self._ended:
            raise invalid_form("it ends before its last boundary")

    def _check_other_bytes(self) -> None:
        """Bound the bytes outside of the parts, which no other limit counts."""
        if self._received - self._form.file_bytes - self._field_bytes > self._limits.max_other_bytes:
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
        if file_name is not None or self._field in self._limits.file_fields:
            is_text = file_name is None and (not content_type or content_type.startswith("text/"))
            self._form.begin_file(self._field, file_name or "", is_text=is_text)
            return
        charset = type_parameters.get("charset", "").upper()
        self._charset = charset if charset in _CHARSETS else "UTF-8"
        self._value = bytearray()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is None:
            self._form.write(memoryview(data)[start:end])
            return
        self._field_bytes += end - start
        if self._field_bytes > self._limits.max_field_bytes:
            raise invalid_form(f"its fields besides the file have more than {self._limits.max_field_bytes} bytes")
        self._value += data[start:end]

    def _part_end(self) -> None:
        if self._value is None:
            self._form.end_file()
            return
        try:
            text = self._value.decode(self._charset)
        except UnicodeDecodeError as error:
            detail = f"The field {shown(self._field)} is not {self._charset} text, at byte {error.start + 1}"
            raise Problem(400, "invalid_field", detail) from None
        self._value = None
        self._form.add_field(self._field, text)

    def _end(self) -> None:
        self._ended = True
