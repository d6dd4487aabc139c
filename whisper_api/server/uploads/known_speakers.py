"""Known speakers: names and recordings of voices, which a form contains as data URLs."""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from whisper_api.errors import AudioTooLong, InvalidAudio, InvalidOption
from whisper_api.server.uploads.plain_bodies import unquoted
from whisper_api.server.uploads.storing import storage_errors
from whisper_api.store.database import sync_directory
from whisper_api.voices import checked_name

NAMES_FIELD = "known_speaker_names"
REFERENCES_FIELD = "known_speaker_references"

MAX_KNOWN_SPEAKERS = 4
MIN_SECONDS, MAX_SECONDS = 2.0, 10.0
# Encoders add this much at the ends of a recording.
SECONDS_OF_PADDING = 0.15
# Decoding ends here, because a longer recording is refused anyway.
STOP_AT = MAX_SECONDS + 0.5


class KnownSpeaker(msgspec.Struct, frozen=True):
    """A speaker that the client names.

    Attributes:
        name: name of the speaker, without surrounding spaces.
        recording: audio file with 2 to 10 seconds of this speaker.
    """

    name: str
    recording: bytes

    def __repr__(self) -> str:
        return "KnownSpeaker(...)"


def read_known_speakers(names: Sequence[str], references: Sequence[str]) -> tuple[KnownSpeaker, ...]:
    """Check names and recordings. Decodes the recordings.

    Args:
        names: names of up to four speakers.
        references: for each name, in the same order, a recording of 2 to 10 seconds as a data URL.

    Raises:
        InvalidOption: names or recordings cannot be used; says which and why.
    """
    checked = _checked(names)
    if len(references) != len(checked):
        raise InvalidOption(
            REFERENCES_FIELD,
            f"expected one recording for each of {NAMES_FIELD}, in the same order; there are {len(checked)} names "
            f"and {len(references)} recordings",
        )
    recordings = checked_recordings(REFERENCES_FIELD, references)
    return tuple(KnownSpeaker(name, recording) for name, recording in zip(checked, recordings, strict=True))


def write_recordings(speakers: Sequence[KnownSpeaker], directory: Path) -> None:
    """Write recordings to the directory of their job, where they survive a power cut.

    Args:
        speakers: recording number N, from 0, becomes the file ``speaker-N``.
        directory: directory of the upload.

    Raises:
        StorageFull, StorageError: the recordings cannot be written.
    """
    if not speakers:
        return
    with storage_errors():
        for number, speaker in enumerate(speakers):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(directory / f"speaker-{number}", flags, 0o600), "wb") as file:
                file.write(speaker.recording)
                file.flush()
                os.fsync(file.fileno())
        sync_directory(directory)


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > MAX_KNOWN_SPEAKERS:
        raise InvalidOption(NAMES_FIELD, f"expected at most {MAX_KNOWN_SPEAKERS} names")
    checked = tuple(checked_name(NAMES_FIELD, name) for name in names)
    if len(set(checked)) != len(checked):
        raise InvalidOption(NAMES_FIELD, "expected each name once")
    return checked


def checked_recordings(field: str, urls: Sequence[str], files: Sequence[bytes] = ()) -> list[bytes]:
    """Recordings of one speaker each: those in data URLs, then the files. Decodes them to check their lengths.

    Args:
        field: name of the form's field, for the error.
        urls: the data URLs.
        files: audio files.

    Raises:
        InvalidOption: a text is no data URL; or a file cannot be decoded, or is shorter than 2 seconds or longer than
            10.
    """
    recordings = [*(_file_in(field, number, url) for number, url in enumerate(urls, start=1)), *files]
    for number, recording in enumerate(recordings, start=1):
        seconds = _length(field, number, recording)
        if not MIN_SECONDS - SECONDS_OF_PADDING <= seconds <= MAX_SECONDS + SECONDS_OF_PADDING:
            length = f"{seconds:.1f}" if seconds < STOP_AT else f"more than {MAX_SECONDS:g}"
            expected = f"expected recordings of {MIN_SECONDS:g} to {MAX_SECONDS:g} seconds"
            raise InvalidOption(field, f"{expected}; number {number} has {length}")
    return recordings


def _file_in(field: str, number: int, url: str) -> bytes:
    """The file in a data URL (RFC 2397)."""
    head, comma, data = url.strip().partition(",")
    scheme, _, rest = head.partition(":")
    if scheme.lower() != "data" or not comma:
        raise InvalidOption(field, f"expected data URLs (data:audio/wav;base64,...); number {number} is not a data URL")
    content = unquoted(data.encode())
    if rest.rpartition(";")[2].strip().lower() != "base64":
        return content
    try:
        # Some clients write base64 in lines, and some leave out the padding.
        packed = content.translate(None, b" \t\r\n\f\v").rstrip(b"=")
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        raise InvalidOption(field, f"the data of number {number} is not base64") from None


def _length(field: str, number: int, recording: bytes) -> float:
    """Seconds of a recording, counted by decoding because the header may be wrong; at most ``STOP_AT``."""
    from whisper_api.engine.audio.decode import decode

    file = io.BytesIO(recording)
    # Error messages contain this name.
    file.name = f"recording {number}"
    try:
        return decode(file, max_seconds=STOP_AT).duration
    except AudioTooLong:
        return STOP_AT
    except InvalidAudio as error:
        raise InvalidOption(field, str(error)) from None
