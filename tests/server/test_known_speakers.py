"""Known speakers: what is taken, and what becomes of it."""

from __future__ import annotations

import base64
import io
import os
import unicodedata
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pytest

from whisper_api.errors import InvalidOption, StorageFull
from whisper_api.server.uploads.known_speakers import read_known_speakers, write_recordings

Cut = Callable[[float, float], bytes]


def write_known_speakers(names: list[str], references: list[str], directory: Path) -> tuple[str, ...]:
    speakers = read_known_speakers(names, references)
    write_recordings(speakers, directory)
    return tuple(speaker.name for speaker in speakers)


def data_url(recording: bytes) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(recording).decode()}"


def test_recordings_are_stored_in_the_directory_of_the_upload(tmp_path: Path, cut: Cut) -> None:
    two, ten = cut(10.0, 2.0), cut(10.0, 10.0)
    loose = f"data:audio/wav;base64,{base64.encodebytes(ten).decode().rstrip().rstrip('=')}"
    assert write_known_speakers([" Ann ", "Ärzte"], [data_url(two), loose], tmp_path) == ("Ann", "Ärzte")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"speaker-0": two, "speaker-1": ten}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_data_without_base64_is_kept_unchanged(tmp_path: Path, cut: Cut) -> None:
    recording = cut(10.0, 2.0)
    write_known_speakers(["Ann"], [f"DATA:audio/wav,{quote(recording)}"], tmp_path)
    assert (tmp_path / "speaker-0").read_bytes() == recording


def test_a_disk_that_is_full_is_named(tmp_path: Path, cut: Cut, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull, match="no space is left"):
        write_known_speakers(["Ann"], [data_url(cut(10.0, 2.0))], tmp_path)


def test_a_name_that_is_too_long_is_not_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unicode normalization takes quadratic time on combining characters and blocks all threads."""
    normalize = unicodedata.normalize

    def bounded(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
        assert len(text) <= 255
        return normalize(form, text)

    monkeypatch.setattr(unicodedata, "normalize", bounded)
    with pytest.raises(InvalidOption, match="1 to 255"):
        write_known_speakers(["a" + "\u0301\u0323" * 1000], ["data:,"], tmp_path)


def test_no_names_and_no_recordings_are_no_known_speakers(tmp_path: Path) -> None:
    assert write_known_speakers([], [], tmp_path) == ()
    assert not list(tmp_path.iterdir())


def test_invalid_known_speakers_are_refused_and_leave_no_files(tmp_path: Path, cut: Cut) -> None:
    good = data_url(cut(10.0, 3.0))
    for names, references, field, reason in (
        (["Ann"], [], "references", "1 names and 0 recordings"),
        ([], [good], "references", "0 names and 1 recordings"),
        (["a", "b", "c", "d", "e"], [good] * 5, "names", "at most 4"),
        (["Ann", "Ann"], [good] * 2, "names", "once"),
        (["Ann", "Ann "], [good] * 2, "names", "once"),
        ([" "], [good], "names", "1 to 255"),
        (["x" * 256], [good], "names", "1 to 255"),
        (["a\nb"], [good], "names", "control"),
        (["a\u2028b"], [good], "names", "line breaks"),
        (["a --> b"], [good], "names", "arrows"),
        (["speaker_00"], [good], "names", "SPEAKER_00"),
        (["Ann"], ["somewhere.wav"], "references", "data URLs"),
        (["Ann"], ["data:audio/wav;base64,***"], "references", "not base64"),
        (["Ann", "Bob"], [good, data_url(b"no sound")], "references", "recording 2"),
        (["Ann"], [data_url(cut(10.0, 1.0))], "references", "number 1 has 1.0"),
        (["Ann"], [data_url(cut(10.0, 11.0))], "references", "number 1 has more than 10"),
        (["Ann"], [data_url(_silence(300))], "references", "number 1 has more than 10"),
    ):
        with pytest.raises(InvalidOption) as caught:
            write_known_speakers(names, references, tmp_path)
        assert caught.value.field == f"known_speaker_{field}"
        assert reason in str(caught.value)
        assert not list(tmp_path.iterdir())


def _silence(seconds: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 1, 8000, 0, "NONE", ""))
        out.writeframes(b"\x80" * 8000 * seconds)
    return file.getvalue()
