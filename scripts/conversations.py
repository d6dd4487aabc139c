"""Conversations of known truth, made from recordings of single speakers: the same ones on every machine.

``write(voices, folder)`` writes a WAV file and its .rttm for each of :data:`CONVERSATIONS`. The truth is where the
clean phrases are loud, with pauses of up to 0.3 s, before noise, a room or a telephone is added.
"""

from __future__ import annotations

import importlib.util
import json
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whisper_api.engine.audio.decode import decode
from whisper_api.schema import SAMPLE_RATE

__all__ = ["CONVERSATIONS", "Conversation", "call_voices", "over_telephone", "pitch", "read_voices", "through", "write"]

Floats = npt.NDArray[np.float32]

# Recordings of one speaker each in a folder with a manifest.json, and which of them are of the same person.
SAME = ("librivox", "sonnet")
LONGEST_PAUSE = 0.3
LONGEST_PHRASE = 4.0
LEAST = 3.0
LEVEL = 0.06
MARGIN = 480
_FRAME = 160


@dataclass(frozen=True)
class Conversation:
    """How one conversation is made.

    Attributes:
        name: also decides the random choices.
        speakers: how many voices.
        seconds: length of the turns together.
        alike: whether the voices are as close in pitch as there are.
        short: share of the turns that are answers of less than a second.
        overlap: share of the turns that begin before the turn before ends.
        noise: decibels of speech over pink noise; None for none.
        room: seconds in which the echo falls by 60 dB; 0 for none.
        telephone: whether the band is 300 to 3400 Hz, in eight-bit mu-law.
    """

    name: str
    speakers: int
    seconds: float = 60.0
    alike: bool = False
    short: float = 0.15
    overlap: float = 0.15
    noise: float | None = None
    room: float = 0.0
    telephone: bool = False


CONVERSATIONS = (
    Conversation("two", 2, overlap=0.0),
    Conversation("two-alike", 2, alike=True),
    Conversation("two-short", 2, short=0.5, overlap=0.2),
    Conversation("two-telephone", 2, short=0.3, telephone=True),
    Conversation("two-overlap", 2, overlap=0.5),
    Conversation("three-noise", 3, noise=12.0),
    Conversation("three-alike-room", 3, alike=True, room=0.35),
    Conversation("four", 4, 90.0),
    Conversation("four-telephone", 4, 90.0, telephone=True, alike=True),
    Conversation("five-noise", 5, 100.0, noise=15.0, overlap=0.25),
    Conversation("six", 6, 120.0, short=0.25),
    Conversation("eight", 8, 150.0, short=0.1, overlap=0.2),
)


def read_voices(folder: Path) -> dict[str, list[Floats]]:
    """The phrases of each single speaker: recordings with a text in a manifest.json, or one subfolder per speaker.

    Args:
        folder: of the recordings. With a manifest.json, the two voices of pyannote.audio's sample call are added.

    Returns:
        Name to phrases, for the speakers with three seconds of speech.
    """
    if (folder / "manifest.json").exists():
        items = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        # A dialogue has "speakers", a meeting has "rttm".
        files = [item["file"] for item in items if item.get("text") and not item.get("speakers")]
        of_voice: dict[str, list[Path]] = {}
        for file in files:
            prefix = file.split("-")[0]
            of_voice.setdefault(prefix if prefix in SAME else Path(file).stem, []).append(folder / file)
    else:
        of_voice = {
            path.name: sorted(path.glob("*.flac")) + sorted(path.glob("*.wav"))
            for path in sorted(folder.iterdir())
            if path.is_dir()
        }
    heard = {name: [decode(path).audio for path in paths] for name, paths in of_voice.items()}
    if (folder / "manifest.json").exists():
        heard |= _call_pieces()
    return _voices(heard)


def call_voices() -> dict[str, list[Floats]]:
    """The phrases of the two speakers of pyannote.audio's sample call."""
    return _voices(_call_pieces())


def _voices(heard: Mapping[str, Sequence[Floats]]) -> dict[str, list[Floats]]:
    found = {name: [phrase for audio in pieces for phrase in _phrases(audio)] for name, pieces in heard.items()}
    return {name: phrases for name, phrases in found.items() if sum(map(len, phrases)) >= LEAST * SAMPLE_RATE}


def _call_pieces() -> dict[str, list[Floats]]:
    """The stretches of the sample call in which one person speaks alone, by speaker."""
    spec = importlib.util.find_spec("pyannote.audio")
    if spec is None or not spec.submodule_search_locations:
        return {}
    call = Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"
    audio = decode(call).audio
    lines = [line.split() for line in call.with_suffix(".rttm").read_text(encoding="utf-8").splitlines()]
    turns = [(float(line[3]), float(line[3]) + float(line[4]), f"call-{line[7]}") for line in lines]
    found: dict[str, list[Floats]] = {}
    for start, end, name in turns:
        begin = max([start, *(other[1] for other in turns if other[2] != name and other[0] <= start < other[1])])
        finish = min([end, *(other[0] for other in turns if other[2] != name and begin < other[0] < end)])
        if finish - begin >= 0.5:
            found.setdefault(name, []).append(audio[round(begin * SAMPLE_RATE) : round(finish * SAMPLE_RATE)])
    return found


def pitch(phrases: Sequence[Floats]) -> float:
    """The median fundamental frequency in Hz, from the peak of the autocorrelation of 40 ms frames."""
    found = []
    for phrase in phrases[:12]:
        for start in range(0, len(phrase) - 640, 640):
            frame = phrase[start : start + 640] - phrase[start : start + 640].mean()
            correlation = np.correlate(frame, frame, "full")[639:]
            lag = 40 + int(correlation[40:230].argmax())
            if correlation[lag] > 0.6 * correlation[0] > 1e-3:
                found.append(SAMPLE_RATE / lag)
    return float(np.median(found)) if found else 0.0


def write(voices: Mapping[str, Sequence[Floats]], folder: Path, seed: int = 0) -> Iterator[tuple[str, Path, Path]]:
    """Write the conversations; conversations of more speakers than there are voices are left out.

    Args:
        voices: name to phrases.
        folder: for the files.
        seed: another one gives other conversations of the same kinds.

    Yields:
        Name, WAV file and .rttm.
    """
    pitches = {name: pitch(phrases) for name, phrases in voices.items()}
    for number, conversation in enumerate(CONVERSATIONS):
        if conversation.speakers > len(voices):
            continue
        audio, turns = _converse(conversation, voices, pitches, np.random.default_rng(seed + number))
        path = folder / f"{conversation.name}.wav"
        with wave.open(str(path), "wb") as out:
            out.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            out.writeframes((np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())
        path.with_suffix(".rttm").write_text(
            "".join(
                f"SPEAKER {conversation.name} 1 {start:.3f} {end - start:.3f} <NA> <NA> {name} <NA> <NA>\n"
                for start, end, name in turns
            ),
            encoding="utf-8",
        )
        yield conversation.name, path, path.with_suffix(".rttm")


def _loud(audio: Floats) -> list[tuple[int, int]]:
    """First and last frames, of 10 ms, of the stretches of speech, with pauses of up to 0.12 s inside."""
    count = len(audio) // _FRAME
    energy = np.square(audio[: count * _FRAME].reshape(count, _FRAME)).mean(axis=1)
    smooth = np.convolve(energy, np.ones(5) / 5, "same")
    loud = smooth > max(np.quantile(smooth, 0.95) * 10**-3.5, 3 * np.quantile(smooth, 0.05))
    edges = np.flatnonzero(np.diff(np.pad(loud.astype(np.int8), 1)))
    found: list[tuple[int, int]] = []
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if found and first - found[-1][1] <= 12:
            found[-1] = (found[-1][0], last)
        else:
            found.append((first, last))
    return [(first, last) for first, last in found if last - first >= 15]


def _phrases(audio: Floats) -> list[Floats]:
    """The stretches of speech, cut after four seconds, with a margin that keeps soft beginnings and ends."""
    longest = round(LONGEST_PHRASE * SAMPLE_RATE)
    stretches = [
        (start, min(last * _FRAME, start + longest))
        for first, last in _loud(audio)
        for start in range(first * _FRAME, last * _FRAME, longest)
    ]
    pieces = [audio[max(0, first - MARGIN) : last + MARGIN] for first, last in stretches]
    level = np.sqrt(np.mean(np.square(np.concatenate(pieces)))) if pieces else 1.0
    return [(piece * LEVEL / level).astype(np.float32) for piece in pieces if len(piece) >= 0.4 * SAMPLE_RATE]


def _converse(
    how: Conversation, voices: Mapping[str, Sequence[Floats]], pitches: Mapping[str, float], rng: np.random.Generator
) -> tuple[Floats, list[tuple[float, float, str]]]:
    names = sorted(voices)
    if how.alike:
        by_pitch = sorted(names, key=lambda name: pitches[name])
        first = int(rng.integers(0, len(names) - how.speakers + 1))
        chosen = by_pitch[first : first + how.speakers]
    else:
        chosen = [str(name) for name in rng.permutation(names)[: how.speakers]]
    gains = {name: 10 ** (rng.uniform(-4, 4) / 20) for name in chosen}
    # Each voice goes through its phrases in order, so that no phrase is repeated soon.
    place = {name: int(rng.integers(0, len(voices[name]))) for name in chosen}
    audio = np.zeros(round((how.seconds * 2 + 20) * SAMPLE_RATE), dtype=np.float32)
    turns: list[tuple[float, float, str]] = []
    at, spoken, before = 0.5, 0.0, ""
    while spoken < how.seconds:
        unheard = [name for name in chosen if name not in {turn[2] for turn in turns}]
        name = str(rng.choice(unheard or [name for name in chosen if name != before]))
        if turns and rng.random() < how.overlap:
            at = max(0.0, at - rng.uniform(0.3, 1.5))
        else:
            at += rng.uniform(0.05, 0.9)
        short = bool(turns) and name not in unheard and rng.random() < how.short
        for _ in range(1 if short else int(rng.integers(1, 5))):
            phrases = voices[name]
            phrase = gains[name] * phrases[place[name] % len(phrases)]
            place[name] += 1
            if short:
                phrase = phrase[: round(rng.uniform(0.4, 0.9) * SAMPLE_RATE)].copy()
                phrase[-800:] *= np.linspace(1, 0, len(phrase[-800:]))
            start = round(at * SAMPLE_RATE)
            audio[start : start + len(phrase)] += phrase[: len(audio) - start]
            turns.append((at + MARGIN / SAMPLE_RATE, at + (len(phrase) - MARGIN) / SAMPLE_RATE, name))
            at += len(phrase) / SAMPLE_RATE + rng.uniform(0.0, 0.4)
            spoken += len(phrase) / SAMPLE_RATE
        before = name
    end = round((max(turn[1] for turn in turns) + 0.5) * SAMPLE_RATE)
    return through(how, audio[:end], rng), _joined(turns)


def _joined(turns: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Turns with the short pauses of a speaker filled."""
    found: list[tuple[float, float, str]] = []
    for name in sorted({turn[2] for turn in turns}):
        own = sorted(turn for turn in turns if turn[2] == name)
        joined = [own[0]]
        for turn in own[1:]:
            if turn[0] - joined[-1][1] <= LONGEST_PAUSE:
                joined[-1] = (joined[-1][0], max(turn[1], joined[-1][1]), name)
            else:
                joined.append(turn)
        found += joined
    return sorted(found)


def through(how: Conversation, audio: Floats, rng: np.random.Generator) -> Floats:
    """The audio with the room, the noise and the telephone of a conversation."""
    if how.room:
        time = np.arange(round(how.room * SAMPLE_RATE)) / SAMPLE_RATE
        echo = rng.standard_normal(len(time)) * 10 ** (-3 * time / how.room) * 0.05
        echo[0] = 1.0
        size = len(audio) + len(echo)
        audio = np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(echo, size), size)[: len(audio)].astype(np.float32)
    spectrum = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    if how.noise is not None:
        white = np.fft.rfft(rng.standard_normal(len(audio)))
        pink = np.fft.irfft(white / np.sqrt(np.maximum(spectrum, 50)), len(audio))
        pink *= LEVEL * 10 ** (-how.noise / 20) / np.sqrt(np.mean(np.square(pink)))
        audio = (audio + pink).astype(np.float32)
    return over_telephone(audio) if how.telephone else audio


def over_telephone(audio: Floats) -> Floats:
    """The band of a telephone, in eight-bit mu-law."""
    spectrum = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE)
    shape = np.fft.rfft(audio) * ((spectrum > 300) & (spectrum < 3400))
    narrow = np.clip(np.fft.irfft(shape, len(audio)), -1, 1)
    pressed = np.round(np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256) * 127) / 127
    return np.asarray(np.sign(pressed) * (256 ** np.abs(pressed) - 1) / 255, dtype=np.float32)
