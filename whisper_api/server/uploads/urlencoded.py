"""A form without a file (``application/x-www-form-urlencoded``), which can only say where the audio is."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.multipart import HOW_TO_SEND, URL_FIELD, Limits, field_name, invalid_form

__all__ = ["MEDIA_TYPE", "FieldsReader", "unquoted"]

MEDIA_TYPE = "application/x-www-form-urlencoded"
UNQUOTED_TOGETHER = 64 << 10


class FieldsReader:
    """Takes the bytes of one form, in pieces of any size, and gives its fields.

    Args:
        limits: what the form may take.
        max_urls: how many addresses it may name, besides other fields.
        how_to_send: what to say to a client that sends something else under this media type.

    Attributes:
        fields: name and value of each, in order; once it is finished.
    """

    def __init__(self, limits: Limits, max_urls: int = 1, how_to_send: str = HOW_TO_SEND) -> None:
        self.fields: list[tuple[str, str]] = []
        self._limits = limits
        self._max_urls = max_urls
        self._how_to_send = how_to_send
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Take some more of the body.

        Raises:
            Problem: it is more than it may be.
        """
        self._data += data
        if len(self._data) > self._limits.max_field_bytes:
            most = self._limits.max_field_bytes
            detail = f"A form without a file may have {most} bytes at most. {self._how_to_send}"
            raise Problem(413, "form_too_large", detail)

    def finish(self) -> None:
        """Say that the body has ended.

        Raises:
            Problem: it cannot be read, or names no address to fetch.
        """
        most = self._limits.max_fields
        # Counted before anything is made of them.
        if self._data.count(b"&") >= most + self._max_urls:
            raise self._invalid(f"it has more than {most + self._max_urls} fields")
        try:
            self.fields = [_field(bytes(field)) for field in self._data.split(b"&") if field]
        except UnicodeDecodeError:
            raise self._invalid("it is not UTF-8 text") from None
        urls = [value for name, value in self.fields if name == URL_FIELD]
        if len(self.fields) - len(urls) > most:
            raise self._invalid(f"it has more than {most} fields")
        if not any(url.strip() for url in urls):
            raise Problem(400, "not_multipart", f"Not a form with a file. {self._how_to_send}")

    def _invalid(self, reason: str) -> Problem:
        # Under this media type, curl --data-binary sends a recording whose Content-Type is not given.
        return invalid_form(f"{reason}. {self._how_to_send}")


def unquoted(data: bytes) -> bytes:
    """Bytes of any length without their percent-encoding.

    The library makes several objects of every ``%``: of 16 MB, more than a gigabyte, but for doing it piece by piece.
    """
    plain = bytearray()
    start = 0
    while start < len(data):
        end = start + UNQUOTED_TOGETHER
        # What may be cut off of a code belongs to the next piece.
        cut = data.rfind(b"%", end - 2, end)
        end = end if cut == -1 else cut
        plain += unquote_to_bytes(data[start:end])
        start = end
    return bytes(plain)


def _field(field: bytes) -> tuple[str, str]:
    name, _, value = (unquoted(part).decode() for part in field.replace(b"+", b" ").partition(b"="))
    return field_name(name), value
