#!/usr/bin/env python3
"""Names hidden among hundreds of others: how many come out, with a vocabulary, with hotwords and with nothing.

    scripts/eval_vocabulary.py [FOLDER] [--model NAME] [--distractors N] [--sentences N]

Without FOLDER, espeak-ng speaks sentences with names and terms. With FOLDER, which holds a manifest.json as for
eval_accuracy.py, the terms are the longer words of the reference texts that come out wrong. Each list of terms also has
names that nobody says. Prints for each way the word errors (after Whisper's text normalisation; needs the extra
"eval"), the recall of the spoken terms, the names that came out though nobody says them, and the CPU seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import needs

from whisper_api import Engine, TranscriptionOptions
from whisper_api.engine.whisper.prompt import has_term
from whisper_api.engine.whisper.resemblance import plain_words

SENTENCES = (
    "Please send the report to {} before the meeting on Friday.",
    "I talked to {} about it, and we will decide next week.",
    "The new version of {} is much faster than the old one.",
    "We met {} at the station, and then we went home.",
    "Could you ask {} whether the order has arrived?",
    "Most of the work was done by {} in the last two months.",
)
TERMS = (
    *("Siobhan", "Niamh", "Xochitl", "Szymanski", "Kowalczyk", "Okonkwo", "Adebayo", "Bhattacharya", "Krishnamurthy"),
    *("Papadopoulos", "Vandenberghe", "Kubernetes", "Grafana", "PostgreSQL", "Ozempic", "Semaglutide", "Levothyroxine"),
    *("Atorvastatin", "Worcestershire", "Qualcomm", "Huawei", "Zyntriqix", "Digique Plus", "CynapseFive", "Sheyla"),
    *("Thorsten Vogelsang", "Moira Kincaid", "Rafał Wójcik", "Björn Håkansson", "Aoife Gallagher", "Raclopride"),
    *("Tchaikovsky", "Nakamura", "Hyundai", "Wachowski", "Guillermo", "Mbappé", "Ngozi", "Thibaut", "Saoirse"),
)
VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m4")
# Names that nobody says are made of these.
FIRST = "Hart Lind Berg Stein Wood Ash Black Carl Dan Ed Fair Gold Hol John Kings Lang Mor Nor Os Peter Rich Sand Wal"
LAST = "man qvist son ford ley field burg stein berg wood worth well ton by dale hurst kamp mark ner ridge shaw stad"
LETTERS_OF_A_TERM = 5


@dataclass(frozen=True)
class Item:
    """A recording: its file, language, reference text and the terms that are said."""

    path: Path
    language: str
    text: str
    terms: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--model", default="base")
    parser.add_argument("--distractors", type=int, default=500)
    parser.add_argument("--sentences", type=int, default=len(TERMS), help="of those that espeak-ng speaks")
    arguments = needs.parsed(parser, needs.MODEL, needs.JIWER, needs.NORMALIZER)
    names = [a + b for a, b in itertools.product(FIRST.split(), LAST.split())]
    others = random.Random(0).sample(names, arguments.distractors)
    models = Path(os.environ.get("WHISPER_MODELS_DIR") or Path(__file__).parent.parent / "models_cache").absolute()
    with tempfile.TemporaryDirectory() as scratch, Engine(device="cpu", models_dir=models) as engine:
        if arguments.folder is None:
            items = list(spoken(Path(scratch), arguments.sentences))
        else:
            items = list(recorded(arguments.folder, engine, arguments.model))
        said = [term for item in items for term in item.terms]
        mixed = list(dict.fromkeys([*said, *others]))
        random.Random(1).shuffle(mixed)
        ways: dict[str, dict[str, Any]] = {
            "nothing": {},
            f"hotwords: {len(said)} terms alone": {"hotwords": ", ".join(said)},
            f"hotwords: {len(mixed)}": {"hotwords": ", ".join(mixed)},
            f"vocabulary: {len(mixed)}": {"vocabulary": tuple(mixed)},
            f"vocabulary: {len(others)} that nobody says": {"vocabulary": tuple(others)},
        }
        print(f"{len(items)} recordings, {len(said)} spoken terms, {len(others)} other names")
        for name, options in ways.items():
            measure(name, engine, items, others, TranscriptionOptions(model=arguments.model, **options))


def spoken(folder: Path, count: int) -> Iterator[Item]:
    """Sentences with the terms, spoken by espeak-ng."""
    for number, term in enumerate(TERMS[:count]):
        text, voice = SENTENCES[number % len(SENTENCES)].format(term), VOICES[number % len(VOICES)]
        path = folder / f"{number}.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", "150", "-w", path, text], check=True)
        yield Item(path, "en", text, (term,))


def recorded(folder: Path, engine: Engine, model: str) -> Iterator[Item]:
    """The recordings of a manifest, with the words that come out wrong as terms."""
    for entry in json.loads((folder / "manifest.json").read_text()):
        if not entry.get("text"):
            continue
        item = Item(folder / entry["file"], entry["language"], entry["text"])
        heard = set(plain_words(transcribed(engine, item, TranscriptionOptions(model=model))))
        words = dict.fromkeys(word.strip(".,;:!?«»\"'()") for word in item.text.split())
        missed = [word for word in words if len(word) >= LETTERS_OF_A_TERM and not heard.issuperset(plain_words(word))]
        yield Item(item.path, item.language, item.text, tuple(missed))


def transcribed(engine: Engine, item: Item, options: TranscriptionOptions) -> str:
    from msgspec.structs import replace

    return engine.transcribe(item.path, replace(options, language=item.language, align=False, diarize=False)).text


def measure(
    name: str, engine: Engine, items: Sequence[Item], others: Sequence[str], options: TranscriptionOptions
) -> None:
    import jiwer
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    english, basic = EnglishTextNormalizer(), BasicTextNormalizer()
    errors = words = found = inserted = 0
    begun = time.process_time()
    texts = [transcribed(engine, item, options) for item in items]
    seconds = time.process_time() - begun
    for item, text in zip(items, texts, strict=True):
        normalize = english if item.language == "en" else basic
        compared = jiwer.process_words(normalize(item.text), normalize(text))
        errors += compared.substitutions + compared.deletions + compared.insertions
        words += len(normalize(item.text).split())
        found += sum(has_term(text, term) for term in item.terms)
        inserted += sum(has_term(text, other) for other in others if not has_term(item.text, other))
    terms = sum(len(item.terms) for item in items)
    print(
        f"{name}: word errors {errors}/{words}, recall {found}/{terms}, names that nobody says {inserted}, "
        f"{seconds:.1f} CPU-s",
        flush=True,
    )


if __name__ == "__main__":
    main()
