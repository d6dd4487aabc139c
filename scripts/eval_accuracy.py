#!/usr/bin/env python3
"""Word errors and word times on recordings with references, beside whisperx and faster-whisper with the same weights.

    scripts/eval_accuracy.py FOLDER [--model NAME] [--beam-size N] [--no-peer] [--confidence]

FOLDER holds a manifest.json: a list of {"file", "language", "text"}, where known with "words": [{"word", "start",
"end"}]. Needs the extra "eval" (jiwer, whisper-normalizer). Word errors are counted after Whisper's text normalisation;
word times are those of the words that both the reference and the transcript have. With --confidence, the scores of our
words are compared with how many of them are right, as recorded and with noise of 10, 5 and 0 dB below the speech.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import (
    needs,
)

from whisper_api import Engine, TranscriptionOptions
from whisper_api.engine.audio.decode import decode

Hypothesis = tuple[str, list[tuple[str, float, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="base")
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="leave the others out")
    parser.add_argument("--confidence", action="store_true", help="compare the words' scores with their errors")
    arguments = needs.parsed(parser, needs.MODEL, needs.JIWER, needs.NORMALIZER, needs.WHISPERX)
    models = Path(os.environ.get("WHISPER_MODELS_DIR") or Path(__file__).parent.parent / "models_cache").absolute()
    manifest = json.loads((arguments.folder / "manifest.json").read_text())
    items = [item for item in manifest if item.get("text")]
    sides: dict[str, Callable[[Path, str], Hypothesis]] = {}
    with Engine(device="cpu", models_dir=models) as engine:
        sides["whisper-api"] = ours(engine, arguments.model, arguments.beam_size)
        if not arguments.no_peer:
            weights = models / "whisper" / arguments.model
            sides["whisperx"] = by_whisperx(weights, arguments.beam_size)
            sides["faster-whisper"] = by_faster_whisper(weights, arguments.beam_size)
        for name, transcribe in sides.items():
            report(name, arguments.folder, items, transcribe)
        if arguments.confidence:
            report_confidence(engine, arguments, items)


def ours(engine: Engine, model: str, beam_size: int) -> Callable[[Path, str], Hypothesis]:
    def transcribe(path: Path, language: str) -> Hypothesis:
        options = TranscriptionOptions(model=model, language=language, beam_size=beam_size, diarize=False)
        transcript = engine.transcribe(path, options)
        return transcript.text, [(word.word, word.start, word.end) for word in transcript.words]

    return transcribe


def by_whisperx(weights: Path, beam_size: int) -> Callable[[Path, str], Hypothesis]:
    import whisperx

    loaded: dict[str, Any] = {}

    def transcribe(path: Path, language: str) -> Hypothesis:
        if language not in loaded:
            loaded[language] = whisperx.load_model(
                str(weights),
                "cpu",
                compute_type="int8",
                language=language,
                asr_options={"beam_size": beam_size},
                threads=os.cpu_count() or 1,
            )
        segments = loaded[language].transcribe(decode(path).audio, batch_size=8)["segments"]
        return " ".join(segment["text"] for segment in segments), []

    return transcribe


def by_faster_whisper(weights: Path, beam_size: int) -> Callable[[Path, str], Hypothesis]:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(weights), device="cpu", compute_type="int8", cpu_threads=os.cpu_count() or 1)

    def transcribe(path: Path, language: str) -> Hypothesis:
        segments, _ = model.transcribe(
            decode(path).audio, language=language, beam_size=beam_size, word_timestamps=True, vad_filter=True
        )
        found = list(segments)
        words = [(word.word, word.start, word.end) for segment in found for word in segment.words or ()]
        return " ".join(segment.text for segment in found), words

    return transcribe


def report(name: str, folder: Path, items: list[dict[str, Any]], transcribe: Callable[[Path, str], Hypothesis]) -> None:
    import jiwer
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    english, basic = EnglishTextNormalizer(), BasicTextNormalizer()
    errors: Counter[str] = Counter()
    words: Counter[str] = Counter()
    starts: list[float] = []
    ends: list[float] = []
    begun = time.process_time()
    for item in items:
        language = item["language"]
        text, timed = transcribe(folder / item["file"], language)
        normalize = english if language == "en" else basic
        compared = jiwer.process_words(normalize(item["text"]), normalize(text))
        errors[language] += compared.substitutions + compared.deletions + compared.insertions
        words[language] += len(normalize(item["text"]).split())
        if item.get("words") and timed:
            differences(timed, [(w["word"], w["start"], w["end"]) for w in item["words"]], starts, ends)
    told = ", ".join(f"{code} {errors[code]}/{words[code]}" for code in words)
    print(f"{name}: word errors {told}; {time.process_time() - begun:.1f} CPU-s", flush=True)
    for edge, found in (("starts", starts), ("ends", ends)):
        if found:
            size = np.abs(found) * 1000
            print(
                f"{name}: word {edge} of {len(found)} words: median error {np.median(size):.0f} ms, "
                f"mean {size.mean():.0f} ms, 90th percentile {np.percentile(size, 90):.0f} ms, "
                f"bias {np.median(found) * 1000:+.0f} ms"
            )


def report_confidence(engine: Engine, arguments: argparse.Namespace, items: list[dict[str, Any]]) -> None:
    """Print how many words of each tenth of the scores are right, and the expected calibration error.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    judged = [
        each for item in items for noise in (None, 10, 5, 0) for each in scored_words(engine, arguments, item, noise)
    ]
    scores, right = np.array([score for score, _ in judged]), np.array([right for _, right in judged])
    tenths = np.minimum((scores * 10).astype(int), 9)
    error = 0.0
    for tenth in np.unique(tenths):
        mine = tenths == tenth
        error += mine.mean() * abs(scores[mine].mean() - right[mine].mean())
        means = f"mean {scores[mine].mean():.2f}, right {right[mine].mean():.2f}"
        print(f"scores from {tenth / 10:.1f}: {mine.sum()} words, {means}")
    print(f"{len(judged)} words, {right.mean():.3f} right; expected calibration error {error:.3f}")


def scored_words(
    engine: Engine, arguments: argparse.Namespace, item: dict[str, Any], noise: int | None
) -> list[tuple[float, bool]]:
    """The score of each word of a recording, and whether the word is right.

    Args:
        engine: transcribes.
        arguments: model and beam size.
        item: the recording's entry in the manifest.
        noise: decibels of white noise below the recording; None for none.
    """
    import jiwer
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    normalize = EnglishTextNormalizer() if item["language"] == "en" else BasicTextNormalizer()
    audio = decode(arguments.folder / item["file"]).audio
    if noise is not None:
        drawn = np.random.default_rng(0).normal(size=len(audio)).astype(np.float32)
        audio = audio + drawn * (audio.std() * 10 ** (-noise / 20))
    options = TranscriptionOptions(
        model=arguments.model, language=item["language"], beam_size=arguments.beam_size, diarize=False, align=True
    )
    words = [word for word in engine.transcribe(audio, options).words if word.score is not None]
    owners = [index for index, word in enumerate(words) for _ in normalize(word.word).split()]
    if not owners:
        return []
    said = " ".join(normalize(word.word) for word in words)
    wrong = set(range(len(owners)))
    for chunk in jiwer.process_words(normalize(item["text"]), said).alignments[0]:
        if chunk.type == "equal":
            wrong -= set(range(chunk.hyp_start_idx, chunk.hyp_end_idx))
    mistaken = {owners[place] for place in wrong}
    return [(word.score or 0.0, index not in mistaken) for index, word in enumerate(words) if index in set(owners)]


def differences(
    found: list[tuple[str, float, float]],
    reference: list[tuple[str, float, float]],
    starts: list[float],
    ends: list[float],
) -> None:
    """Add the seconds by which the common words are early (below 0) or late."""

    def plain(word: str) -> str:
        return re.sub(r"[^\w]", "", word.lower()).replace("mr", "mister")

    matcher = difflib.SequenceMatcher(
        None, [plain(word) for word, _, _ in found], [plain(word) for word, _, _ in reference], autojunk=False
    )
    for a, b, size in matcher.get_matching_blocks():
        for (_, start, end), (_, true_start, true_end) in zip(
            found[a : a + size], reference[b : b + size], strict=True
        ):
            starts.append(start - true_start)
            ends.append(end - true_end)


if __name__ == "__main__":
    main()
