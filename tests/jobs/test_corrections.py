"""Corrections of a transcript: which are accepted, and which outputs show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import Services, ended, new_service, running, submit, transcript_in
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from whisper_api.errors import InvalidOption, JobCanceled, JobNotFinished, JobNotFound, ResultGone
from whisper_api.formats import FORMATS, render
from whisper_api.job_values import Correction, Corrections, job_result
from whisper_api.jobs.corrections import applied, checked
from whisper_api.jobs.service import JobService
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Segment, TokenLogprob, Transcript, Word
from whisper_api.testing import FakeExecutor


def segment(number: int, words: list[str], text: str | None = None, speaker: str | None = None) -> Segment:
    """A segment of ten seconds, its words one second each."""
    begin = 10.0 * number
    return Segment(
        id=number,
        start=begin,
        end=begin + 10,
        text=" ".join(words) if text is None else text,
        speaker=speaker,
        words=tuple(
            Word(word=word, start=begin + index, end=begin + index + 1, score=0.5, speaker=speaker)
            for index, word in enumerate(words)
        ),
        tokens=(1, 2),
        logprobs=(TokenLogprob(token="a", bytes=(97,), logprob=-1.0),),
    )


def transcript(*segments: Segment, language: str = "en", **fields: Any) -> Transcript:
    return Transcript(
        language=language, duration=60.0, segments=segments, model="base", options=TranscriptionOptions(), **fields
    )


TALK = transcript(
    segment(0, ["Good", "morning,", "Mr.", "Smif."], speaker="SPEAKER_00"),
    segment(1, ["Hello."], speaker="SPEAKER_01"),
    segment(2, ["So,", "then."], speaker="SPEAKER_02"),
    speakers=("SPEAKER_00", "SPEAKER_01", "SPEAKER_02"),
    speaker_embeddings={"SPEAKER_00": (0.0, 1.0), "SPEAKER_01": (1.0, 0.0), "SPEAKER_02": (1.0, 1.0)},
    word_times="ctc",
)


def word(segment: int, index: int | None, text: str) -> Correction:
    return Correction(segment=segment, word=index, text=text)


def corrected(given: Transcript, *words: Correction, **speakers: str) -> Transcript:
    return applied(given, checked(given, Corrections(words=words, speakers=speakers)))


# --- words ---


def test_a_word_is_replaced_in_words_and_text_and_keeps_its_time() -> None:
    found = corrected(TALK, word(0, 3, "Smith."))
    assert found.segments[0].text == "Good morning, Mr. Smith."
    before, after = TALK.segments[0].words[3], found.segments[0].words[3]
    assert (after.word, after.start, after.end, after.speaker) == ("Smith.", before.start, before.end, before.speaker)
    assert after.score is None
    assert found.segments[0].words[:3] == TALK.segments[0].words[:3]
    assert found.segments[1:] == TALK.segments[1:]
    # The tokens of the model stay as decoded.
    assert (found.segments[0].tokens, found.segments[0].logprobs) == ((1, 2), TALK.segments[0].logprobs)


@pytest.mark.parametrize(
    ("removed", "text"),
    [
        ((0,), "morning, Mr. Smif."),
        ((1,), "Good Mr. Smif."),
        ((3,), "Good morning, Mr."),
        ((1, 2), "Good Smif."),
        ((0, 1, 2), "Smif."),
    ],
)
def test_a_word_that_is_removed_takes_one_space_with_it(removed: tuple[int, ...], text: str) -> None:
    found = corrected(TALK, *(word(0, index, " ") for index in removed))
    assert found.segments[0].text == text
    assert " ".join(each.word for each in found.segments[0].words) == text


def test_a_segment_of_which_nothing_is_left_is_not_there_and_the_others_keep_their_numbers() -> None:
    found = corrected(TALK, word(1, 0, ""), word(2, 0, "Well,"))
    assert [each.id for each in found.segments] == [0, 2]
    assert found.segments[1].text == "Well, then."
    assert "Hello" not in render(found, "srt")


def test_words_are_counted_as_they_were_recognised() -> None:
    found = corrected(TALK, word(0, 0, ""), word(0, 3, "Smith."))
    assert found.segments[0].text == "morning, Mr. Smith."


def test_the_last_of_two_corrections_counts_and_one_that_changes_nothing_is_none() -> None:
    kept = checked(
        TALK,
        Corrections(
            words=(
                word(2, 0, "Well,"),
                word(0, 3, "Smyth."),
                word(0, 3, "Smith."),
                word(0, 0, "Bad"),
                word(0, 0, "Good"),
            ),
            speakers={"SPEAKER_00": "SPEAKER_00", "SPEAKER_01": " Mr.\nSmith "},
        ),
    )
    assert kept == Corrections(words=(word(0, 3, "Smith."), word(2, 0, "Well,")), speakers={"SPEAKER_01": "Mr. Smith"})
    assert checked(TALK, kept) == kept


@pytest.mark.parametrize(
    ("language", "words", "text", "changes", "expected"),
    [
        ("ja", ["今日", "は", "雨", "です。"], "今日は雨です。", {2: "晴れ"}, "今日は晴れです。"),
        ("ja", ["今日", "は", "雨", "です。"], "今日は雨です。", {1: ""}, "今日雨です。"),
        ("zh", ["你", "好"], "你好", {0: "您"}, "您好"),
        # Words that are not in the text are joined by the rules of the language.
        ("zh", ["你", "好"], "", {0: "您"}, "您好"),
        ("fr", ["l'été", "vient"], "other", {1: "finit"}, "l'été finit"),
        # The same word twice.
        ("en", ["no", "no", "no"], "no no  no", {1: "yes"}, "no yes  no"),
        ("en", ["a", "an"], "a an", {1: "the"}, "a the"),
        # Marks between words stay.
        ("en", ["yes", "no"], "yes – no!", {1: "perhaps"}, "yes – perhaps!"),
    ],
)
def test_text_keeps_its_own_spaces(
    language: str, words: list[str], text: str, changes: dict[int, str], expected: str
) -> None:
    given = transcript(segment(0, words, text), language=language)
    found = corrected(given, *(word(0, index, new) for index, new in changes.items()))
    assert found.segments[0].text == expected


def test_a_translation_has_spaces_whatever_language_is_spoken() -> None:
    given = transcript(segment(0, ["good", "day"], ""), language="ja")
    given = replace(given, options=TranscriptionOptions(task="translate"))
    assert corrected(given, word(0, 0, "fine")).segments[0].text == "fine day"


def test_a_segment_without_words_has_its_text_replaced() -> None:
    given = transcript(segment(0, [], " Helo there."), segment(1, [], "Bye."))
    found = corrected(given, word(0, None, "Hello\r\n\r\nthere."), word(1, None, ""))
    assert [each.text for each in found.segments] == ["Hello there."]


@pytest.mark.parametrize("arrow", ["-->", "--->", "------>", "-->-->"])
def test_corrections_cannot_break_subtitles(arrow: str) -> None:
    found = corrected(TALK, word(0, 0, f"1\n\n2\n00:01 {arrow} 00:02"), SPEAKER_00=f"A\n\n1\n00:00 {arrow} 00:01")
    for format in ("srt", "vtt"):
        assert render(found, format).count("-->") == len(TALK.segments)
        assert render(found, format).count("\n\n") == render(TALK, format).count("\n\n")


@given(
    words=st.lists(st.text("abc.,", min_size=1, max_size=3), min_size=1, max_size=8),
    spaces=st.lists(st.sampled_from([" ", "  ", "\t"]), min_size=8, max_size=8),
    changes=st.dictionaries(st.integers(0, 7), st.sampled_from(["", "x", "y z"]), max_size=8),
)
def test_the_text_is_always_that_of_the_words(words: list[str], spaces: list[str], changes: dict[int, str]) -> None:
    text = "".join(each for pair in zip(words, spaces, strict=False) for each in pair).strip()
    given = transcript(segment(0, words, text))
    found = corrected(given, *(word(0, index, new) for index, new in changes.items() if index < len(words)))
    expected = [changes.get(index, old) for index, old in enumerate(words)]
    kept = [each for each in expected if each]
    assert [each.word for item in found.segments for each in item.words] == kept
    assert " ".join(found.text.split()) == " ".join(kept)


# --- speakers ---


def test_a_speaker_is_renamed_everywhere() -> None:
    found = corrected(TALK, SPEAKER_00="Ada", SPEAKER_02="Grace Hopper")
    assert found.speakers == ("Ada", "SPEAKER_01", "Grace Hopper")
    assert [each.speaker for each in found.segments] == list(found.speakers)
    assert {each.speaker for each in found.segments[0].words} == {"Ada"}
    assert found.speaker_embeddings is not None
    assert list(found.speaker_embeddings) == list(found.speakers)
    assert found.speaker_embeddings["Ada"] == (0.0, 1.0)
    for format in FORMATS:
        shown = render(found, format)
        assert "SPEAKER_00" not in shown
        assert ("Ada" in shown) == (format != "tsv")
    assert "SPEAKER_02" not in msgspec.json.encode(job_result(found, "")).decode()


def test_names_can_be_exchanged_and_two_speakers_can_be_one() -> None:
    swapped = corrected(TALK, SPEAKER_00="SPEAKER_01", SPEAKER_01="SPEAKER_00")
    assert [each.speaker for each in swapped.segments] == ["SPEAKER_01", "SPEAKER_00", "SPEAKER_02"]
    assert swapped.speaker_embeddings is not None
    assert swapped.speaker_embeddings["SPEAKER_01"] == (0.0, 1.0)
    one = corrected(TALK, SPEAKER_00="Ada", SPEAKER_02="Ada")
    assert one.speakers == ("Ada", "SPEAKER_01")
    assert one.speaker_embeddings == {"Ada": (0.0, 1.0), "SPEAKER_01": (1.0, 0.0)}


def test_words_and_names_change_together() -> None:
    found = corrected(TALK, word(0, 3, "Smith."), SPEAKER_00="Ada")
    assert found.segments[0].words[3].speaker == "Ada"
    assert render(found, "txt").startswith("[Ada]: Good morning, Mr. Smith.\n")


# --- what is not there ---


@pytest.mark.parametrize(
    ("words", "speakers", "message"),
    [
        ([word(3, 0, "x")], {}, r"words: there is no segment 3"),
        ([word(0, 4, "x")], {}, r"words: segment 0 has no word 4; it has 4"),
        ([word(0, None, "x")], {}, r"words: segment 0 has words: say which"),
        ([], {"SPEAKER_03": "x"}, r"speakers: there is no speaker 'SPEAKER_03'"),
        ([], {"SPEAKER_00": " \n"}, r"speakers: the name of SPEAKER_00 is empty"),
    ],
)
def test_corrections_of_missing_words_and_speakers_are_refused(
    words: list[Correction], speakers: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidOption, match=message):
        checked(TALK, Corrections(words=tuple(words), speakers=speakers))


def test_a_segment_without_words_has_no_first_word() -> None:
    with pytest.raises(InvalidOption, match="segment 0 has no word 0; it has 0"):
        checked(transcript(segment(0, [], "Hello")), Corrections(words=(word(0, 0, "x"),)))


# --- kept with the result ---


def completed(service: JobService, transcript: Transcript) -> None:
    """Put a job with this transcript into a service that was not started."""
    from store.test_jobs import new_job

    service.store.add(new_job("job"))
    service.store.claim("job", 1.0)
    service.store.complete("job", transcript, 2.0)


def test_corrected_times_are_those_of_the_word_and_of_its_segments_ends() -> None:
    later = Correction(segment=0, word=0, start=0.25)
    longer = Correction(segment=0, word=3, text="Smith.", end=4.5)
    given = Corrections(words=(later, longer))
    assert checked(TALK, given) == given
    first = applied(TALK, given).segments[0]
    assert [(each.word, each.start, each.end) for each in first.words] == [
        ("Good", 0.25, 1.0),
        ("morning,", 1.0, 2.0),
        ("Mr.", 2.0, 3.0),
        ("Smith.", 3.0, 4.5),
    ]
    assert (first.start, first.end) == (0.25, 4.5)
    # A time that is recognised already changes nothing.
    assert checked(TALK, Corrections(words=(Correction(segment=0, word=0, start=0.0, text="Good"),))) == Corrections()


@pytest.mark.parametrize(
    ("correction", "reason"),
    [
        (Correction(segment=0, word=1, start=0.9), "the word before it ends at 1 s"),
        (Correction(segment=0, word=1, end=2.1), "the word before it ends at 2.1 s"),
        (Correction(segment=0, word=1, start=1.5, end=1.5), "must end after it begins"),
        (Correction(segment=2, word=1, end=60.5), "the audio, which lasts 60 s"),
    ],
)
def test_times_that_overlap_are_refused(correction: Correction, reason: str) -> None:
    with pytest.raises(InvalidOption, match=reason):
        checked(TALK, Corrections(words=(correction,)))


def test_a_removed_word_makes_room_for_its_neighbour() -> None:
    given = Corrections(words=(Correction(segment=0, word=1, text=""), Correction(segment=0, word=2, start=1.2)))
    assert [each.start for each in applied(TALK, checked(TALK, given)).segments[0].words] == [0.0, 1.2, 3.0]


def test_corrections_replace_those_before_and_outlive_the_service(tmp_path: Path) -> None:
    results = new_service(tmp_path)
    completed(results, TALK)
    assert results.corrections("job", "ada") == Corrections()
    assert results.result("job", "ada")[1] == TALK
    results.correct("job", "ada", Corrections(words=(word(0, 3, "Smith."),)))
    results.correct("job", None, Corrections(words=(word(0, 0, "Bad"),), speakers={"SPEAKER_00": "Ada"}))
    with pytest.raises(InvalidOption):
        results.correct("job", "ada", Corrections(words=(word(9, 9, "x"),)))
    with pytest.raises(JobNotFound):
        results.correct("job", "bob", Corrections())
    results.close()
    results = new_service(tmp_path)
    assert results.corrections("job", "ada").speakers == {"SPEAKER_00": "Ada"}
    assert results.result("job", "ada")[1].segments[0].text == "Bad morning, Mr. Smif."
    assert transcript_in(results.store, "job") == TALK
    results.correct("job", "ada", Corrections())
    assert results.result("job", "ada")[1] == TALK
    results.close()


def test_times_that_an_older_version_stored_are_mended(tmp_path: Path) -> None:
    same = tuple(Word(word=each, start=1.06, end=1.06) for each in ("a", "b"))
    old = transcript(replace(segment(0, ["a", "b"]), words=same), replace(segment(1, [], "c"), start=1.06, end=1.06))
    results = new_service(tmp_path)
    completed(results, old)
    first, second = results.result("job", "ada")[1].segments
    results.close()
    a, b = first.words
    assert first.start <= a.start < a.end <= b.start < b.end <= first.end <= second.start < second.end


def test_corrections_need_a_stored_result(serve: Services) -> None:
    executor = FakeExecutor(held=True)
    service = serve(executor)
    job_id, canceled = submit(service, "what was sad"), submit(service)
    running(service, job_id)
    service.cancel(canceled, None)
    fixed = Corrections(words=(word(0, None, "what was said"),))
    for other, error in ((job_id, JobNotFinished), (canceled, JobCanceled), ("none", JobNotFound)):
        with pytest.raises(error):
            service.correct(other, "", fixed)
        with pytest.raises(error):
            service.corrections(other, "")
    executor.release()
    ended(service, job_id)
    service.correct(job_id, "", fixed)
    assert service.corrections(job_id, None) == fixed
    assert service.result(job_id, "")[1].text == "what was said"
    with pytest.raises(JobNotFound):
        service.correct(job_id, "bob", Corrections())
    service.cancel(job_id, "")
    with pytest.raises(ResultGone):
        service.correct(job_id, "", fixed)
    with pytest.raises(ResultGone):
        service.corrections(job_id, "")
