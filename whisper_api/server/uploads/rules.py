"""The rules of a route for its uploads."""

from __future__ import annotations

from dataclasses import dataclass

from whisper_api.config import Config
from whisper_api.server.uploads.incoming import FILE_FIELD, Limits
from whisper_api.server.uploads.pace import pace_rules

# Ten seconds of a known speaker are two million characters as a data URL, and a form may have four speakers.
MAX_FIELD_BYTES = 16 << 20
MAX_HEADER_BYTES = 32 << 10
# A file name of 255 characters may have four bytes for each character, and a header may contain it twice.
FILE_HEADER_BYTES = 2 << 10


@dataclass(frozen=True)
class UploadRules:
    """The rules of a route for its uploads.

    Attributes:
        purpose: part of the request's identity: the same upload for another purpose is another request.
        raw: whether the body may be the recording itself, with the fields in the query.
        json: whether the body may be JSON.
        file_fields: names of the fields that may contain the file.
        headerless: whether the file is samples without a header, as
            :class:`~whisper_api.server.uploads.storing.HeaderlessFile` stores them.
        max_files: most files of one request.
        join, not_to_join: as in :class:`~whisper_api.jobs.service.Submission`.
    """

    purpose: str = ""
    raw: bool = False
    json: bool = False
    file_fields: tuple[str, ...] = (FILE_FIELD,)
    headerless: bool = False
    max_files: int = 1
    join: bool = False
    not_to_join: frozenset[str] = frozenset()

    @property
    def takes_many(self) -> bool:
        """Whether each file is accepted or refused on its own."""
        return self.max_files > 1

    def limits(self, config: Config) -> Limits:
        """The limits of one upload."""
        return Limits(
            max_file_size=config.max_file_size,
            pace=pace_rules(config.timeout_seconds, config.min_upload_bytes_per_second, config.upload_timeout_seconds),
            max_field_bytes=MAX_FIELD_BYTES,
            max_header_bytes=MAX_HEADER_BYTES + (self.max_files * FILE_HEADER_BYTES if self.takes_many else 0),
            file_fields=self.file_fields,
            max_files=self.max_files,
        )
