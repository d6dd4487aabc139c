#!/usr/bin/env python3
"""How often known voices are recognised, and unknown ones taken for them, in synthesised conversations.

    scripts/eval_speakers.py [FOLDER] [--telephone] [--shipped] [--rounds N] [--only NAME ...] [--seconds N]
    scripts/eval_speakers.py FOLDER --pieces

Each voice of FOLDER (as ``conversations.py`` reads it; without it, the two voices of pyannote.audio's sample call) is
enrolled from up to 10 s of its first phrases, and speaks its other phrases in conversations. In turn one half of the
voices is enrolled and then the other half, so that everybody is once unknown. ``--telephone`` also enrols the voices
over a telephone. Prints, for several thresholds, the share of enrolled speakers who get no name or a wrong one, and the
share of other speakers who get a name. ``--shipped`` takes the thresholds that jobs have, which differ over telephones.

``--pieces`` compares every voice with pieces of 1.5, 3 and 8 s of every voice instead, as recorded, in noise and over a
telephone: with the thresholds of jobs, and for each voice with the highest similarity of two different other voices.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import conversations
import numpy as np
from measuring import needs

from whisper_api import Engine, Transcript, TranscriptionOptions, Turn, VoiceEmbedding
from whisper_api.engine.diarize.open_models import CAMPPLUS
from whisper_api.schema import SAMPLE_RATE

THRESHOLDS = (0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
# So low that every speaker gets a name, whose score shows which threshold would refuse it.
LOWEST = 0.01
SECONDS = 10.0
# Of the pieces that are compared with the voices.
PIECES = (1.5, 3.0, 8.0)
WAYS = (
    conversations.Conversation("as recorded", 1),
    conversations.Conversation("10 dB of noise", 1, noise=10.0),
    conversations.Conversation("telephone", 1, telephone=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("voices", type=Path, nargs="?", metavar="FOLDER")
    parser.add_argument("--telephone", action="store_true", help="enrol the voices over a telephone, too")
    parser.add_argument("--shipped", action="store_true", help="the thresholds of jobs only")
    parser.add_argument("--rounds", type=int, default=1, help="conversations of each kind")
    names = [plan.name for plan in conversations.CONVERSATIONS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seconds", type=float, help="of each conversation; its own length without this")
    parser.add_argument("--pieces", action="store_true", help="compare voices with pieces of voices")
    arguments = needs.parsed(parser)
    voices = conversations.read_voices(arguments.voices) if arguments.voices else conversations.call_voices()
    enrolled, others = _halves(voices)
    ways = {"as recorded": False, **({"over a telephone": True} if arguments.telephone else {})}
    models = os.environ.get("WHISPER_MODELS_DIR") or Path(__file__).parent.parent / "models_cache"
    if arguments.pieces:
        with Engine(device="cpu", models_dir=models) as engine:
            _compare_pieces(engine, enrolled, others)
        return
    with Engine(device="cpu", models_dir=models) as engine, tempfile.TemporaryDirectory() as made:
        known = {
            way: {name: _enrolled(engine, phrases, telephone) for name, phrases in enrolled.items()}
            for way, telephone in ways.items()
        }
        found: dict[tuple[str, bool], list[tuple[float, str, str]]] = defaultdict(list)
        for number in range(arguments.rounds):
            with mock.patch.object(conversations, "CONVERSATIONS", _chosen(arguments, number)):
                for name, audio, rttm in list(conversations.write(others, Path(made))):
                    for way, embeddings in known.items():
                        kind = (way, "telephone" in name)
                        found[kind] += _recognised(
                            engine, audio, rttm, embeddings, None if arguments.shipped else LOWEST
                        )
    for (way, telephone), outcomes in found.items():
        _report(
            f"enrolled {way}, {'telephone calls' if telephone else 'other conversations'}",
            outcomes,
            (LOWEST,) if arguments.shipped else THRESHOLDS,
        )


def _compare_pieces(engine: Engine, enrolled: Mapping[str, Sequence[Any]], others: Mapping[str, Sequence[Any]]) -> None:
    known = {name: _enrolled(engine, phrases, False) for name, phrases in enrolled.items()}
    print(f"{'pieces':22} {'own':>4} {'not named':>10} {'others':>7} {'named':>6}   left out: not named, named")
    for how in WAYS:
        for seconds in PIECES:
            pieces = {
                name: engine.enroll(
                    conversations.through(
                        how, np.concatenate(phrases)[: round(seconds * SAMPLE_RATE)], np.random.default_rng(0)
                    )
                )
                for name, phrases in others.items()
                if sum(map(len, phrases)) >= seconds * SAMPLE_RATE
            }
            pairs = {
                (name, other): (voice.similarity(piece), _threshold(voice, piece))
                for name, voice in known.items()
                for other, piece in pieces.items()
            }
            missed, named = _counts(pairs)
            # For each voice the threshold that is chosen without it.
            without = {
                left: max((s for pair, (s, _) in pairs.items() if left not in pair and pair[0] != pair[1]), default=1.0)
                for left in known
            }
            left_out = _counts({pair: (s, without[pair[0]]) for pair, (s, _) in pairs.items()})
            title = f"{seconds:g} s, {how.name}"
            different = len(pairs) - len(pieces)
            print(f"{title:22} {len(pieces):4} {missed:10} {different:7} {named:6}   {left_out[0]}, {left_out[1]}")


def _threshold(voice: VoiceEmbedding, piece: VoiceEmbedding) -> float:
    over_telephone = voice.telephone or piece.telephone
    return (CAMPPLUS.same_person_telephone or 1.0) if over_telephone else CAMPPLUS.same_person


def _counts(pairs: Mapping[tuple[str, str], tuple[float, float]]) -> tuple[int, int]:
    """Pieces that do not get the name of their voice, and pairs of different voices that would get one name.

    Args:
        pairs: names of voice and piece to similarity and threshold.
    """
    missed = sum(s < threshold for (name, other), (s, threshold) in pairs.items() if name == other)
    named = sum(s >= threshold for (name, other), (s, threshold) in pairs.items() if name != other)
    return missed, named


def _chosen(arguments: argparse.Namespace, number: int) -> tuple[conversations.Conversation, ...]:
    """The conversations of a round in an order of its own, which decides their random choices."""
    plans = [plan for plan in conversations.CONVERSATIONS if plan.name in arguments.only]
    if arguments.seconds is not None:
        plans = [dataclasses.replace(plan, seconds=arguments.seconds) for plan in plans]
    return tuple(plans[number:] + plans[:number])


def _halves(voices: Mapping[str, Sequence[Any]]) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """The phrases to enrol each voice from, and its other phrases."""
    first: dict[str, list[Any]] = {}
    for name, phrases in voices.items():
        enough = min(SECONDS * SAMPLE_RATE, sum(map(len, phrases)) / 2)
        ends = np.cumsum([len(phrase) for phrase in phrases])
        first[name] = list(phrases[: min(int(np.searchsorted(ends, enough)) + 1, len(phrases) - 1)])
    return first, {name: list(phrases[len(first[name]) :]) for name, phrases in voices.items()}


def _enrolled(engine: Engine, phrases: Sequence[Any], telephone: bool) -> VoiceEmbedding:
    audio = np.concatenate(phrases)[: round(SECONDS * SAMPLE_RATE)]
    return engine.enroll(conversations.over_telephone(audio) if telephone else audio)


def _recognised(
    engine: Engine, audio: Path, rttm: Path, known: Mapping[str, VoiceEmbedding], threshold: float | None
) -> list[tuple[float, str, str]]:
    """For each speaker with a name in one of the two rounds: score, name, and who it is. Unnamed ones have score 0."""
    lines = [line.split() for line in rttm.read_text(encoding="utf-8").splitlines()]
    truth = [Turn(float(line[3]), float(line[3]) + float(line[4]), line[7]) for line in lines]
    options = TranscriptionOptions(task="diarize", identify=True, identify_threshold=threshold)
    names = sorted(known)
    found = []
    for half in (names[::2], names[1::2]):
        transcript = engine.transcribe(audio, options, known_speakers={name: known[name] for name in half})
        found += _outcomes(transcript, truth, half)
    return found


def _outcomes(transcript: Transcript, truth: Sequence[Turn], enrolled: Sequence[str]) -> list[tuple[float, str, str]]:
    scores = transcript.speaker_scores or {}
    shared = {
        (label, name): sum(
            max(0.0, min(mine.end, theirs.end) - max(mine.start, theirs.start))
            for mine in transcript.turns
            if mine.speaker == label
            for theirs in truth
            if theirs.speaker == name
        )
        for label in transcript.speakers
        for name in {turn.speaker for turn in truth}
    }
    found = []
    for label in transcript.speakers:
        name = max({turn.speaker for turn in truth}, key=lambda name: shared[label, name])
        # Of several labels of one person, only the one with most of the speech must have the name.
        is_main = label == max(transcript.speakers, key=lambda other: shared[other, name])
        person = name if name in enrolled and (is_main or label == name) else ""
        found.append((scores.get(label, 0.0), label if label in scores else "", person))
    return found


def _report(title: str, outcomes: Sequence[tuple[float, str, str]], thresholds: Sequence[float]) -> None:
    enrolled = [(score, name, person) for score, name, person in outcomes if person]
    unknown = [(score, name) for score, name, person in outcomes if not person]
    print(f"{title}: {len(enrolled)} enrolled speakers, {len(unknown)} others")
    print(f"{'threshold':>10} {'no name':>8} {'wrong':>6} {'named':>6}")
    for threshold in thresholds:
        missed = sum(score < threshold for score, _, _ in enrolled)
        wrong = sum(score >= threshold and name != person for score, name, person in enrolled)
        named = sum(score >= threshold for score, _ in unknown)
        print(
            f"{threshold:10.2f} {missed / max(len(enrolled), 1):8.3f} {wrong / max(len(enrolled), 1):6.3f}"
            f" {named / max(len(unknown), 1):6.3f}"
        )


if __name__ == "__main__":
    main()
