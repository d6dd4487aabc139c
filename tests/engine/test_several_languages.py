"""Recordings in several languages: the windows of each language, their text, their word times, and the warnings.

All speech that the tests have is English. So the models run as they are, but the second half of a recording is said to
be in German: the detected probabilities of English and German are exchanged there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from whisper_api import Engine, Segment, TranscriptionOptions, render
from whisper_api.engine.align import align as align_module
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.vad import Span
from whisper_api.engine.whisper.detection import LanguageDetector
from whisper_api.engine.whisper.model import Detected, Row
from whisper_api.engine.whisper.window import Window
from whisper_api.schema import PartialSegments

pytestmark = pytest.mark.models

RATE = 16_000
SPEECH_SECONDS = 8.0
BORDER = SPEECH_SECONDS + 0.5
ANSWER = Span(9 * RATE, 11 * RATE)
MULTI = TranscriptionOptions(language="multi", diarize=False)
Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def speech(short_call: Path) -> Floats:
    return decode(short_call).audio


@pytest.fixture(scope="module")
def twice(speech: Floats) -> Floats:
    """Eight seconds of speech, a pause of a second, and the same again: a single window of speech."""
    return np.concatenate([speech, np.zeros(RATE, np.float32), speech])


def exchanged(languages: dict[str, float], span: Span) -> dict[str, float]:
    late = span.start >= BORDER * RATE
    return {**languages, "en": languages["de"], "de": languages["en"]} if late else languages


@pytest.fixture
def german_second_half(monkeypatch: pytest.MonkeyPatch) -> None:
    listen = LanguageDetector.windows

    def windows(
        self: LanguageDetector, windows: Sequence[Window], parts: Sequence[Sequence[Span]] | None = None, **also: Any
    ) -> Generator[Detected, None, None]:
        spans = parts if parts is not None else [()] * len(windows)
        for window, inside, found in zip(windows, spans, listen(self, windows, parts, **also), strict=True):
            told = tuple(exchanged(each, span) for each, span in zip(found.parts, inside, strict=True))
            yield Detected(found.encoded, exchanged(found.languages, window.span), told)

    monkeypatch.setattr(LanguageDetector, "windows", windows)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, decode_operation: type[Any]) -> list[Row]:
    """The windows that are decoded."""
    rows: list[Row] = []
    run = decode_operation.run

    def watched(self: Any, inputs: Sequence[Row]) -> Any:
        rows.extend(inputs)
        return run(self, inputs)

    monkeypatch.setattr(decode_operation, "run", watched)
    return rows


def plain(segments: Sequence[Segment]) -> list[Segment]:
    return [replace(segment, language=None) for segment in segments]


def test_a_recording_in_one_language_is_transcribed_as_with_that_language(
    engine: Engine, twice: Floats, decoded: list[Row]
) -> None:
    several = engine.transcribe(twice, MULTI)
    rows = len(decoded)
    one = engine.transcribe(twice, replace(MULTI, language="en"))
    assert (several.language, several.languages) == ("en", ("en",))
    assert {segment.language for segment in several.segments} == {"en"}
    assert plain(several.segments) == list(one.segments)
    assert several.warnings == one.warnings
    # The window was encoded for the detection, and not again for its first decoding.
    assert rows
    assert decoded[0].input.ndim == 2
    assert one.languages == ()
    assert '"language": "en"' in render(several, "json")
    assert render(replace(several, segments=tuple(plain(several.segments))), "json") == render(one, "json")


@pytest.mark.usefixtures("german_second_half")
def test_a_window_is_cut_where_the_language_changes(
    engine: Engine, speech: Floats, twice: Floats, decoded: list[Row], base_model_dir: Path
) -> None:
    partial: list[PartialSegments] = []
    # Without word times, since a missing alignment model may let all windows be decoded again.
    untimed = replace(MULTI, align=False)
    transcript = engine.transcribe(twice, untimed, on_partial=partial.append)
    with engine.models.lease(engine.whisper.source(engine.store.ensure("base"))) as whisper:
        tokens = whisper.language_tokens
        # Before the first window, which is decoded alone, short stretches are decoded in both languages.
        first_row = next(index for index, row in enumerate(decoded) if row.alone)
        spoken = [(tokens["en"] in row.prompt, tokens["de"] in row.prompt) for row in decoded[first_row:]]
        # A piece may be decoded more than once, because English speech is no good German.
        assert [each for each, _ in groupby(spoken)] == [(True, False), (False, True)]
    assert set(transcript.languages) == {"en", "de"}
    assert transcript.language == transcript.languages[0]
    assert transcript.language_probability is None
    for segment in transcript.segments:
        assert segment.language == ("en" if segment.end <= BORDER else "de")
        assert segment.end <= BORDER or segment.start >= BORDER
    # The first half has the text that it has alone.
    alone = engine.transcribe(speech, replace(untimed, language="en"))
    first = [segment for segment in transcript.segments if segment.language == "en"]
    assert [segment.text for segment in first] == [segment.text for segment in alone.segments]
    told = [{segment.language for segment in each.segments} for each in partial]
    assert [each for each, _ in groupby(told)] == [{"en"}, {"de"}]


@pytest.fixture
def german_but_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """English and German are exchanged everywhere but in the answer."""
    listen = LanguageDetector.windows

    def told(languages: dict[str, float], span: Span) -> dict[str, float]:
        inside = ANSWER.start <= (span.start + span.end) / 2 < ANSWER.end and span.seconds < 2 * ANSWER.seconds
        return languages if inside else {**languages, "en": languages["de"], "de": languages["en"]}

    def windows(
        self: LanguageDetector, windows: Sequence[Window], parts: Sequence[Sequence[Span]] | None = None, **also: Any
    ) -> Generator[Detected, None, None]:
        spans = parts if parts is not None else [()] * len(windows)
        for window, inside, found in zip(windows, spans, listen(self, windows, parts, **also), strict=True):
            each = tuple(told(languages, span) for languages, span in zip(found.parts, inside, strict=True))
            yield Detected(found.encoded, told(found.languages, window.span), each)

    monkeypatch.setattr(LanguageDetector, "windows", windows)


@pytest.mark.usefixtures("german_but_for_the_answer")
def test_a_short_answer_has_its_own_language_when_its_text_is_probable_there(engine: Engine, speech: Floats) -> None:
    pause = np.zeros(ANSWER.start - len(speech), np.float32)
    audio = np.concatenate([speech, pause, speech[: ANSWER.end - ANSWER.start], pause, speech])
    transcript = engine.transcribe(audio, MULTI)
    spoken = [(segment.start + segment.end) / 2 for segment in transcript.segments if segment.language == "en"]
    assert spoken
    assert all(ANSWER.start <= RATE * time < ANSWER.end for time in spoken)
    assert transcript.languages == ("de", "en")


@pytest.mark.cpu("with 'auto' a GPU does not detect the languages of a window's parts, which would take its time")
@pytest.mark.usefixtures("german_second_half")
def test_speech_in_another_language_is_warned_about(engine: Engine, twice: Floats) -> None:
    # More English than German.
    transcript = engine.transcribe(twice[: round(15.5 * RATE)], replace(MULTI, language="auto", align=False))
    assert transcript.language == "en"
    assert {segment.language for segment in transcript.segments} == {None}
    assert transcript.languages == ()
    (warning,) = transcript.warnings
    assert "of the speech, first at 0:08." in warning
    assert "sound like 'de', but were transcribed as 'en'" in warning


@pytest.fixture(scope="module")
def aligning(
    models_dir: Path, base_model_dir: Path, random_alignment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """An engine with an alignment model for English alone, with random weights."""
    root = tmp_path_factory.mktemp("models")
    (root / "align").symlink_to(random_alignment, target_is_directory=True)
    (root / "whisper").symlink_to(models_dir / "whisper", target_is_directory=True)
    with Engine(device="cpu", model="base", models_dir=root, offline=True) as engine:
        yield engine


@pytest.mark.usefixtures("german_second_half")
def test_each_language_has_the_word_times_that_it_can_have(aligning: Engine, twice: Floats) -> None:
    partial: dict[int, PartialSegments] = {}
    transcript = aligning.transcribe(twice, MULTI, on_partial=lambda each: partial.update({each.index: each}))
    assert transcript.word_times == "ctc"
    assert transcript.alignment_model == "WAV2VEC2_ASR_BASE_960H"
    (warning,) = transcript.warnings
    assert "align-de" in warning
    for segment in transcript.segments:
        assert " ".join(word.word for word in segment.words) == segment.text
    assert {each.index for each in partial.values() if each.aligned} == {0, 1}
    times = [time for word in transcript.words for time in (word.start, word.end)]
    assert times == sorted(times)
    shown = [segment for _, each in sorted(partial.items()) for segment in each.segments]
    assert [replace(segment, id=0) for segment in shown] == [replace(each, id=0) for each in transcript.segments]


@pytest.mark.usefixtures("german_second_half")
def test_lost_speech_has_the_word_times_of_its_language(
    aligning: Engine, twice: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each half is said to have lost a sentence; only English has an alignment model."""
    aligned: list[str] = []
    real = align_module.align

    def align(ctx: Any, audio: Floats, segments: Any, language: str, *more: Any) -> Any:
        aligned.append(language)
        return real(ctx, audio, segments, language, *more)

    halves = [((1.0, 4.0), (0.0, SPEECH_SECONDS)), ((BORDER + 1.0, BORDER + 4.0), (BORDER, 2 * BORDER))]
    monkeypatch.setattr(align_module, "align", align)
    monkeypatch.setattr("whisper_api.engine.voicing.Voicing.lost", lambda *given: halves)
    # Random weights put words anywhere, which attention would otherwise have to confirm.
    monkeypatch.setattr("whisper_api.engine.lost_speech._confirmed", lambda text, voicing, language, lost: lost)
    transcript = aligning.transcribe(twice, MULTI)
    assert aligned == ["en", "en"]
    assert not any("not decoded again" in warning for warning in transcript.warnings)


@pytest.mark.usefixtures("german_second_half")
def test_when_no_language_can_be_aligned_attention_times_all_words(
    aligning: Engine, twice: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*ignored: object) -> None:
        raise OSError("the disk is gone")

    aligning.models.evict_idle()
    monkeypatch.setattr("whisper_api.engine.align.models.AlignmentSource.load", fail)
    transcript = aligning.transcribe(twice, MULTI)
    assert transcript.word_times == "attention"
    assert transcript.alignment_model is None
    assert all(segment.words for segment in transcript.segments)
    assert set(transcript.languages) == {"en", "de"}
