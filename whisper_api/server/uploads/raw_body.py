"""A recording as the body itself (``curl --data-binary @call.wav -H 'Content-Type: audio/wav'``), without a form.

The fields that a form would have stand in the query.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.multipart import HOW_TO_SEND, Limits, no_file, too_large
from whisper_api.server.uploads.part_headers import display_name, file_name_in, parameters_of

__all__ = ["FILE_NAME", "HOW_TO_SEND_RAW", "MEDIA_TYPES", "RawReader", "is_audio"]

# As they are described; application/ogg is what some systems call audio/ogg.
MEDIA_TYPES = ("audio/*", "video/*", "application/octet-stream")
KINDS = ("audio/", "video/", "application/octet-stream", "application/ogg")
FILE_NAME = "filename"
HOW_TO_SEND_RAW = (
    f"{HOW_TO_SEND}, or as the body with a Content-Type of its own "
    "(curl --data-binary @call.wav -H 'Content-Type: audio/wav')"
)


def is_audio(media_type: str) -> bool:
    """Whether a body of this media type is a recording itself."""
    return media_type.startswith(KINDS)


class RawReader:
    """Takes a body that is one file.

    Args:
        request: its query has the fields, and a header or the query the name of the file.
        limits: what the upload may take.
        write: called with the file's bytes, in order.
        stated_bytes: of the whole body, if its header says; for the message when it is too large.

    Attributes:
        fields: name and value of each query parameter, in order, without the name of the file.
        file_name: the client's name for the file, fit for display.
        size: bytes so far.

    Raises:
        Problem: 400, the query has too many fields.
    """

    def __init__(
        self,
        request: Request,
        limits: Limits,
        write: Callable[[bytes], None],
        stated_bytes: int | None = None,
    ) -> None:
        query = request.query_params.multi_items()
        self.fields = [(name, value) for name, value in query if name != FILE_NAME]
        if len(self.fields) > limits.max_fields:
            raise Problem(400, "invalid_query", f"The query has more than {limits.max_fields} fields")
        self.file_name = _file_name(request)
        self.size = 0
        self._limits = limits
        self._write = write
        self._stated_bytes = stated_bytes

    def feed(self, data: bytes) -> None:
        """Take some more of the body.

        Raises:
            Problem: 413, the file is too large.
        """
        self.size += len(data)
        if self.size > self._limits.max_file_size:
            raise too_large(max(self.size, self._stated_bytes or 0), self._limits.max_file_size)
        self._write(data)

    def finish(self) -> None:
        """Say that the body has ended.

        Raises:
            Problem: 400, there was none.
        """
        if not self.size:
            raise no_file("the body is empty")


def _file_name(request: Request) -> str | None:
    """From the query, or from Content-Disposition (RFC 6266)."""
    _, parameters = parameters_of(request.headers.get("content-disposition", ""))
    return display_name(request.query_params.get(FILE_NAME) or file_name_in(parameters) or "")
