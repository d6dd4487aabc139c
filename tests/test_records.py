"""Records as dictionaries, as JSON and as tables."""

from __future__ import annotations

import dataclasses
import json
import pprint
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_api import JobResult, JobStatus, Segment, Transcript, TranscriptionOptions, Word
from whisper_api.errors import InvalidInput
from whisper_api.job_values import Corrections, ResultWord, job_result
from whisper_api.records import Record
from whisper_api.schema import TokenLogprob

KINDS: list[type[Record]] = [Transcript, JobResult, JobStatus, Segment, Word, Corrections, TranscriptionOptions]
COLUMNS = ["word", "start", "end", "score", "speaker", "interpolated", "channel", "timing"]

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(max_size=20)
FLAGS = st.lists(TEXTS, max_size=2).map(tuple)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


WORDS = st.builds(
    Word,
    word=TEXTS,
    start=NUMBERS,
    end=NUMBERS,
    score=maybe(NUMBERS),
    speaker=maybe(TEXTS),
    interpolated=st.booleans(),
    timing=st.sampled_from([None, "attention"]),
)
TOKENS = st.builds(
    TokenLogprob, token=TEXTS, bytes=st.binary(max_size=4).map(tuple), logprob=st.floats(-1e9, 0, allow_nan=False)
)
SEGMENTS = st.builds(
    Segment,
    id=st.integers(0, 1 << 40),
    start=NUMBERS,
    end=NUMBERS,
    text=TEXTS,
    speaker=maybe(TEXTS),
    words=st.lists(WORDS, max_size=3).map(tuple),
    avg_logprob=maybe(NUMBERS),
    temperature=maybe(NUMBERS),
    flags=FLAGS,
    seek=maybe(st.integers(0, 1 << 40)),
    tokens=st.lists(st.integers(0, 60_000), max_size=3).map(tuple),
    logprobs=st.lists(TOKENS, max_size=2).map(tuple),
)
TRANSCRIPTS = st.builds(
    Transcript,
    language=TEXTS,
    duration=NUMBERS,
    segments=st.lists(SEGMENTS, max_size=3).map(tuple),
    language_probability=maybe(NUMBERS),
    language_probabilities=maybe(st.dictionaries(TEXTS, NUMBERS, max_size=3)),
    speakers=FLAGS,
    speaker_embeddings=maybe(st.dictionaries(TEXTS, st.lists(NUMBERS, max_size=3).map(tuple), max_size=2)),
    word_times=st.sampled_from(["ctc", "attention", "none"]),
    model=TEXTS,
    model_revision=maybe(TEXTS),
    options=st.builds(
        TranscriptionOptions, model=maybe(TEXTS), prompt=maybe(TEXTS), diarize=maybe(st.booleans()), align=st.booleans()
    ),
    timings=st.dictionaries(TEXTS, NUMBERS, max_size=3),
    warnings=FLAGS,
)
QUICKLY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])


def transcript(*speakers: str | None) -> Transcript:
    """A transcript of one segment with a word for each speaker; no segment without speakers."""
    words = tuple(
        Word(word=f"mot{index}", start=index, end=index + 0.5, score=0.5, speaker=speaker)
        for index, speaker in enumerate(speakers)
    )
    segments = (Segment(id=0, start=0.0, end=9.0, text="mot", words=words),) if words else ()
    return Transcript(language="fr", duration=9.0, model="base", options=TranscriptionOptions(), segments=segments)


@QUICKLY
@given(TRANSCRIPTS)
def test_a_transcript_is_read_back_equal(value: Transcript) -> None:
    assert Transcript.from_dict(value.to_dict()) == value
    assert Transcript.from_json(value.to_json()) == value
    assert Transcript.from_json(value.to_json(indent=2).encode()) == value
    # Any JSON library writes and reads the dictionary.
    assert Transcript.from_dict(json.loads(json.dumps(value.to_dict()))) == value


@QUICKLY
@given(TRANSCRIPTS, st.none() | st.dictionaries(TEXTS, TEXTS | NUMBERS | st.booleans(), max_size=3))
def test_a_result_is_read_back_equal(value: Transcript, metadata: dict[str, Any] | None) -> None:
    result = job_result(value, value.text, metadata=metadata)
    assert JobResult.from_dict(result.to_dict()) == result
    assert JobResult.from_json(result.to_json()) == result
    assert [word.word for word in result.words] == [word.word for word in value.words]


def test_members_of_a_later_version_are_ignored() -> None:
    value = transcript("A")
    later = {**value.to_dict(), "new_in_2031": {"a": 1}}
    later["segments"][0]["words"][0]["loudness"] = -20
    assert Transcript.from_dict(later) == value
    assert Transcript.from_json(json.dumps(later)) == value


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
@pytest.mark.parametrize("value", [None, 7, "text", [], [{}]])
def test_a_value_that_is_no_dictionary_is_refused_by_name(kind: type[Record], value: Any) -> None:
    with pytest.raises(InvalidInput, match=rf"this is no {kind.__name__}: Expected `object`"):
        kind.from_dict(value)
    with pytest.raises(InvalidInput, match=rf"this is no {kind.__name__}: Expected `object`"):
        kind.from_json(json.dumps(value))


@pytest.mark.parametrize("text", ["", "{", "nul", b"\xff\xfe{}", '{"language": "\udc80"}'])
def test_invalid_json_is_refused_by_name(text: str | bytes) -> None:
    with pytest.raises(InvalidInput, match="this is no Transcript"):
        Transcript.from_json(text)


def test_a_wrong_member_is_named_with_its_place() -> None:
    wrong = transcript("A", "B").to_dict()
    wrong["segments"][0]["words"][1]["start"] = "soon"
    with pytest.raises(InvalidInput, match=r"Expected `float`, got `str` - at `\$\.segments\[0\]\.words\[1\]\.start`"):
        Transcript.from_dict(wrong)
    missing = transcript("A").to_dict()
    del missing["language"]
    with pytest.raises(InvalidInput, match="missing required field `language`"):
        Transcript.from_dict(missing)


# --- tables ---


def test_pandas_takes_words_as_columns() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(transcript("A", "B").words)
    assert list(table.columns) == COLUMNS
    assert list(table["word"]) == ["mot0", "mot1"]
    assert list(table["end"]) == [0.5, 1.5]
    assert list(table["speaker"]) == ["A", "B"]
    assert list(table.groupby("speaker")["score"].mean()) == [0.5, 0.5]


@pytest.mark.parametrize("speakers", [(), (None, None), ("A", None)])
def test_the_columns_do_not_depend_on_the_words(speakers: tuple[str | None, ...]) -> None:
    pandas = pytest.importorskip("pandas")
    value = transcript(*speakers)
    table = pandas.DataFrame(value.words, columns=Word.__struct_fields__)
    assert list(table.columns) == COLUMNS
    assert len(table) == len(speakers)
    assert [None if pandas.isna(label) else label for label in table["speaker"]] == list(speakers)
    table = pandas.DataFrame(job_result(value, "").words, columns=ResultWord.__struct_fields__)
    assert list(table.columns) == [name for name in COLUMNS if name != "interpolated"]
    assert len(table) == len(speakers)


@pytest.mark.parametrize("kind", [Word, ResultWord])
def test_a_row_is_as_good_as_a_dataclass_and_stays_a_struct(kind: type[Any]) -> None:
    word: Any = kind(word="été", start=1.0, end=2.0, speaker="somebody with a long name " * 9)
    expected = {name: getattr(word, name) for name in kind.__struct_fields__}
    assert dataclasses.is_dataclass(kind)
    assert dataclasses.asdict(word) == expected
    assert pprint.pformat(word) == repr(word)
    assert msgspec.json.decode(msgspec.json.encode(word), type=type(word)) == word
    assert msgspec.structs.replace(word, end=3.0).end == 3.0
