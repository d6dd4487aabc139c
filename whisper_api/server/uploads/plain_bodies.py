"""Reads bodies without parts: a urlencoded form without a file, and a recording without a form."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads import incoming
from whisper_api.server.uploads.part_headers import file_name_in, parameters_of

URLENCODED_TYPE = "application/x-www-form-urlencoded"
UNQUOTED_TOGETHER = 64 << 10

# The media types of recordings in the description of the API; some systems call audio/ogg application/ogg.
RAW_TYPES = ("audio/*", "video/*", "application/octet-stream")
RAW_PREFIXES = ("audio/", "video/", "application/octet-stream", "application/ogg")
FILE_NAME = "filename"
HOW_TO_SEND_RAW = (
    f"{incoming.HOW_TO_SEND}, or as the body with a Content-Type of its own "
    "(curl --data-binary @call.wav -H 'Content-Type: audio/wav')"
)


class UrlencodedReader:
    """Reads a form without a file (``application/x-www-form-urlencoded``), which can only name URLs.

    Args:
        form: collects the fields.
        how_to_send: advice for a client that sends a recording with this media type.
    """

    def __init__(self, form: incoming.IncomingForm, how_to_send: str = incoming.HOW_TO_SEND) -> None:
        self._form = form
        self._limits = form.limits
        self._how_to_send = how_to_send
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Read one more piece of the body.

        Raises:
            Problem: the body is too large.
        """
        self._data += data
        if len(self._data) > self._limits.max_field_bytes:
            most = self._limits.max_field_bytes
            detail = f"A form without a file may have {most} bytes at most. {self._how_to_send}"
            raise Problem(413, "form_too_large", detail)

    def finish(self) -> None:
        """End the body, and add its fields to the form.

        Raises:
            Problem: the body cannot be read, or names no URL.
        """
        most = self._limits.max_fields
        # Counted before the body is split, because each field takes memory.
        if self._data.count(b"&") >= most + self._limits.max_files:
            raise self._invalid(f"it has more than {most + self._limits.max_files} fields")
        try:
            fields = [_field(bytes(field)) for field in self._data.split(b"&") if field]
        except UnicodeDecodeError:
            raise self._invalid("it is not UTF-8 text") from None
        urls = [value for name, value in fields if name in (incoming.URL_FIELD, incoming.FILE_URL_FIELD)]
        if len(fields) - len(urls) > most:
            raise self._invalid(f"it has more than {most} fields")
        if not any(url.strip() for url in urls):
            raise Problem(400, "not_multipart", f"Not a form with a file. {self._how_to_send}")
        for name, value in fields:
            self._form.add_field(name, value)

    def _invalid(self, reason: str) -> Problem:
        # curl --data-binary without a Content-Type sends a recording with this media type.
        return incoming.invalid_form(f"{reason}. {self._how_to_send}")


class RawReader:
    """Reads a recording that is the body itself (``curl --data-binary @call.wav -H 'Content-Type: audio/wav'``).

    The query contains the fields. The query or Content-Disposition (RFC 6266) contains the name of the file.

    Args:
        request: the request with the body.
        form: collects the fields and the file.

    Raises:
        Problem: 400, the query has too many fields.
    """

    def __init__(self, request: Request, form: incoming.IncomingForm) -> None:
        query = request.query_params.multi_items()
        fields = [(name, value) for name, value in query if name != FILE_NAME]
        if len(fields) > form.limits.max_fields:
            raise Problem(400, "invalid_query", f"The query has more than {form.limits.max_fields} fields")
        for name, value in fields:
            form.add_field(name, value)
        _, parameters = parameters_of(request.headers.get("content-disposition", ""))
        form.begin_file(incoming.FILE_FIELD, request.query_params.get(FILE_NAME) or file_name_in(parameters) or "")
        self._form = form

    def feed(self, data: bytes) -> None:
        """Read one more piece of the body.

        Raises:
            Problem: 413, the file is too large.
        """
        self._form.write(data)

    def finish(self) -> None:
        """End the body.

        Raises:
            Problem: 400, the body is empty.
        """
        if not self._form.file_bytes:
            raise incoming.no_file("the body is empty")
        self._form.end_file()


def is_audio(media_type: str) -> bool:
    """Whether a body of this media type is a recording."""
    return media_type.startswith(RAW_PREFIXES)


def unquoted(data: bytes) -> bytes:
    """Decode percent-encoded bytes of any length.

    The library makes several objects of every ``%``, more than a gigabyte for 16 MB. Decoding piece by piece bounds
    the memory.
    """
    plain = bytearray()
    start = 0
    while start < len(data):
        end = start + UNQUOTED_TOGETHER
        # A code at the end of the piece belongs to the next piece.
        cut = data.rfind(b"%", end - 2, end)
        end = end if cut == -1 else cut
        plain += unquote_to_bytes(data[start:end])
        start = end
    return bytes(plain)


def _field(field: bytes) -> tuple[str, str]:
    name, _, value = (unquoted(part).decode() for part in field.replace(b"+", b" ").partition(b"="))
    return name, value
