"""Samples without a header become a WAV file, however they are cut."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.server.uploads.storing import HEADER_BYTES, HeaderlessFile, wav_header


def stored(directory: Path, pieces: list[bytes]) -> bytes:
    file = HeaderlessFile(directory)
    for piece in pieces:
        file.write(memoryview(piece))
    file.commit()
    assert file.path.stat().st_size == file.size
    return file.path.read_bytes()


@given(pieces=st.lists(st.binary(max_size=40), max_size=6))
def test_samples_get_a_header_with_their_length(pieces: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    samples = b"".join(pieces)
    whole = stored(tmp_path_factory.mktemp("headerless") / "a", pieces)
    assert whole[HEADER_BYTES:] == samples
    with wave.open(io.BytesIO(whole)) as read:
        assert (read.getnchannels(), read.getsampwidth(), read.getframerate()) == (1, 2, 16_000)
        assert read.getnframes() == len(samples) // 2


@pytest.mark.parametrize("cut", [1, 4, 11, 12, 44, 60])
def test_a_wav_file_is_kept_unchanged(tmp_path: Path, cut: int) -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(8_000)
        out.writeframes(bytes(400))
    wav = file.getvalue()
    assert stored(tmp_path / "a", [wav[:cut], wav[cut:]]) == wav


def test_a_length_beyond_the_format_is_left_unknown() -> None:
    header = wav_header(5 << 30)
    assert len(header) == HEADER_BYTES
    assert struct.unpack("<I", header[-4:]) == (0xFFFFFFFF,)
