"""The tree in the docstring is the tree of the classes; every error and every value survives pickling and copying."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest

import whisper_api
from whisper_api import errors, job_values, key_values, schema
from whisper_api.audit_records import AuditRecord
from whisper_api.config import Config
from whisper_api.options import RenderOptions, TranscriptionOptions
from whisper_api.server.responses.problems import QUOTA_EXCEEDED
from whisper_api.store.rows import Job
from whisper_api.store.usage import Allowance
from whisper_api.usage_records import QuotaUse, Usage, UsageRow
from whisper_api.voices import Speaker, VoiceEmbedding, VoiceSample
from whisper_api.webhooks import WebhookData, WebhookDelivery, WebhookEndpoint, WebhookEvent, WebhookSecret


def test_the_docstring_draws_every_error_below_its_base() -> None:
    drawn: dict[str, str] = {}
    above: dict[int, str] = {}
    assert errors.__doc__
    for line in errors.__doc__.splitlines():
        found = re.match(r"^    ([ │├└─]*)([A-Z]\w+)", line)
        if found:
            depth = len(found[1]) // 4
            above[depth] = found[2]
            if depth:
                drawn[found[2]] = above[depth - 1]
    classes = {
        name: value.__base__.__name__
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, errors.WhisperApiError) and value is not errors.WhisperApiError and value.__base__
    }
    assert drawn == classes
    assert sorted(errors.__all__) == sorted({*classes, "WhisperApiError"})


def test_an_invalid_option_names_its_field() -> None:
    error = errors.InvalidOption("language", "'xx' is not a language")
    assert error.field == "language"
    assert str(error) == "language: 'xx' is not a language"


def all_errors() -> list[type[BaseException]]:
    """Every exception of the package, private ones too, found by importing all of it."""
    for module in pkgutil.walk_packages(whisper_api.__path__, "whisper_api."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    def below(kind: type[BaseException]) -> Iterator[type[BaseException]]:
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    found = {kind for kind in below(BaseException) if kind.__module__.partition(".")[0] == "whisper_api"}
    return sorted(found, key=lambda kind: (kind.__module__, kind.__qualname__))


def argument(parameter: inspect.Parameter, number: int) -> Any:
    """A value of the type that a constructor's parameter is annotated with, unlike that of the other parameters."""
    values: dict[str, Any] = {
        "str": f"text of {parameter.name}",
        "float": number + 0.5,
        "int": 400 + number,
        "int | None": 400 + number,
        "str | None": f"text of {parameter.name}",
        "Mapping[str, str] | None": {"Retry-After": str(number)},
        "tuple[FileOutcome, ...] | None": (),
        "tuple[str, ...]": (f"text of {parameter.name}",),
        "ProblemType | None": QUOTA_EXCEEDED,
        "Sequence[tuple[Allowance, float]]": [(Allowance("jobs-day", "jobs", 1, "2026-01-02"), 1.0)],
        "Exception": OSError("the disk is gone"),
        "WhisperApiError": errors.OutOfMemory(f"text of {parameter.name}"),
        "Job": Job(
            job_id="j",
            owner="",
            options=TranscriptionOptions(),
            output_format="srt",
            audio_bytes=1,
            created_at=0.0,
        ),
    }
    return values[str(parameter.annotation)]


def instance(kind: type[BaseException]) -> BaseException:
    """An exception as the package makes it, with a value for every parameter, an attribute and a note."""
    if inspect.isfunction(kind.__init__):
        _, *parameters = inspect.signature(kind.__init__).parameters.values()
        error = kind(**{each.name: argument(each, number) for number, each in enumerate(parameters)})
    else:
        error = kind("some text")
    error.added_later = ["an attribute"]  # type: ignore[attr-defined]
    return error


def state(value: object) -> object:
    """Something to compare: exceptions are equal to themselves only, so their parts stand for them."""
    if isinstance(value, BaseException):
        return type(value), str(value), state(value.args), state(vars(value))
    if isinstance(value, Mapping):
        return {key: state(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(state(each) for each in value)
    return value


def pickled(protocol: int, value: Any) -> Any:
    return pickle.loads(pickle.dumps(value, protocol))


COPIES: dict[str, Callable[[Any], Any]] = {
    **{f"pickle {protocol}": functools.partial(pickled, protocol) for protocol in range(2, 6)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__qualname__)
def test_an_error_survives_pickling_and_copying(kind: type[BaseException]) -> None:
    error = instance(kind)
    for name, copied in COPIES.items():
        again = copied(error)
        assert again is not error
        assert state(again) == state(error), name
        # A second trip changes nothing more.
        assert state(copied(again)) == state(error), name


def test_the_walk_finds_errors_of_every_layer() -> None:
    found = {kind.__module__.split(".")[1] for kind in all_errors()}
    assert {"errors", "engine", "jobs", "server", "client"} <= found


class AnswerOfSomebodyElse(errors.JobFailed):
    """An error that a program derives from ours, with a constructor of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(f"job-{number}", f"job number {number} has failed", "OutOfMemory")
        self.number = number


def test_an_error_that_is_derived_from_ours_survives_too() -> None:
    again = pickle.loads(pickle.dumps(AnswerOfSomebodyElse(7)))
    assert (str(again), again.number, again.job_id, again.cause) == (
        "job number 7 has failed",
        7,
        "job-7",
        "OutOfMemory",
    )


def raise_it(error: BaseException) -> None:
    raise error


def test_a_process_pool_hands_over_the_error_that_was_raised() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for error in (errors.InvalidOption("language", "'xx' is not a language"), errors.QueueFull("full", 2.5)):
            with pytest.raises(type(error), match=re.escape(str(error))) as caught:
                pool.submit(raise_it, error).result(60)
            assert vars(caught.value).items() >= vars(error).items()


def webhook_endpoint() -> WebhookEndpoint:
    return WebhookEndpoint(
        endpoint_id="e",
        url="https://example.com",
        events=("transcription.failed",),
        include_result=True,
        description="a note",
        enabled=False,
        disabled_reason="the receiver answered 410",
        created_at="2026-01-02T00:00:00Z",
        updated_at="2026-01-02T00:00:00Z",
    )


def values() -> Iterator[object]:
    """A value of every public type, with every field set."""
    word = schema.Word(word="hello", start=0.0, end=0.5, score=0.9, speaker="SPEAKER_00")
    segment = schema.Segment(id=0, start=0.0, end=1.0, text="hello", words=(word,), speaker="SPEAKER_00")
    options = TranscriptionOptions(language="de", model="base", diarize=True, hotwords="Whisper")
    turn = schema.Turn(0.0, 1.0, "SPEAKER_00")
    voice = VoiceEmbedding(model="campplus", samples=(VoiceSample(seconds=2.0, vector=(0.6, 0.8)),))
    yield from (turn, voice)
    yield Speaker(
        speaker_id="s",
        name="Ada",
        model="campplus",
        model_revision="1",
        samples=1,
        seconds=2.0,
        created_at="2026-01-02T00:00:00Z",
        updated_at="2026-01-02T00:00:00Z",
    )
    transcript = schema.Transcript(
        language="de",
        duration=1.0,
        segments=(segment,),
        speakers=("SPEAKER_00",),
        speaker_embeddings={"SPEAKER_00": (0.5, 0.25)},
        speaker_scores={"SPEAKER_00": 0.75},
        turns=(turn,),
        model="base",
        redactions=(redaction := schema.Redaction(kind="names", start=0.0, end=0.5),),
        options=options,
        timings={"asr": 0.1},
        warnings=("a warning",),
    )
    yield from (
        word,
        segment,
        redaction,
        options,
        transcript,
        RenderOptions(),
        Config(),
        Config(port=0, hf_token="secret"),
    )
    yield schema.Progress(0.5, "asr")
    row = UsageRow(
        day="2026-01-02", key_id="k", model="base", requests=1, jobs=1, audio_seconds=1.0, compute_seconds=0.5
    )
    yield Usage(
        since="2026-01-01",
        until="2026-01-02",
        rows=(row,),
        requests=1,
        jobs=1,
        audio_seconds=1.0,
        compute_seconds=0.5,
        quotas=(QuotaUse(policy="jobs-day", unit="jobs", limit=2, remaining=1, reset_seconds=60),),
    )
    yield AuditRecord(time=datetime.now(timezone.utc), action="job.read", actor="key", target="j", status=200)
    yield job_values.Vocabulary(name="clients", terms=("Ada", "Bo"))
    key = key_values.AccessKey(key_id="0" * 8, name="a", role="user", state="active", created_at="2026-01-02T00:00:00Z")
    yield key
    yield key_values.KeyWithSecret(key=key, token="wk_secret")
    yield key_values.NewKey(name="a", expires_at=datetime(2030, 1, 2, tzinfo=timezone.utc), scopes=("read",))
    yield key_values.KeyChange(rate=None)
    yield schema.PartialSegments(index=0, aligned=True, segments=(segment,))
    yield job_values.job_result(transcript, "hello", ("a warning",), {"key": "value"})
    yield job_values.JobStatus(job_id="j", status="Queued", created_at="2026-01-02T00:00:00Z", metadata={"a": [1]})
    yield (endpoint := webhook_endpoint())
    yield WebhookSecret(secret="whsec_AAAA", previous_until="2026-01-02T00:00:00Z")
    yield WebhookEvent(
        type="transcription.completed",
        timestamp="2026-01-02T00:00:00Z",
        data=WebhookData(job_id="j", status="Completed", status_url="/j", result_omitted="gone"),
    )
    yield WebhookDelivery(
        delivery_id="msg_1",
        type="webhook.test",
        job_id=None,
        endpoint_id=endpoint.endpoint_id,
        url=endpoint.url,
        state="Failed",
        attempts=1,
        last_status=410,
        last_error="the receiver answered 410",
        created_at="2026-01-02T00:00:00Z",
        last_attempt_at="2026-01-02T00:00:00Z",
        next_attempt_at=None,
        ended_at="2026-01-02T00:00:00Z",
    )
    yield job_values.JobQueuedEvent(job_id="j", queue_position=2)
    yield job_values.JobProgressEvent(job_id="j", progress=0.5, stage="asr", eta_seconds=1.0)
    yield job_values.JobSegmentEvent(job_id="j", index=0, aligned=False, segments=(job_values.result_segment(segment),))
    yield job_values.JobCompletedEvent(job_id="j")
    yield job_values.JobFailedEvent(job_id="j", error="it failed")
    yield job_values.JobCanceledEvent(job_id="j")


@pytest.mark.parametrize("value", list(values()), ids=lambda value: type(value).__name__)
def test_a_public_value_survives_pickling_and_copying(value: object) -> None:
    for name, copied in COPIES.items():
        again = copied(value)
        assert type(again) is type(value)
        assert again == value, name


def test_every_public_value_is_among_those_that_are_tried() -> None:
    structs = {
        value
        for name in whisper_api.__all__
        if isinstance(value := getattr(whisper_api, name), type) and issubclass(value, msgspec.Struct)
    }
    events = {kind for name, kind in vars(schema).items() if re.fullmatch(r"Job\w+Event", name)}
    assert structs | events <= {type(value) for value in values()}
