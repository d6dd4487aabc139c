"""Recordings for measurements, their reference texts, and word errors."""

from __future__ import annotations

import importlib.util
import json
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from measuring.sampling import Sample
from whisper_api.schema import SAMPLE_RATE

PAUSE_SECONDS = 0.75

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """A file within a recording.

    Attributes:
        name: name of the file.
        start: seconds from the recording's beginning.
        end: seconds from the recording's beginning.
        text: the reference text.
    """

    name: str
    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Recording:
    """Speech with its text.

    Attributes:
        path: WAV, 16 kHz, mono.
        seconds: length of the recording.
        pieces: in order of time.
    """

    path: Path
    seconds: float
    pieces: tuple[Piece, ...]

    @property
    def speech_seconds(self) -> float:
        """Length without the pauses between the pieces."""
        return sum(piece.end - piece.start for piece in self.pieces)


def recording(folder: Path, seconds: float, audio: Path | None = None) -> Recording:
    """Make a recording of English speech from whole files with pauses between them, repeated as often as they fit.

    Args:
        folder: folder of the recording.
        seconds: length of the recording; the end without room for another file is silent.
        audio: a directory with a ``manifest.json``, a list of {"file", "language", "text"}; None for no directory. The
            sample call of pyannote.audio is always included.
    """
    files = [(sample_call(), sample_call_text())]
    if audio is not None:
        items = json.loads((audio / "manifest.json").read_text(encoding="utf-8"))
        # A single language, because a job has one.
        files += [(audio / it["file"], it["text"]) for it in items if it.get("text") and it.get("language") == "en"]
    loaded = [(path.name, _samples(path), text) for path, text in files]
    total = round(seconds * SAMPLE_RATE)
    samples = np.zeros(total, np.float32)
    pieces: list[Piece] = []
    at, number, refused = 0, 0, 0
    while refused < len(loaded):
        name, piece, text = loaded[number % len(loaded)]
        number += 1
        if at + len(piece) > total:
            refused += 1
            continue
        refused = 0
        samples[at : at + len(piece)] = piece
        pieces.append(Piece(name, at / SAMPLE_RATE, (at + len(piece)) / SAMPLE_RATE, text))
        at += len(piece) + round(PAUSE_SECONDS * SAMPLE_RATE)
    if not pieces:
        return clip(folder, seconds)
    return Recording(write_wav(folder / f"recording-{seconds:.0f}.wav", samples), seconds, tuple(pieces))


def clip(folder: Path, seconds: float = 10.0, start: float = 14.25) -> Recording:
    """Cut a clip from the sample call. Turns that the clip does not contain as a whole become silence."""
    turns = [turn for turn in _turns() if start <= turn[0] and turn[1] <= start + seconds]
    said = " ".join(words for _, _, words in turns)
    last = max((end for _, end, _ in turns), default=start)
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    speech = _samples(sample_call())[round(start * SAMPLE_RATE) : round(last * SAMPLE_RATE)]
    samples[: len(speech)] = speech
    path = write_wav(folder / f"clip-{seconds:g}.wav", samples)
    return Recording(path, seconds, (Piece("sample.wav", 0.0, last - start, said),))


def sample_call() -> Path:
    """The telephone call of thirty seconds in pyannote.audio's package; .stm and .rttm files are in the same folder."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"


def sample_call_text() -> str:
    """The reference text of the sample call."""
    return " ".join(said for _, _, said in _turns())


def _turns() -> list[tuple[float, float, str]]:
    lines = sample_call().with_suffix(".stm").read_text(encoding="utf-8").splitlines()
    fields = [line.split(maxsplit=5) for line in lines if line.strip()]
    return [(float(start), float(end), said) for _, _, _, start, end, said in fields]


def _samples(path: Path) -> Floats:
    from faster_whisper.audio import decode_audio

    samples: Floats = decode_audio(str(path), sampling_rate=SAMPLE_RATE)
    return samples


def write_wav(path: Path, samples: Floats) -> Path:
    """Write samples at 16 kHz as a WAV file, and return its path."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes())
    return path


def heard(run: Sample, recording: Recording, model: Path | None = None) -> Sample:
    """Add the numbers of words, tokens and word errors to the values of a sample.

    Args:
        run: a sample with a text.
        recording: the recording of the run.
        model: a directory with Whisper's ``tokenizer.json``; None to count no tokens.

    Returns:
        The sample.
    """
    text = run.text or ""
    run.values["words"] = len(text.split())
    if model is not None:
        run.values["tokens"] = sum(len(ids) for ids in _tokens(model, text))
    errors, words, by_piece = word_errors(recording.pieces, text)
    run.values["word errors"] = errors
    run.values["WER %"] = 100 * errors / max(1, words)
    run.kept |= {"errors by file": by_piece, "reference words": words}
    return run


def _tokens(model: Path, text: str) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [tokenizer.encode(f" {line.strip()}", add_special_tokens=False).ids for line in text.splitlines()]


def word_errors(
    pieces: Sequence[Piece], text: str, normalize: Callable[[str], str] | None = None
) -> tuple[int, int, dict[str, int]]:
    """Count substituted, missing and added words in the whole recording and in each piece.

    The whole text is aligned with all references at once, since a window of a transcript may cover several pieces. An
    added word counts for the piece of the previous word.

    Args:
        pieces: the references, in order.
        text: the transcript.
        normalize: applied to each reference and to the text; None for Whisper's English text normalizer (Radford et
            al., 2022, appendix C).

    Returns:
        Errors, words of the references, and file name to its errors, over all its repetitions.

    Raises:
        SystemExit: the normalizer is not installed.
    """
    normalize = normalize or _english()
    words: list[str] = []
    owners: list[int] = []
    for index, piece in enumerate(pieces):
        said = normalize(piece.text).split()
        words += said
        owners += [index] * len(said)
    by_piece = dict.fromkeys((piece.name for piece in pieces), 0)
    places = _edits(words, normalize(text).split())
    for place in places:
        owner = owners[min(max(place, 0), len(owners) - 1)] if owners else 0
        if pieces:
            by_piece[pieces[owner].name] += 1
    return len(places), len(words), by_piece


def _english() -> Callable[[str], str]:
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise SystemExit("word errors need whisper-normalizer: pip install '.[eval]'") from None
    normalizer: Callable[[str], str] = EnglishTextNormalizer()
    return normalizer


def _edits(reference: Sequence[str], found: Sequence[str]) -> list[int]:
    """The index of the reference's word for each edit of a shortest edit script (Levenshtein distance)."""
    numbers = {word: index for index, word in enumerate({*reference, *found})}
    ours = np.array([numbers[word] for word in found], np.int64)
    count = len(found)
    steps = np.arange(count + 1)
    rows = [steps]
    for word in reference:
        above = rows[-1]
        row = np.empty(count + 1, np.int64)
        row[0] = above[0] + 1
        row[1:] = np.minimum(above[1:] + 1, above[:-1] + (ours != numbers[word]))
        # Added words, all at once: row[j] = min over i <= j of row[i] + j - i.
        rows.append(np.minimum.accumulate(row - steps) + steps)
    places: list[int] = []
    at, by = len(reference), count
    while at or by:
        here = rows[at][by]
        same = bool(at and by and reference[at - 1] == found[by - 1])
        if at and by and rows[at - 1][by - 1] + (not same) == here:
            at, by = at - 1, by - 1
            if not same:
                places.append(at)
        elif at and rows[at - 1][by] + 1 == here:
            at -= 1
            places.append(at)
        else:
            by -= 1
            places.append(at - 1)
    return places[::-1]
