"""A form without a file (``application/x-www-form-urlencoded``), which can only say where the audio is."""

from __future__ import annotations

from urllib.parse import parse_qsl

from whisper_api.server.intake.multipart import HOW_TO_SEND, Limits
from whisper_api.server.problems import Problem

__all__ = ["MEDIA_TYPE", "FieldsReader"]

MEDIA_TYPE = "application/x-www-form-urlencoded"


class FieldsReader:
    """Takes the bytes of one form, in pieces of any size, and gives its fields.

    Args:
        limits: what the form may take.

    Attributes:
        fields: name and value of each, in order; once it is finished.
    """

    def __init__(self, limits: Limits) -> None:
        self.fields: list[tuple[str, str]] = []
        self._limits = limits
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Take some more of the body.

        Raises:
            Problem: it is more than it may be.
        """
        self._data += data
        if len(self._data) > self._limits.max_field_bytes:
            raise Problem(
                413, "form_too_large", f"A form without a file may have {self._limits.max_field_bytes} bytes at most"
            )

    def finish(self) -> None:
        """Say that the body has ended.

        Raises:
            Problem: it cannot be read, or names no address to fetch.
        """
        try:
            text = self._data.decode()
            self.fields = parse_qsl(text, True, errors="strict", max_num_fields=self._limits.max_fields)
        except UnicodeDecodeError:
            raise Problem(400, "invalid_form", "The form cannot be read: it is not UTF-8 text") from None
        except ValueError:
            raise Problem(
                400, "invalid_form", f"The form cannot be read: it has more than {self._limits.max_fields} fields"
            ) from None
        if not any(name == "url" and value.strip() for name, value in self.fields):
            raise Problem(400, "not_multipart", f"Not a form with a file. {HOW_TO_SEND}")
