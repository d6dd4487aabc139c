"""Known speakers: names, and recordings of how they speak, sent as data URLs in a form's fields."""

from __future__ import annotations

import base64
import binascii
import io
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from whisper_api.errors import AudioTooLong, InvalidAudio, InvalidOption
from whisper_api.schema import SPEAKER_LABEL
from whisper_api.server.uploads.storing import storage_errors
from whisper_api.server.uploads.urlencoded import unquoted
from whisper_api.store.database import sync_directory

__all__ = ["MAX_KNOWN_SPEAKERS", "NAMES_FIELD", "REFERENCES_FIELD", "write_known_speakers"]

NAMES_FIELD = "known_speaker_names"
REFERENCES_FIELD = "known_speaker_references"

MAX_KNOWN_SPEAKERS = 4
MAX_NAME_CHARACTERS = 255
MIN_SECONDS, MAX_SECONDS = 2.0, 10.0
# What encoders add at the ends of a recording.
SECONDS_OF_PADDING = 0.15
# Decoding ends here: the rest of a longer recording is not needed to refuse it.
STOP_AT = MAX_SECONDS + 0.5
# How the engine calls speakers that nobody has named.


def write_known_speakers(names: Sequence[str], references: Sequence[str], directory: Path) -> tuple[str, ...]:
    """Look at what is known of the speakers, and put the recordings to where their job finds them.

    Args:
        names: of up to four speakers.
        references: for each name, in the same order, a recording of 2 to 10 seconds as a data URL.
        directory: of the upload. Recording number N, from 0, becomes the file ``speaker-N`` in it, which a power cut
            no longer undoes.

    Returns:
        The names, without spaces around them; nothing when none were given.

    Raises:
        InvalidOption: names or recordings cannot be used; says which and why.
        StorageFull, StorageError: the recordings cannot be written.
    """
    checked = _checked(names)
    if len(references) != len(checked):
        raise InvalidOption(
            REFERENCES_FIELD,
            f"expected one recording for each of {NAMES_FIELD}, in the same order; there are {len(checked)} names "
            f"and {len(references)} recordings",
        )
    if not checked:
        return ()
    recordings = [_recording(number, reference) for number, reference in enumerate(references)]
    with storage_errors():
        for number, recording in enumerate(recordings):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            with os.fdopen(os.open(directory / f"speaker-{number}", flags, 0o600), "wb") as file:
                file.write(recording)
                file.flush()
                os.fsync(file.fileno())
        sync_directory(directory)
    return checked


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > MAX_KNOWN_SPEAKERS:
        raise InvalidOption(NAMES_FIELD, f"expected at most {MAX_KNOWN_SPEAKERS} names")
    # Before anything else: of a long row of combining characters, normalizing takes for ever, and nothing runs beside.
    if any(not 1 <= len(name.strip()) <= MAX_NAME_CHARACTERS for name in names):
        raise InvalidOption(NAMES_FIELD, f"expected names of 1 to {MAX_NAME_CHARACTERS} characters")
    checked = tuple(unicodedata.normalize("NFC", name).strip() for name in names)
    for name in checked:
        # What would break a line of subtitles, or begin one of them.
        if "-->" in name or any(unicodedata.category(each)[0] == "C" or each in "\u2028\u2029" for each in name):
            raise InvalidOption(NAMES_FIELD, "expected names without control characters, line breaks and arrows")
        if SPEAKER_LABEL.fullmatch(name.upper()):
            raise InvalidOption(NAMES_FIELD, "names like SPEAKER_00 are those of speakers that nobody knows")
    if len(set(checked)) != len(checked):
        raise InvalidOption(NAMES_FIELD, "expected each name once")
    return checked


def _recording(number: int, url: str) -> bytes:
    """The file in a data URL, when it is a recording of the right length."""
    recording = _content(number, url)
    seconds = _length(number, recording)
    if not MIN_SECONDS - SECONDS_OF_PADDING <= seconds <= MAX_SECONDS + SECONDS_OF_PADDING:
        length = f"{seconds:.1f}" if seconds < STOP_AT else f"more than {MAX_SECONDS:g}"
        raise InvalidOption(
            REFERENCES_FIELD,
            f"expected recordings of {MIN_SECONDS:g} to {MAX_SECONDS:g} seconds; number {number + 1} has {length}",
        )
    return recording


def _content(number: int, url: str) -> bytes:
    head, comma, data = url.strip().partition(",")
    scheme, _, rest = head.partition(":")
    if scheme.lower() != "data" or not comma:
        raise InvalidOption(
            REFERENCES_FIELD, f"expected data URLs (data:audio/wav;base64,...); number {number + 1} is none"
        )
    content = unquoted(data.encode())
    if rest.rpartition(";")[2].strip().lower() != "base64":
        return content
    try:
        # Some write it in lines, and some leave out the padding.
        packed = content.translate(None, b" \t\r\n\f\v").rstrip(b"=")
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        raise InvalidOption(REFERENCES_FIELD, f"the data of number {number + 1} is not base64") from None


def _length(number: int, recording: bytes) -> float:
    """Seconds of it, counted and not as its header says; no more than ``STOP_AT``."""
    from whisper_api.engine.audio.decode import decode

    file = io.BytesIO(recording)
    # So that the message does not call it a file that nobody has sent.
    file.name = f"recording {number + 1}"
    try:
        return decode(file, max_seconds=STOP_AT).duration
    except AudioTooLong:
        return STOP_AT
    except InvalidAudio as error:
        raise InvalidOption(REFERENCES_FIELD, str(error)) from None
