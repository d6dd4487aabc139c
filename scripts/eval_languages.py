#!/usr/bin/env python3
"""Several languages in one recording: which language each second has, and the word errors beside each clip alone.

    scripts/eval_languages.py FOLDER [--model NAME] [--only changes pieces answers detected] [--seeds N ...]
                              [--answers SECONDS ...]

FOLDER holds a manifest.json: a list of {"file", "language", "text"}. The recordings are made of its clips: joined with
pauses so that the language changes from clip to clip, cut into pieces of 3 to 10 s, with short answers in another
language and, for comparison, in the same, and behind tones like music or a clip in another language. Seeds choose the
pieces, their order and their pauses. "Alone" is a clip at its place in the recording,
with noise instead of its neighbours: Whisper's text changes when a window begins some milliseconds earlier, so a clip
alone at another place has other errors. Needs the extra "eval" (jiwer, whisper-normalizer).
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import needs

from whisper_api import Engine, Transcript, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.vad import Span, cut_at_pauses

RATE = 16_000
PAUSES = (0.3, 0.5, 1.0, 2.0, 5.0)
# Noise around a clip alone, beside the pauses that it has in the recording, in seconds; whole frames of Silero.
AROUND = 2.048
SILERO_STEP = 512
PIECE_SECONDS = (3.0, 10.0)
MEASUREMENTS = ("changes", "pieces", "answers", "detected")
ANSWERS = (1.0, 1.5, 2.0, 3.0)
# An answer is cut at pauses, so its length may differ by this part.
ANSWER_LENGTHS = 0.25
ANSWER_PAUSES = (0.4, 0.7, 1.0)
# Speech before and after an answer, in seconds; and most answers in one language.
AROUND_ANSWER = 6.0
ANSWERS_IN_LANGUAGE = 9
# A clip this long is most of a recording by itself.
LONGEST = 30.0
TONES_SECONDS = 20.0

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Clip:
    """A clip in one language.

    Attributes:
        name: its file.
        language: code.
        text: what is said.
        audio: float32, shape (samples,), mono, 16 kHz.
    """

    name: str
    language: str
    text: str
    audio: Floats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="base")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the pieces and the answers")
    parser.add_argument("--answers", nargs="+", type=float, default=ANSWERS, help="seconds of the answers")
    arguments = needs.parsed(parser, needs.MODEL, needs.JIWER, needs.NORMALIZER)
    models = Path(os.environ.get("WHISPER_MODELS_DIR") or Path(__file__).parent.parent / "models_cache").absolute()
    items = [item for item in json.loads((arguments.folder / "manifest.json").read_text()) if item.get("text")]
    clips = [Clip(i["file"], i["language"], i["text"], decode(arguments.folder / i["file"]).audio) for i in items]
    short = [clip for clip in clips if len(clip.audio) <= LONGEST * RATE]
    measurements = {
        "changes": partial(changes, clips=short),
        "pieces": partial(pieces, clips=clips, seeds=arguments.seeds),
        "answers": partial(answers, clips=short, seeds=arguments.seeds, lengths=arguments.answers),
        "detected": partial(detected, clips=short),
    }
    with Engine(device="cpu", models_dir=models, model=arguments.model) as engine:
        for name in arguments.only:
            if name != "changes" and len({clip.language for clip in short}) == 1:
                print(f"{name}: not measured, since there are no clips in another language")
            else:
                measurements[name](engine)


def transcribed(engine: Engine, audio: Floats, language: str) -> Transcript:
    return engine.transcribe(audio, TranscriptionOptions(language=language, diarize=False))


def changes(engine: Engine, clips: Sequence[Clip]) -> None:
    """The language changes from clip to clip."""
    right = total = 0.0
    for pause in PAUSES:
        order = in_turn(clips, seed=round(10 * pause))
        audio, begins = joined_with(order, pause)
        transcript = transcribed(engine, audio, "multi")
        for begin, clip in zip(begins, order, strict=True):
            seconds = seconds_by_language(transcript, begin, begin + len(clip.audio) / RATE)
            right += seconds[clip.language]
            total += sum(seconds.values())
        texts = alone(engine, audio, order, begins, pause)
        found_in: list[str] = []
        for language in sorted({clip.language for clip in clips}):
            mine = [clip for clip in order if clip.language == language]
            text = " ".join(each.text for each in transcript.segments if each.language == language)
            joined = errors([clip.text for clip in mine], text, language)
            apart = sum(
                errors([clip.text], found, language)
                for clip, found in zip(order, texts, strict=True)
                if clip.language == language
            )
            found_in.append(f"{language} {joined} / {apart}")
        print(f"word errors with pauses of {pause} s, joined / each clip alone:", ", ".join(found_in), flush=True)
    print(f"seconds in the right language: {right:.1f} of {total:.1f}", flush=True)


def alone(engine: Engine, audio: Floats, clips: Sequence[Clip], begins: Sequence[float], pause: float) -> list[str]:
    """The text of each clip at its place in a recording, with noise instead of the other clips."""
    noise = np.random.default_rng(1).normal(0, 1e-3, len(audio)).astype(np.float32)
    texts = []
    for clip, begin in zip(clips, begins, strict=True):
        start = round(begin * RATE)
        low, high = max(0, start - round(pause * RATE)), start + len(clip.audio) + round(pause * RATE)
        around = noise.copy()
        around[low:high] = audio[low:high]
        first = max(0, low - round(AROUND * RATE)) // SILERO_STEP * SILERO_STEP
        texts.append(transcribed(engine, around[first : high + round(AROUND * RATE)], clip.language).text)
    return texts


def pieces(engine: Engine, clips: Sequence[Clip], seeds: Sequence[int]) -> None:
    """The clips cut at pauses into pieces, in an order in which the language changes as often as it can."""
    cut = [
        Clip(f"{clip.name} {number}", clip.language, "", clip.audio[span.start : span.end])
        for clip in clips
        for number, span in enumerate(cut_at_pauses(Span(0, len(clip.audio)), clip.audio, PIECE_SECONDS[1]))
        if span.seconds >= PIECE_SECONDS[0]
    ]
    english = [clip for clip in cut if clip.language == "en"]
    others = [clip for clip in cut if clip.language != "en"]
    for seed in seeds:
        rng = random.Random(seed)
        order = in_turn(others + rng.sample(english, min(len(others), len(english))), seed)
        pause = rng.choice(PAUSES[:3])
        audio, begins = joined_with(order, pause)
        transcript = transcribed(engine, audio, "multi")
        texts = alone(engine, audio, order, begins, pause)
        right = sum(
            seconds_by_language(transcript, begin, begin + len(clip.audio) / RATE)[clip.language]
            for begin, clip in zip(begins, order, strict=True)
        )
        other = words = 0
        for language in sorted({clip.language for clip in order}):
            apart = [text for clip, text in zip(order, texts, strict=True) if clip.language == language]
            together = " ".join(each.text for each in transcript.segments if each.language == language)
            other += errors(apart, together, language)
            words += sum(len(text.split()) for text in apart)
        total = sum(segment.end - segment.start for segment in transcript.segments)
        print(
            f"pieces, round {seed}, pauses of {pause} s: {len(order)} pieces, {right:.1f} of {total:.1f} s in the "
            f"right language, {other} of {words} words other than alone",
            flush=True,
        )


def answers(engine: Engine, clips: Sequence[Clip], seeds: Sequence[int], lengths: Sequence[float]) -> None:
    """A short answer between longer speech in another language, and one between longer speech in its own."""
    languages = sorted({clip.language for clip in clips})
    for seconds in lengths:
        other, own, count, textless = 0, 0, 0, 0
        for seed in seeds:
            rng = random.Random(f"{seed} {seconds}")
            for answer in some_of_each(clips, rng):
                piece = short_piece(answer.audio, seconds, rng)
                around = rng.choice([language for language in languages if language != answer.language])
                if piece is None:
                    continue
                found = [language_of_answer(engine, clips, each, piece, rng) for each in (around, answer.language)]
                if found == [None, None]:
                    textless += 1
                    continue
                count += 1
                other += found[0] == answer.language
                own += found[1] == answer.language
        print(
            f"answers of {seconds} s in the right language: {other} of {count} between another language, "
            f"{own} of {count} between their own; {textless} pieces without text left out",
            flush=True,
        )


def some_of_each(clips: Sequence[Clip], rng: random.Random) -> list[Clip]:
    """At most so many clips of each language as are wanted for answers."""
    chosen = []
    for language in sorted({clip.language for clip in clips}):
        mine = [clip for clip in clips if clip.language == language]
        chosen += rng.sample(mine, min(len(mine), ANSWERS_IN_LANGUAGE))
    return chosen


def short_piece(audio: Floats, seconds: float, rng: random.Random) -> Floats | None:
    """A piece of about so many seconds of speech, cut at pauses; None if the audio has none."""
    longest = seconds * (1 + ANSWER_LENGTHS)
    start = round(rng.uniform(0, seconds) * RATE)
    spans = cut_at_pauses(Span(start, len(audio)), audio, longest) if start < len(audio) else []
    spans = [span for span in spans if span.seconds >= seconds * (1 - ANSWER_LENGTHS)]
    loud = 0.25 * float(np.square(audio).mean())
    found = [audio[span.start : span.end] for span in spans]
    found = [piece for piece in found if float(np.square(piece).mean()) >= loud]
    return rng.choice(found) if found else None


def language_of_answer(
    engine: Engine, clips: Sequence[Clip], around: str, piece: Floats, rng: random.Random
) -> str | None:
    """The language in which a piece between longer speech in a language is transcribed; None without text."""
    mine = [clip for clip in clips if clip.language == around]
    sides = []
    for _ in range(2):
        side: list[Clip] = []
        while sum(len(clip.audio) for clip in side) < AROUND_ANSWER * RATE:
            side.append(rng.choice(mine))
        sides.append(side)
    audio, begins = joined_with([*sides[0], piece, *sides[1]], rng.choice(ANSWER_PAUSES))
    begin = begins[len(sides[0])]
    found = seconds_by_language(transcribed(engine, audio, "multi"), begin, begin + len(piece) / RATE)
    return max(found, key=lambda code: found[code]) if found else None


def detected(engine: Engine, clips: Sequence[Clip]) -> None:
    """What ``auto`` detects behind tones, and behind a clip in another language."""
    counted: Counter[str] = Counter()
    for clip in clips:
        other = next(each for each in clips if each.language != clip.language and len(each.audio) > 6 * RATE)
        main = [clip.audio] * max(1, round(3 * len(other.audio) / len(clip.audio)))
        cases = {
            "alone": clip.audio,
            "behind tones": joined_with([tones(), clip.audio], 0.3)[0],
            "behind another language": joined_with([other.audio, *main], 1.0)[0],
        }
        for case, audio in cases.items():
            counted[case] += transcribed(engine, audio, "auto").language == clip.language
    for case, right in counted.items():
        print(f"auto, {case}: {right} of {len(clips)} right")


def in_turn(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """All clips in an order in which the language changes as often as it can."""
    rng = random.Random(seed)
    left = rng.sample(list(clips), len(clips))
    order: list[Clip] = []
    while left:
        counts = Counter(clip.language for clip in left)
        new = [clip for clip in left if not order or clip.language != order[-1].language] or left
        order.append(max(new, key=lambda clip: counts[clip.language]))
        left.remove(order[-1])
        # The language with few clips is repeated, so that the others have something between them.
        fillers = [clip for clip in clips if clip.language != order[-1].language]
        if len(counts) == 1 and left and fillers:
            order.append(rng.choice(fillers))
    return order


def joined_with(parts: Iterable[Clip | Floats], pause: float) -> tuple[Floats, list[float]]:
    """The parts with quiet noise between them, and the second at which each begins."""
    noise = np.random.default_rng(0).normal(0, 1e-3, round(pause * RATE)).astype(np.float32)
    audio: list[Floats] = []
    begins, at = [], 0
    for part in parts:
        samples = part.audio if isinstance(part, Clip) else part
        begins.append(at / RATE)
        audio += [samples, noise]
        at += len(samples) + len(noise)
    return np.concatenate(audio), begins


def tones() -> Floats:
    """Chords with overtones and a beat, as a jingle has them."""
    time = np.arange(round(TONES_SECONDS * RATE)) / RATE
    chords = ((262, 330, 392), (220, 262, 330), (175, 220, 262), (196, 247, 294))
    sound = np.zeros(len(time))
    for number, chord in enumerate(chords * 5):
        inside = (time >= number) & (time < number + 1)
        for note in chord:
            for overtone in (1, 2, 3, 4):
                sound[inside] += np.sin(2 * np.pi * note * overtone * time[inside]) / overtone
    beat = np.exp(-4 * (time * 2 % 1))
    return (0.05 * sound * (0.4 + beat)).astype(np.float32)


def seconds_by_language(transcript: Transcript, begin: float, end: float) -> dict[str, float]:
    """Seconds of text in each language between two times."""
    found: defaultdict[str, float] = defaultdict(float)
    for segment in transcript.segments:
        inside = min(end, segment.end) - max(begin, segment.start)
        if inside > 0:
            found[segment.language or transcript.language] += inside
    return found


def errors(texts: Sequence[str], found: str, language: str) -> int:
    import jiwer
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    normalize = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
    compared = jiwer.process_words(normalize(" ".join(texts)), normalize(found))
    return int(compared.substitutions + compared.deletions + compared.insertions)


if __name__ == "__main__":
    main()
