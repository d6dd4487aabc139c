"""Text that Whisper invents where nobody speaks, and spoken text that is the same, word for word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api import Engine, Segment, Transcript, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.context import JobContext
from whisper_api.engine.invented import CATALOGUE, InventedText, Phrases, Voice, catalogue
from whisper_api.engine.languages import CODES
from whisper_api.engine.silero import SILERO_FRAME
from whisper_api.engine.vad import SpeechFrames
from whisper_api.engine.whisper.model import DecodedTokens
from whisper_api.formats import render
from whisper_api.job_values import result_segment
from whisper_api.schema import HALLUCINATION, PartialSegments

RATE = 16_000
Floats = np.ndarray[Any, np.dtype[np.float32]]
ENTRIES = [(language, kind, phrase) for (language, kind), phrases in catalogue().entries.items() for phrase in phrases]


# --- the catalogue ---


def test_every_heading_is_a_language_that_whisper_knows_and_stands_once() -> None:
    headings = [line for line in CATALOGUE.read_text(encoding="utf-8").splitlines() if line.startswith("[")]
    assert len(headings) == len(set(headings)) == len(catalogue().entries)
    assert {language for language, _ in catalogue().entries} <= {*CODES, "any"}
    assert all(catalogue().entries.values())


def test_every_phrase_is_found_and_stands_once() -> None:
    assert len(ENTRIES) > 300
    assert len({(language, phrase) for language, _, phrase in ENTRIES}) == len(ENTRIES)
    for language, kind, phrase in ENTRIES:
        said = phrase.replace("*", " 2021 ").strip()
        assert catalogue().kind(said) in (kind, "credits"), (language, phrase)
        assert catalogue().kind(f"« {said.lower()} ! »") is not None, (language, phrase)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Sous-titres réalisés par la communauté d'Amara.org", "credits"),
        ("Sous-titrage ST' 501", "credits"),
        ("Untertitel im Auftrag des ZDF für funk, 2017", "credits"),
        ("Редактор субтитров А.Семкин Корректор А.Егорова", "credits"),
        ("请不吝点赞 订阅 转发 打赏支持明镜与点点栏目", "credits"),
        ("Merci d’avoir regardé cette vidéo !", "farewells"),
        ("Thank you. Thank you. you you", "farewells"),
        ("Thank you. Subtitles by the Amara.org community", "credits"),
        ("... ... ♪", "farewells"),
        ("Thank you, I will call you tomorrow.", None),
        ("Merci d'avoir regardé le rapport avant la réunion.", None),
        ("", "farewells"),
    ],
)
def test_what_counts_as_a_phrase(text: str, kind: str | None) -> None:
    assert catalogue().kind(text) == kind


@pytest.mark.parametrize("lines", [["Thank you"], ["[en farewells]", "Thank you | "], ["[en farewells]", "*"]])
def test_a_catalogue_of_another_form_is_refused(lines: list[str]) -> None:
    with pytest.raises(ValueError, match=r"before the first heading|no letter"):
        Phrases(lines)


@given(st.lists(st.sampled_from([p for _, _, p in ENTRIES if "*" not in p]), min_size=1, max_size=8), st.text("x"))
def test_phrases_one_after_the_other_are_invented_and_other_words_are_not(phrases: list[str], rest: str) -> None:
    assert catalogue().kind(" ".join(phrases)) is not None
    assert rest == "" or catalogue().kind(" ".join([*phrases, "qx" + rest])) in (None, "credits")


# --- what the sound says ---


def heard(*spans: tuple[float, float], seconds: float = 30.0) -> Voice:
    """A voice in these spans, in seconds."""
    frames = np.zeros(round(seconds * RATE / SILERO_FRAME), np.float32)
    for start, end in spans:
        frames[round(start * RATE / SILERO_FRAME) : round(end * RATE / SILERO_FRAME)] = 0.9
    return Voice(np.zeros(round(seconds * RATE), np.float32), SpeechFrames(frames, SILERO_FRAME))


def said(text: str, no_speech: float = 0.1, logprob: float = -0.3, **values: Any) -> Segment:
    return Segment(
        id=0, text=text, no_speech_prob=no_speech, avg_logprob=logprob, **{"start": 0.0, "end": 10.0, **values}
    )


def is_invented(segment: Segment, voice: Voice, *expected: str) -> bool:
    left = InventedText("drop", voice, expected).of_window(segment)
    flagged = InventedText("flag", voice, expected).of_window(segment)
    assert InventedText("keep", voice, expected).of_window(segment) is segment
    assert flagged is not None
    assert (left is None) == (HALLUCINATION in flagged.flags)
    return left is None


@pytest.mark.parametrize(
    ("phrase", "no_speech", "logprob"),
    [
        # The least certain figures of spoken phrases.
        ("Thank you.", 0.31, -1.13),
        ("Merci d'avoir regardé cette vidéo !", 0.387, -0.78),
        ("Sous-titrage ST' 501", 0.54, -1.24),
        ("...", 0.3, -1.0),
    ],
)
def test_a_phrase_counts_only_where_the_sound_agrees(phrase: str, no_speech: float, logprob: float) -> None:
    assert not is_invented(said(phrase, no_speech, logprob), heard((1.0, 3.0)))
    assert is_invented(said(phrase, no_speech, logprob), heard())
    assert is_invented(said(phrase, 0.05, -0.2), heard())
    assert is_invented(said(phrase, 0.7, -1.0), heard((1.0, 3.0)))


def test_other_text_needs_more_than_a_missing_voice() -> None:
    sung = said("It always seems like time stands still", 0.24, -0.22)
    assert not is_invented(sung, heard())
    assert is_invented(said("This is the first time.", 0.34, -0.9), heard())
    assert is_invented(said("2-3-4-4-4-4-4-4", 0.1, -0.07, flags=("repetitive",)), heard())
    assert not is_invented(said("Okay, I think they want to go on the air.", 0.3, -1.1), heard((0.0, 4.0)))
    assert is_invented(said("C'est ça.", 0.52, -1.01), heard((1.0, 1.2)))
    # The end of a word is no voice for two sentences.
    sentences = "The first time I've done this, I've never seen a dog like this before."
    assert is_invented(said(sentences, 0.31, -1.36, flags=("low_confidence",)), heard((9.7, 10.0)))
    assert not is_invented(said(sentences, 0.31, -1.36, flags=("low_confidence",)), heard((5.0, 10.0)))


@pytest.mark.parametrize("loop", ["oh oh oh oh", "I don't know. I don't know. I don't know.", "Uuuu... Uuuu... Uu"])
def test_a_loop_counts_only_without_a_voice(loop: str) -> None:
    assert is_invented(said(loop), heard())
    assert not is_invented(said(loop, 0.37, -1.1), heard((1.0, 3.0)))
    assert is_invented(said(loop, 0.8, -0.99), heard((1.0, 1.4)))
    assert not is_invented(said("It always seems like time stands still"), heard())


def test_nobody_says_a_long_credit_in_half_a_second() -> None:
    credit = said("Sous-titres réalisés par la communauté d'Amara.org", 0.05, -0.1)
    assert is_invented(credit, heard((1.0, 1.5)))
    assert not is_invented(credit, heard((1.0, 4.0)))


def test_words_of_the_prompt_count_where_whisper_doubts_that_anybody_speaks() -> None:
    prompt = "The following is a meeting about Zyntriqix."
    leaked, spoken = said(prompt, 0.77, -0.24), said("a meeting about", 0.2, -0.5)
    assert is_invented(leaked, heard((0.0, 9.0)), prompt)
    assert not is_invented(leaked, heard((0.0, 9.0)))
    assert not is_invented(spoken, heard((0.0, 9.0)), prompt)


def test_a_sentence_of_a_window_is_judged_by_its_own_time() -> None:
    judge = InventedText("drop", heard((0.0, 5.0)))
    words, farewell = said("We meet at noon.", start=0.2, end=4.8), said("Thank you.", start=7.0, end=9.0)
    marked = judge.marked([words, farewell])
    assert judge.kept(marked) == (words,)
    assert judge.marked([said("Thank you.", start=3.0, end=3.4)])[0].flags == ()
    assert InventedText("keep", heard()).marked([farewell]) == (farewell,)


# --- with the models ---


def test_the_warning_counts_what_is_left_out_with_its_times(ctx: JobContext) -> None:
    judge = InventedText("drop", heard())
    assert judge.of_window(said("you", start=3.0, end=5.5)) is None
    assert judge.settled(ctx, ()) == ()
    (warning,) = ctx.warnings
    assert "1 (3.0-5.5 s)" in warning
    judge.begin()
    ctx.warnings.clear()
    assert judge.settled(ctx, ()) == ()
    assert ctx.warnings == []


def test_silero_hears_the_same_voice_in_a_part_as_in_the_whole(short_call: Path, ctx: JobContext) -> None:
    from whisper_api.engine.vad import silero_frames

    audio = np.concatenate([np.zeros(4 * RATE, np.float32), decode(short_call).audio])
    whole, part = Voice(audio, silero_frames(ctx, audio)), Voice(audio, None)
    for start, end in ((0.0, 3.0), (3.5, 7.0), (6.0, 11.0)):
        assert part.seconds(start, end) == pytest.approx(whole.seconds(start, end), abs=0.2)
    assert whole.seconds(0.0, 3.0) == 0.0
    assert whole.seconds(4.0, 12.0) > 2.0


@pytest.fixture(scope="module")
def breath() -> Floats:
    """Ten seconds of breath, in which Whisper base writes a sentence."""
    random = np.random.default_rng(6)
    spectrum, frequencies = np.fft.rfft(random.standard_normal(10 * RATE)), np.fft.rfftfreq(10 * RATE, 1 / RATE)
    spectrum[(frequencies < 200) | (frequencies > 3500)] = 0
    swing = np.sin(2 * np.pi * 0.27 * np.arange(10 * RATE) / RATE)
    sound = np.fft.irfft(spectrum, 10 * RATE) * (np.maximum(0, swing) ** 1.5 + 0.6 * np.maximum(0, -swing) ** 3)
    breath: Floats = (sound / sound.std() * 0.1).astype(np.float32)
    return breath


def told(decoded: Sequence[int], logprob: float, no_speech: float) -> Any:
    return lambda _, inputs: [DecodedTokens(tuple(decoded), logprob, no_speech, False, None) for _ in inputs]


@pytest.mark.models
def test_text_over_breath_is_kept_flagged_or_dropped_everywhere(
    engine: Engine, breath: Floats, monkeypatch: pytest.MonkeyPatch, decode_operation: type[Any]
) -> None:
    tokens = engine.models.lease(engine.whisper.source(engine.store.ensure("base")))
    with tokens as whisper:
        thanks = whisper.tokenizer("en").encode(" Thank you.")
    # The real decoder's figures for a laugh.
    monkeypatch.setattr(decode_operation, "run", told(thanks, -0.98, 0.4))
    found: dict[str, Transcript] = {}
    shown: dict[str, list[PartialSegments]] = {}
    for mode in ("keep", "flag", "drop"):
        options = TranscriptionOptions(
            language="en",
            vad="none",
            align=False,
            diarize=False,
            hallucinations=mode,
        )
        found[mode] = engine.transcribe(breath, options, on_partial=shown.setdefault(mode, []).append)
    assert [segment.flags for segment in found["keep"].segments] == [()]
    (flagged,) = found["flag"].segments
    assert flagged.flags == (HALLUCINATION,)
    assert result_segment(flagged).flags == (HALLUCINATION,)
    assert '"flags": ["hallucination"]' in render(found["flag"], "json")
    assert "flags" not in render(found["keep"], "json")
    assert found["drop"].segments == ()
    assert shown["drop"] == []
    assert any("flag hallucination" in warning for warning in found["flag"].warnings)
    assert any("left out as invented" in warning for warning in found["drop"].warnings)
    assert not any("invented" in warning for warning in found["keep"].warnings)


@pytest.mark.models
def test_no_word_of_a_call_is_lost_beside_breath(engine: Engine, breath: Floats, short_call: Path) -> None:
    audio = np.concatenate([breath, decode(short_call).audio, breath])
    found = {
        mode: engine.transcribe(
            audio,
            TranscriptionOptions(language="en", vad="silero", align=False, diarize=False, hallucinations=mode),
        )
        for mode in ("keep", "drop")
    }
    assert found["keep"].text
    assert found["drop"].segments == found["keep"].segments
