"""Values: invalid fields are refused, and encoding and decoding gives an equal value."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import inspect
from msgspec.structs import replace

from whisper_api.job_values import (
    JobCanceledEvent,
    JobCompletedEvent,
    JobEvent,
    JobFailedEvent,
    JobProgressEvent,
    JobQueuedEvent,
    JobResult,
    JobStatus,
    job_result,
)
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Progress, Segment, Transcript, Word


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 1.5),
        ("beam_size", 0),
        ("num_speakers", -1),
        ("vad_onset", 0.0),
        ("vad_padding", -0.1),
        ("task", "summarise"),
        ("vad", "webrtc"),
        ("align", "perhaps"),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: value}, TranscriptionOptions)


def test_a_form_of_strings_becomes_typed_options() -> None:
    form = {"model": "base", "beam_size": "3", "align": "false", "diarize": "true", "temperature": "0.2"}
    options = msgspec.convert(form, TranscriptionOptions, strict=False)
    assert options == TranscriptionOptions(model="base", beam_size=3, align=False, diarize=True, temperature=0.2)


def test_every_option_has_a_help_text() -> None:
    info = inspect.type_info(TranscriptionOptions)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        described = field.type
        assert isinstance(described, inspect.Metadata), field.name
        assert described.extra_json_schema
        assert described.extra_json_schema["description"], field.name


def test_a_record_of_a_newer_version_can_be_read() -> None:
    assert msgspec.json.decode(b'{"model": "base", "invented_later": 1}', type=TranscriptionOptions).model == "base"


def test_text_and_words_are_those_of_the_segments() -> None:
    hello, world = Word(word="Hello", start=0.0, end=0.4), Word(word="world.", start=0.5, end=0.9)
    transcript = Transcript(
        language="en",
        duration=2.0,
        model="base",
        options=TranscriptionOptions(),
        segments=(
            Segment(id=0, start=0.0, end=0.4, text=" Hello", words=(hello,)),
            Segment(id=1, start=0.5, end=0.9, text="world.", words=(world,)),
        ),
    )
    assert transcript.text == "Hello\nworld."
    assert transcript.words == (hello, world)
    assert msgspec.json.decode(msgspec.json.encode(transcript), type=Transcript) == transcript


def test_progress_reads_well_when_printed() -> None:
    assert str(Progress(0.255, "asr")) == " 26% asr"


def test_a_result_has_every_key_of_its_segments_and_words() -> None:
    word = Word(word="Hello", start=0.0, end=0.4)
    transcript = Transcript(
        language="en",
        duration=2.0,
        model="base",
        options=TranscriptionOptions(),
        segments=(Segment(id=0, start=0.0, end=0.4, text="Hello", words=(word,)),),
        warnings=("no speakers", "asked too much"),
    )
    result = job_result(transcript, "Hello\n", ("unknown field", "no speakers"))
    body = msgspec.json.decode(msgspec.json.encode(result))
    assert body["segments"] == [
        {
            "id": 0,
            "start": 0.0,
            "end": 0.4,
            "text": "Hello",
            "speaker": None,
            "words": [{"word": "Hello", "start": 0.0, "end": 0.4, "score": None, "speaker": None}],
        }
    ]
    assert body["text"] == "Hello\n"
    assert body["warnings"] == ["unknown field", "no speakers", "asked too much"]
    assert "speaker_embeddings" not in body
    assert msgspec.convert(body, JobResult) == result
    embedded = job_result(replace(transcript, speaker_embeddings={"SPEAKER_00": (0.5, -0.5)}), "")
    assert msgspec.json.decode(msgspec.json.encode(embedded))["speaker_embeddings"] == {"SPEAKER_00": [0.5, -0.5]}


def test_a_status_leaves_out_default_values() -> None:
    status = JobStatus(job_id="j", status="Queued", queue_position=1, created_at="2026-01-01T00:00:00Z")
    assert msgspec.json.decode(msgspec.json.encode(status)) == {
        "job_id": "j",
        "status": "Queued",
        "queue_position": 1,
        "created_at": "2026-01-01T00:00:00Z",
        "warnings": [],
    }


@pytest.mark.parametrize(
    "event",
    [
        JobQueuedEvent(job_id="j", queue_position=2),
        JobProgressEvent(job_id="j", progress=0.5, stage="asr", eta_seconds=1.5),
        JobCompletedEvent(job_id="j"),
        JobFailedEvent(job_id="j", error="no audio"),
        JobCanceledEvent(job_id="j"),
    ],
)
def test_an_event_says_which_it_is(event: JobEvent) -> None:
    assert msgspec.json.decode(msgspec.json.encode(event), type=JobEvent) == event
