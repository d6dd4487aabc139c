"""Finds text that Whisper invents where nobody speaks.

Whisper writes credits of subtitles, farewells and loops over silence, music, noise and breath. No word alone shows that
a text is invented: people say "thank you" too. So a text counts as invented only where the sound agrees: Silero hears
no voice, or too little of it for the text, or Whisper itself doubts that anybody speaks.

The thresholds are chosen on noises, music and laughter, and on spoken phrases of the catalogue in up to half as much
noise; none of the phrases is lost.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from whisper_api.engine.context import JobContext
from whisper_api.engine.options import ResolvedOptions
from whisper_api.engine.silero import SILERO_FRAME, silero_probabilities
from whisper_api.engine.vad import SpeechFrames
from whisper_api.options import VAD_ONSET, Hallucinations
from whisper_api.schema import HALLUCINATION, SAMPLE_RATE, Segment

Floats = NDArray[np.float32]
Kind = Literal["credits", "farewells"]

CATALOGUE = Path(__file__).with_name("invented_phrases.txt")
HEADING = re.compile(r"\[(\w+) (credits|farewells)\]")
# The longest text, in letters, that ``*`` stands for.
MOST_ANY = 60

# Less voice than this is none: two frames of Silero. A laugh or a click has less than LITTLE_VOICE.
NO_VOICE = 0.07
LITTLE_VOICE = 0.3
# Nobody says more letters in a second. Short texts are left to the other rules: Silero's frames are too coarse.
LETTERS_PER_SECOND = 25
SHORT_LETTERS = 12
# A sentence's times may be wrong by so many seconds.
TIME_ERROR = 0.3
# Three times the same letters, and perhaps the beginning of a fourth time.
LOOP = re.compile(r"(.{1,40}?)\1{2,}.{0,40}")
# Seconds before a part of the audio that Silero hears first, to know the room.
BEFORE = 1.0

# Limits for the probability of no speech and for the mean log probability of the tokens. Spoken farewells have 0.01 to
# 0.39 and -1.13 to -0.16, but none has more than 0.38 with less than -0.9.
NO_SPEECH = 0.3
LOGPROB = -0.8
NO_VOICE_LOGPROB = -0.5
FAREWELL_NO_SPEECH, FAREWELL_LOGPROB = 0.38, -0.9
# Spoken credits, of which Whisper base understands a part, have up to 0.54.
CREDIT_NO_SPEECH = 0.6
LITTLE_NO_SPEECH, LITTLE_LOGPROB = 0.45, -1.0
# A loop at temperature 0 may be song, which a higher temperature writes down, unless the probability is above this.
HOPELESS_NO_SPEECH = 0.5
# A prompt makes its own words probable, so only the probability of no speech counts for them. Spoken words of a prompt
# have at most 0.2.
PROMPT_LETTERS = 5

# Most times that a warning lists.
LISTED = 10


class Phrases:
    """The catalogue of phrases that Whisper invents.

    Args:
        lines: the lines of the catalogue, in the form that its first lines describe.

    Raises:
        ValueError: a phrase stands before the first heading, or has no letter.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.entries: dict[tuple[str, Kind], list[str]] = {}
        self._plain: dict[str, Kind] = {}
        patterns: dict[str, Kind] = {}
        current: list[str] | None = None
        kind: Kind = "credits"
        for line in lines:
            heading = HEADING.fullmatch(line.strip())
            if heading is not None:
                kind = "credits" if heading[2] == "credits" else "farewells"
                current = self.entries.setdefault((heading[1], kind), [])
            elif line.strip() and not line.startswith("#"):
                if current is None:
                    raise ValueError(f"{line.strip()!r} stands before the first heading")
                for phrase in (part.strip() for part in line.split("|")):
                    current.append(phrase)
                    parts = [_letters(part) for part in phrase.split("*")]
                    if not any(parts):
                        raise ValueError(f"{phrase!r} has no letter")
                    if len(parts) == 1:
                        self._plain.setdefault(parts[0], kind)
                    else:
                        patterns.setdefault(f".{{0,{MOST_ANY}}}".join(map(re.escape, parts)), kind)
        self._lengths = sorted({len(phrase) for phrase in self._plain})
        self._credits = re.compile("|".join(pattern for pattern, kind in patterns.items() if kind == "credits") or "$^")
        self._farewells = re.compile("|".join(each for each, kind in patterns.items() if kind == "farewells") or "$^")

    def kind(self, text: str) -> Kind | None:
        """What a text is: a phrase of the catalogue, or several one after the other; None for any other text.

        A text without letters, such as dots or notes, counts as a farewell.
        """
        letters = _letters(text)
        if not letters:
            return "farewells"
        if self._credits.fullmatch(letters):
            return "credits"
        if self._farewells.fullmatch(letters):
            return "farewells"
        # The phrases that end at each position, from the beginning on.
        reached: dict[int, set[Kind]] = {0: set()}
        for start in range(len(letters)):
            if start in reached:
                for length in self._lengths:
                    found = self._plain.get(letters[start : start + length])
                    if found is not None and start + length <= len(letters):
                        reached.setdefault(start + length, set()).update(reached[start], (found,))
        kinds = reached.get(len(letters))
        return None if kinds is None else "credits" if "credits" in kinds else "farewells"


@functools.lru_cache(maxsize=1)
def catalogue() -> Phrases:
    """The catalogue that the package ships, which is read once."""
    return Phrases(CATALOGUE.read_text(encoding="utf-8").splitlines())


def _letters(text: str) -> str:
    """The letters and digits of a text, in lower case, without spaces."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


@dataclass(frozen=True, eq=False)
class Voice:
    """Where Silero hears a voice.

    Attributes:
        audio: float32, shape (samples,), mono, 16 kHz.
        frames: the probabilities of the whole recording; None to compute those that are asked for.
        onset: least probability of a frame with a voice.
    """

    audio: Floats
    frames: SpeechFrames | None
    onset: float = VAD_ONSET

    def seconds(self, start: float, end: float) -> float:
        """Seconds with a voice between two times, in seconds."""
        first, after = max(0, round(start * SAMPLE_RATE)), min(len(self.audio), round(end * SAMPLE_RATE))
        if self.frames is None:
            begin = max(0, first - round(BEFORE * SAMPLE_RATE))
            frames = SpeechFrames(silero_probabilities(self.audio[begin:after]), SILERO_FRAME)
            first, after = first - begin, after - begin
        else:
            frames = self.frames
        part = frames.probabilities[first // frames.step : -(-after // frames.step)]
        return int((part >= self.onset).sum()) * frames.step / SAMPLE_RATE


class InventedText:
    """Finds the invented text of one job.

    Args:
        mode: what becomes of it: ``keep`` looks for none, ``flag`` gives it a flag, ``drop`` leaves it out.
        voice: where a voice is heard.
        expected: the job's prompt and hotwords; Whisper also invents their words.
    """

    def __init__(self, mode: Hallucinations, voice: Voice, expected: Sequence[str | None] = ()) -> None:
        self._mode = mode
        self._voice = voice
        self._expected = [_letters(text) for text in expected if text]
        self._removed: set[tuple[float, float]] = set()

    @classmethod
    def of(cls, options: ResolvedOptions, audio: Floats, silero: SpeechFrames | None) -> InventedText:
        """For one job.

        Args:
            options: the job's options.
            audio: float32, shape (samples,), mono, 16 kHz.
            silero: Silero's probabilities, if they are known.
        """
        voice = Voice(audio, silero, min(VAD_ONSET, options.vad_onset))
        return cls(options.hallucinations, voice, (options.prompt, options.hotwords))

    def begin(self) -> None:
        """Forget what was left out: all windows are decoded again."""
        self._removed.clear()

    def is_hopeless(self, start: float, end: float, no_speech_prob: float, avg_logprob: float) -> bool:
        """Whether further attempts on a window are in vain, because any text of it would be left out.

        Args:
            start: seconds.
            end: seconds.
            no_speech_prob: probability that the window holds no speech.
            avg_logprob: mean log probability of the first attempt's tokens.
        """
        sure = no_speech_prob > (NO_SPEECH if avg_logprob < LITTLE_LOGPROB else HOPELESS_NO_SPEECH)
        return sure and self._mode == "drop" and self._voice.seconds(start, end) < NO_VOICE

    def of_window(self, segment: Segment) -> Segment | None:
        """Judge the text of a whole window. Returns None if it is left out."""
        if self._mode == "keep" or not self._is_invented_window(segment):
            return segment
        if self._mode == "drop":
            self._removed.add((segment.start, segment.end))
            return None
        return _flagged(segment)

    def marked(self, sentences: Iterable[Segment]) -> tuple[Segment, ...]:
        """Give a flag to the sentences that are invented; :meth:`kept` leaves them out."""
        if self._mode == "keep":
            return tuple(sentences)
        return tuple(_flagged(each) if self._is_invented_sentence(each) else each for each in sentences)

    def kept(self, segments: Iterable[Segment]) -> tuple[Segment, ...]:
        """The segments that the transcript shows."""
        return tuple(each for each in segments if self._mode != "drop" or HALLUCINATION not in each.flags)

    def settled(
        self, ctx: JobContext, segments: Sequence[Segment], elapsed: Callable[[float], float] = lambda time: time
    ) -> tuple[Segment, ...]:
        """The segments of the finished transcript. A warning counts those that are invented, with their times.

        Args:
            ctx: the job.
            segments: all segments, with times in the recording.
            elapsed: turns a time in the audio that was judged into a time in the recording.
        """
        flagged = [(each.start, each.end) for each in segments if HALLUCINATION in each.flags]
        if self._mode == "drop":
            removed = {(elapsed(start), elapsed(end)) for start, end in self._removed}
            flagged = sorted(removed.union(flagged))
        if flagged:
            times = ", ".join(f"{start:.1f}-{end:.1f} s" for start, end in flagged[:LISTED])
            counted = f"{len(flagged)} ({times}{', ...' if len(flagged) > LISTED else ''})"
            if self._mode == "drop":
                ctx.warn(
                    f"segments left out as invented, since nobody is heard to say them: {counted}; "
                    "hallucinations=flag keeps them"
                )
            else:
                ctx.warn(f"segments with the flag hallucination, since nobody is heard to say them: {counted}")
        return self.kept(segments)

    def _is_invented_window(self, segment: Segment) -> bool:
        no_speech, logprob = segment.no_speech_prob or 0.0, segment.avg_logprob or 0.0
        kind = catalogue().kind(segment.text)
        prompted = self._is_expected(segment.text)
        known = kind is not None or LOOP.fullmatch(_letters(segment.text)) is not None
        doubtful = no_speech > NO_SPEECH or logprob < LOGPROB or bool(segment.flags)
        if not (doubtful or known or prompted):
            return False
        denied = no_speech > NO_SPEECH and logprob < LITTLE_LOGPROB
        voice = self._voice.seconds(segment.start, segment.end)
        if voice < NO_VOICE and (known or segment.flags or (no_speech > NO_SPEECH and logprob < NO_VOICE_LOGPROB)):
            return True
        if (kind is not None or denied) and _is_too_fast(segment.text, voice):
            return True
        if prompted and no_speech > NO_SPEECH:
            return True
        if kind == "credits":
            return no_speech > CREDIT_NO_SPEECH
        if known and no_speech > FAREWELL_NO_SPEECH and logprob < FAREWELL_LOGPROB:
            return True
        return voice < LITTLE_VOICE and no_speech > LITTLE_NO_SPEECH and logprob < LITTLE_LOGPROB

    def _is_invented_sentence(self, sentence: Segment) -> bool:
        """Whether a sentence of a window is invented; the figures of its window say little about it."""
        if HALLUCINATION in sentence.flags or catalogue().kind(sentence.text) is None:
            return False
        voice = self._voice.seconds(sentence.start - TIME_ERROR, sentence.end + TIME_ERROR)
        return voice < NO_VOICE or _is_too_fast(sentence.text, voice)

    def _is_expected(self, text: str) -> bool:
        letters = _letters(text)
        return len(letters) >= PROMPT_LETTERS and any(letters in expected for expected in self._expected)


def _is_too_fast(text: str, voice: float) -> bool:
    count = len(_letters(text))
    return count >= SHORT_LETTERS and count > voice * LETTERS_PER_SECOND


def _flagged(segment: Segment) -> Segment:
    return segment if HALLUCINATION in segment.flags else replace(segment, flags=(*segment.flags, HALLUCINATION))
