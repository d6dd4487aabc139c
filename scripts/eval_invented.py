#!/usr/bin/env python3
"""Text that Whisper invents in sounds without a voice, and words that are lost by leaving it out.

    scripts/eval_invented.py [FOLDER] [--model NAME] [--language CODE ...] [--vad NAME ...] [--no-peer]

The sounds are made here: noises, hum, room tone, chords, a melody, drums, breath, clicks, wind, applause, an engine and
silence, at several levels. Each row counts the sounds with text and their words, once with all text
(hallucinations=keep) and once without the text that has the flag (hallucinations=drop), beside whisperx with the same
weights and its own voice activity detection.

FOLDER holds a manifest.json: a list of {"file", "language", "text"}. Its recordings are joined, with minutes of noise
and silence between them, and every flagged segment is printed: each of its words that somebody speaks is lost. Word
errors need the extra "eval" (jiwer, whisper-normalizer).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import needs
from numpy.typing import NDArray

from whisper_api import Engine, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.schema import HALLUCINATION, SAMPLE_RATE, Transcript

Samples = NDArray[np.float32]
Doubles = NDArray[Any]

SPEECH_LEVEL = -23.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", default="base")
    parser.add_argument("--language", nargs="+", default=["auto", "fr", "en"])
    parser.add_argument("--vad", nargs="+", default=["silero", "pyannote", "none"])
    parser.add_argument("--level", nargs="+", type=float, default=[-20.0, -45.0], help="dBFS")
    parser.add_argument("--sound", nargs="+", choices=[*SOUNDS], default=[*SOUNDS])
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each sound")
    parser.add_argument("--pause", type=float, default=120.0, help="seconds between two recordings")
    parser.add_argument("--no-peer", action="store_true", help="leave whisperx out")
    arguments = needs.parsed(
        parser, needs.MODEL, needs.WHISPERX, *([needs.JIWER, needs.NORMALIZER] if _folder() else [])
    )
    models = Path(os.environ.get("WHISPER_MODELS_DIR") or Path(__file__).parent.parent / "models_cache").absolute()
    sounds = {
        (name, level): made(name, level, arguments.seconds) for name in arguments.sound for level in arguments.level
    }
    with Engine(device="cpu", models_dir=models, model=arguments.model) as engine:
        for vad in arguments.vad:
            for language in arguments.language:
                report(f"vad={vad}, language={language}", sounds, ours(engine, vad, language))
        if arguments.folder is not None:
            for vad in arguments.vad:
                joined(engine, vad, arguments.folder, arguments.pause)
    if not arguments.no_peer:
        for language in arguments.language:
            report(
                f"whisperx, language={language}", sounds, by_whisperx(models / "whisper" / arguments.model, language)
            )


def _folder() -> bool:
    import sys

    return any(Path(each, "manifest.json").is_file() for each in sys.argv[1:])


# --- sounds ---


def made(name: str, level: float, seconds: float) -> Samples:
    """A sound at a level in dBFS."""
    return at_level(SOUNDS[name](round(seconds * SAMPLE_RATE), np.random.default_rng(len(name))), level)


def at_level(sound: NDArray[Any], level: float) -> Samples:
    power = float(np.sqrt(np.mean(np.square(sound, dtype=np.float64))))
    return np.clip(sound / max(power, 1e-12) * 10 ** (level / 20), -1, 1).astype(np.float32)


def noise(count: int, random: np.random.Generator, slope: float = 0.0) -> Doubles:
    """Noise whose power falls by ``6 * slope`` dB with each octave."""
    spectrum = np.fft.rfft(random.standard_normal(count))
    return np.fft.irfft(spectrum / np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 20) ** slope, count)


def band(sound: Doubles, low: float, high: float) -> Doubles:
    spectrum, frequencies = np.fft.rfft(sound), np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    return np.fft.irfft(spectrum, len(sound))


def tones(count: int, frequencies: list[float]) -> Doubles:
    """Tones with eight harmonics each."""
    time = np.arange(count) / SAMPLE_RATE
    parts = (np.sin(2 * np.pi * f * k * time) / k for f in frequencies for k in range(1, 9) if f * k < SAMPLE_RATE / 2)
    return np.asarray(np.sum(list(parts), axis=0))


def hum(count: int, random: np.random.Generator) -> Doubles:
    return tones(count, [50.0]) + 0.01 * random.standard_normal(count)


def room(count: int, random: np.random.Generator) -> Doubles:
    rumble, mains = noise(count, random, 1.0), hum(count, random)
    return np.asarray(rumble / rumble.std() + 0.3 * mains / mains.std())


def chords(count: int, random: np.random.Generator) -> Doubles:
    steps = ((0, 4, 7), (9, 12, 16), (5, 9, 12), (7, 11, 14))
    beats = [tones(SAMPLE_RATE, [220 * 2 ** (n / 12) for n in steps[i % 4]]) for i in range(1 + count // SAMPLE_RATE)]
    fade = np.exp(-3 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    return np.concatenate([beat * fade for beat in beats])[:count]


def organ(count: int, random: np.random.Generator) -> Doubles:
    tremolo = 1 + 0.3 * np.sin(2 * np.pi * 4 * np.arange(count) / SAMPLE_RATE)
    return tones(count, [130.8, 164.8, 196.0, 261.6]) * tremolo


def melody(count: int, random: np.random.Generator) -> Doubles:
    notes: list[Doubles] = []
    while sum(map(len, notes)) < count:
        time = np.arange(int(SAMPLE_RATE * random.choice([0.25, 0.5, 0.75]))) / SAMPLE_RATE
        phase = 2 * np.pi * 330 * 2 ** (random.integers(0, 13) / 12) * time + 3 * np.sin(2 * np.pi * 5.5 * time)
        envelope = np.sin(np.pi * np.arange(len(time)) / len(time)) ** 0.3
        notes.append((np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.3 * np.sin(3 * phase)) * envelope)
    return np.concatenate(notes)[:count]


def drums(count: int, random: np.random.Generator) -> Doubles:
    time = np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE
    kick = 3 * np.sin(2 * np.pi * 60 * time * np.exp(-5 * time)) * np.exp(-12 * time)
    beats = [kick, np.exp(-25 * time) * random.standard_normal(len(time))]
    return np.concatenate(beats * (1 + count // (2 * len(time))))[:count]


def breath(count: int, random: np.random.Generator) -> Doubles:
    swing = np.sin(2 * np.pi * 0.27 * np.arange(count) / SAMPLE_RATE)
    strength = np.maximum(0, swing) ** 1.5 + 0.6 * np.maximum(0, -swing) ** 3
    return band(noise(count, random, 0.3), 200, 3500) * strength


def bursts(count: int, random: np.random.Generator, rate: float, samples: int) -> Doubles:
    """Short bursts of noise, so many in a second."""
    sound = 1e-4 * random.standard_normal(count)
    for start in random.integers(0, max(1, count - 8 * samples), round(rate * count / SAMPLE_RATE)):
        part = sound[start : start + 8 * samples]
        part += (random.standard_normal(8 * samples) * np.exp(-np.arange(8 * samples) / samples))[: len(part)]
    return sound


def wind(count: int, random: np.random.Generator) -> Doubles:
    gusts = np.abs(noise(count, random, 1.2))
    return np.asarray(noise(count, random, 1.0) * (0.2 + gusts / gusts.max()))


def motor(count: int, random: np.random.Generator) -> Doubles:
    time = np.arange(count) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(30 + 6 * np.sin(2 * np.pi * 0.1 * time)) / SAMPLE_RATE
    return np.asarray(np.sum([np.sin(k * phase) / k for k in range(1, 20)], axis=0) + 0.3 * noise(count, random, 0.5))


SOUNDS: dict[str, Callable[[int, np.random.Generator], Doubles]] = {
    "white": noise,
    "pink": lambda count, random: noise(count, random, 0.5),
    "brown": lambda count, random: noise(count, random, 1.0),
    "hum": hum,
    "room": room,
    "chords": chords,
    "organ": organ,
    "melody": melody,
    "drums": drums,
    "breath": breath,
    "clicks": lambda count, random: bursts(count, random, 3.0, 30),
    "applause": lambda count, random: band(bursts(count, random, 80.0, 60), 400, 6000),
    "wind": wind,
    "motor": motor,
    "silence": lambda count, random: np.zeros(count),
}


# --- what is heard in them ---

Texts = tuple[str, str]


def split(transcript: Transcript) -> Texts:
    """The whole text, and the text without the segments that have the flag."""
    kept = (segment.text for segment in transcript.segments if HALLUCINATION not in segment.flags)
    return transcript.text, " ".join(kept)


def ours(engine: Engine, vad: Any, language: str) -> Callable[[Samples], Texts]:
    options = TranscriptionOptions(vad=vad, language=language, diarize=False, hallucinations="flag")
    return lambda audio: split(engine.transcribe(audio, options))


def by_whisperx(weights: Path, language: str) -> Callable[[Samples], Texts]:
    import whisperx

    model = whisperx.load_model(
        str(weights),
        "cpu",
        compute_type="int8",
        language=None if language == "auto" else language,
        threads=os.cpu_count() or 1,
    )

    def transcribe(audio: Samples) -> Texts:
        try:
            text = " ".join(segment["text"] for segment in model.transcribe(audio, batch_size=8)["segments"])
        except (IndexError, ValueError):
            # Some versions fail on audio without speech.
            text = ""
        return text, text

    return transcribe


def report(title: str, sounds: dict[tuple[str, float], Samples], transcribe: Callable[[Samples], Texts]) -> None:
    texts = [transcribe(audio) for audio in sounds.values()]
    counts = [
        f"{sum(bool(text.strip()) for text in side)} with text ({sum(len(text.split()) for text in side)} words)"
        for side in zip(*texts, strict=True)
    ]
    print(f"{title}: {len(sounds)} sounds; keep: {counts[0]}; drop: {counts[1]}", flush=True)
    for (name, level), (_, left) in zip(sounds, texts, strict=True):
        if left.strip():
            print(f"  {name} at {level:.0f} dBFS: {left.strip()[:80]!r}")


# --- speech with long pauses ---


def joined(engine: Engine, vad: Any, folder: Path, pause: float) -> None:
    items = [item for item in json.loads((folder / "manifest.json").read_text()) if item.get("text")]
    for language in sorted({item["language"] for item in items}):
        mine = [item for item in items if item["language"] == language]
        audio = np.concatenate(list(_with_pauses(folder, mine, pause)))
        options = TranscriptionOptions(vad=vad, language=language, diarize=False, hallucinations="flag")
        transcript = engine.transcribe(audio, options)
        reference = " ".join(item["text"] for item in mine)
        errors = [word_errors(reference, text, language) for text in split(transcript)]
        print(
            f"vad={vad}, {len(audio) / SAMPLE_RATE / 60:.0f} minutes, {language}: word errors of "
            f"{len(reference.split())}: keep {errors[0]}, drop {errors[1]}",
            flush=True,
        )
        for segment in transcript.segments:
            if HALLUCINATION in segment.flags:
                print(f"  {segment.start:.1f}-{segment.end:.1f} s: {segment.text!r}")


def _with_pauses(folder: Path, items: list[dict[str, Any]], pause: float) -> Iterator[Samples]:
    """The recordings, each after a pause: silence, room tone and pink noise in turn."""
    for number, item in enumerate(items):
        yield made(*(("silence", -90.0), ("room", -50.0), ("pink", -40.0))[number % 3], pause)
        yield at_level(decode(folder / item["file"]).audio, SPEECH_LEVEL)
    yield made("pink", -40.0, pause)


def word_errors(reference: str, text: str, language: str) -> int:
    import jiwer
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    normalize = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    compared = jiwer.process_words(normalize(reference), normalize(text))
    return int(compared.substitutions + compared.deletions + compared.insertions)


if __name__ == "__main__":
    main()
