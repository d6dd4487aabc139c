"""The application behaves as the description of the API says, for generated requests (Schemathesis)."""

from __future__ import annotations

import base64
import collections
import io
import json
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import config_in, new_service
from hypothesis import HealthCheck, settings
from msgspec.structs import replace

from whisper_api import create_app
from whisper_api.access.keys import KeyRing
from whisper_api.errors import InvalidAudio
from whisper_api.schema import Transcript, Word
from whisper_api.server.app import ROUTES
from whisper_api.server.openapi.openapi import URLENCODED_FORM, description
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

schemathesis = pytest.importorskip("schemathesis", reason="Schemathesis needs Python 3.11")
asgi = pytest.importorskip("schemathesis.python.asgi")
lazy = pytest.importorskip("schemathesis.pytest.lazy")
CoverageScenario = pytest.importorskip("schemathesis.generation.meta").CoverageScenario

UNUSABLE = "a prompt whose job fails"
URL = "http://127.0.0.1:8181"
# Routes that are other names of a tested route.
ALIASES = [
    "/transcription",
    "/health",
    *(path.replace(":path", "") for path in ROUTES if path.startswith(("/openai/v1/", "/openai/models"))),
    "/openai/deployments/{deployment}/audio/translations",
]
# Not looked at: what is not known is ignored, and a value that is empty was not given, as with the old server; whether
# there is such a model or a language is no matter of schemas. That a key is asked for is looked at by the test itself.
LEFT_OUT = ("negative_data_rejection", "positive_data_acceptance", "ignored_auth")
# Routes whose forms another route reads by the same code: the bounds of most fields are looked at there.
SAME_FIELDS = {
    "/transcriptions": "/transcribe",
    "/v1/audio/translations": "/v1/audio/transcriptions",
    "/openai/deployments/{deployment}/audio/transcriptions": "/v1/audio/transcriptions",
}
LOOKED_AT_AGAIN = {"file", "input_audio", "model", "response_format", "output_format"}
# Number of random cases, in addition to the fixed cases at the bounds of each value.
SETTINGS = settings(
    max_examples=10, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
LONGEST_WAIT_SECONDS = 0.05
# Values that are taken, of fields that take only some text; None for fields that are only taken with others, or here
# not at all.
SENSIBLE = {
    "language": "en",
    "model": "base",
    "metadata": '{"a": [1]}',
    "hf_token": "hf_x",
    "device": "cpu",
    "chunking_strategy": "auto",
    **dict.fromkeys(("url", "webhook_url", "device_index", "languages[]")),
    **dict.fromkeys(f"known_speaker_{what}{end}" for what in ("names", "references") for end in ("", "[]")),
}
# How many values of another type are sent for each place of a request: a list is as wrong as a number to the code.
# test_fuzz.py sends any values.
OTHER_TYPES = 2
# Responses that must occur at least once, so that the generated cases still reach these operations.
REACHED = {
    "POST /transcribe": {200, 202, 400, 401, 415},
    "GET /transcription/{job_id}": {200, 401, 404},
    "GET /transcription/{job_id}/result": {200, 400, 404, 409},
    "GET /transcription/{job_id}/events": {200, 404},
    "PUT /transcription/{job_id}/corrections": {200, 400, 404},
    "GET /transcriptions": {200, 400},
    "POST /transcriptions": {202, 400},
    "POST /detect-language": {200, 400},
    "POST /asr": {200, 400},
    "POST /v1/audio/transcriptions": {200, 400, 401},
    "POST /v1/audio/translations": {200, 400},
    "POST /openai/deployments/{deployment}/audio/transcriptions": {200, 400},
    "GET /v1/models/{id}": {200, 404},
}


def strictly() -> dict[str, Any]:
    """The description, made stricter: responses may have no undescribed field."""
    document = description(ROUTES, root_path="", authorization=True)
    for component in document["components"]["schemas"].values():
        if "properties" in component:
            component.setdefault("additionalProperties", False)
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if path != "/detect-language":
            # The same code reads this field on every route.
            content.pop(URLENCODED_FORM, None)
    for path, other in SAME_FIELDS.items():
        contents, others = (document["paths"][each]["post"]["requestBody"]["content"] for each in (path, other))
        for media_type, content in contents.items():
            known = others[media_type]["schema"]["properties"]
            fields = content["schema"]["properties"].items()
            kept = {name: field for name, field in fields if name in LOOKED_AT_AGAIN or known.get(name) != field}
            content["schema"] = {**content["schema"], "properties": kept}
    return document


DOCUMENT = strictly()
OPERATIONS = [
    (path, method) for path, methods in DOCUMENT["paths"].items() for method in methods if path not in ALIASES
]


class Speaking(FakeExecutor):
    """An executor whose transcripts have a value in every field."""

    def transcript(self, job: Job, audio: Path) -> Transcript:
        if job.options.prompt == UNUSABLE:
            raise InvalidAudio("the test says so")
        whole = super().transcript(job, audio)
        speaker = "SPEAKER_00" if job.options.diarize else None
        words = (Word(word="Hello", start=0.5, end=1.0, score=0.9, speaker=speaker),)
        (segment,) = whole.segments
        return replace(
            whole,
            segments=(replace(segment, words=words, speaker=speaker, avg_logprob=-0.5, temperature=0.0),),
            language_probability=0.9,
            language_probabilities={"en": 0.9, "de": 0.1},
            speakers=("SPEAKER_00",) if speaker else (),
            word_times="ctc",
        )


@pytest.fixture(scope="module")
def described() -> Any:
    """The description, of whose routes test_app.py sends the methods that they do not have."""
    phases: dict[str, Any] = {"coverage": {"unexpected-methods": []}}
    config = schemathesis.config.SchemathesisConfig.from_dict({"seed": 1, "phases": phases})
    return schemathesis.openapi.from_dict(DOCUMENT, config=config)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session with a key for the application in this process, which loads no model."""
    directory = tmp_path_factory.mktemp("schemathesis")
    # Schemathesis ends the application's lifespan after each test, so the service must outlive that.
    service = new_service(directory, Speaking("Hello"), language="en")
    service.start()
    app = create_app(config_in(directory, language="en", auth_failure_limit="none"), service=service)
    with asgi.get_client(app) as session:
        session.headers["Authorization"] = f"Bearer {KeyRing(service.store).create('tests-schemathesis')[1]}"
        yield session
    asgi.shutdown_lifespans()
    service.close()


@pytest.fixture(scope="module")
def strangers(served: Any) -> list[Any]:
    """A session without a key, and one with an unknown key."""
    sessions = [asgi.get_client(served.app) for _ in range(2)]
    sessions[1].headers["Authorization"] = "Bearer wk_unknown"
    return sessions


@pytest.fixture(scope="module")
def answered() -> Iterator[dict[str, set[int]]]:
    """The statuses that occurred, by operation. At the end, all statuses of ``REACHED`` must have occurred."""
    found: dict[str, set[int]] = collections.defaultdict(set)
    yield found
    missed = {label: REACHED[label] - found[label] for label in REACHED if label in found}
    assert not any(missed.values()), missed


@pytest.fixture(scope="module")
def job_ids(served: Any, hello: bytes) -> tuple[str, ...]:
    """The ids of a completed and of a failed job."""
    ids = []
    for prompt, state in (("", "Completed"), (UNUSABLE, "Failed")):
        fields = {"keep_result": "true", "prompt": prompt}
        answer = served.post(f"{URL}/transcribe", data=fields, files={"file": ("hello.wav", hello)})
        ids.append(answer.json()["job_id"])
        status: dict[str, Any] = {}
        # The first job loads the model, which takes minutes on a busy machine.
        for _ in range(5):
            status = served.get(f"{URL}/transcription/{ids[-1]}", params={"wait": 60}).json()
            if status["status"] not in ("Queued", "Processing"):
                break
        assert status["status"] == state, status
    return tuple(ids)


@pytest.fixture(scope="module")
def quiet() -> bytes:
    """A quarter of a second of silence, whose job takes almost no time."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(8_000))
    return file.getvalue()


def test_the_server_serves_the_description_that_is_tested(served: Any) -> None:
    given = served.get(f"{URL}/openapi.json").json()
    assert given == json.loads(json.dumps(description(ROUTES, root_path="", authorization=True)))


# Its cases take seconds to make, so the test makes them, and not each process that collects the test.
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_responses_match_the_api_description(
    path: str,
    method: str,
    described: Any,
    served: Any,
    job_ids: tuple[str, ...],
    hello: bytes,
    quiet: bytes,
    strangers: list[Any],
    answered: dict[str, set[int]],
) -> None:
    # The number of each case with a value of another type, by the place of the value.
    other_types: dict[tuple[str | None, ...], set[int]] = collections.defaultdict(set)

    @SETTINGS
    def matches(case: Any) -> None:
        # Derived from the case alone, so that a retry sends the same request.
        sent = repr((case.path_parameters, case.query, case.headers, case.body))
        number = zlib.crc32(sent.encode(errors="replace"))
        if place := place_of_another_type(case):
            if len(other_types[place] | {number}) > OTHER_TYPES:
                return
            other_types[place].add(number)
        _bound_wait(case)
        if number % 2:
            _make_sensible(case, number // 2, job_ids, hello, quiet)
        left_out = [schemathesis.checks.CHECKS.get_one(name) for name in LEFT_OUT]
        response = case.call_and_validate(base_url=URL, session=served, excluded_checks=left_out)
        # Two more requests for each case would triple the time.
        if number % 16 < 2 and asks_for_a_key(case):
            answers = [case.call(base_url=URL, session=each) for each in strangers]
            assert [each.status_code for each in answers] == [401, 401]
            answered[case.operation.label].add(401)
        answered[case.operation.label].add(response.status_code)
        if response.status_code >= 400 and response.status_code != 405:
            body = response.json()
            told = DOCUMENT["paths"][case.operation.path][case.operation.method]["responses"][str(response.status_code)]
            assert f"`{body['code'] if 'code' in body else body['error']['code']}`: " in told["description"]

    (test,) = lazy.get_all_tests(
        schema=described.include(path=path, method=method.upper()), test_func=matches, settings=None, given_kwargs={}
    )
    test.ok()[1]()


def place_of_another_type(case: Any) -> tuple[str | None, ...] | None:
    """Where a fixed case has a value of another type than the description says, if it has one."""
    found = case.meta.phase.data
    if getattr(found, "scenario", None) != CoverageScenario.INCORRECT_TYPE:
        return None
    return case.media_type, found.parameter, found.location


def asks_for_a_key(case: Any) -> bool:
    operation = DOCUMENT["paths"][case.operation.path][case.operation.method]
    # Some cases have another method than their operation.
    return case.method.lower() == case.operation.method and bool(operation.get("security", DOCUMENT.get("security")))


def test_every_operation_that_must_be_reached_exists() -> None:
    operations = {f"{method.upper()} {path}" for path, methods in strictly()["paths"].items() for method in methods}
    assert operations > set(REACHED)


def _bound_wait(case: Any) -> None:
    wait = (case.query or {}).get("wait")
    if isinstance(wait, (int, float)) and LONGEST_WAIT_SECONDS < wait <= 60:
        case.query["wait"] = LONGEST_WAIT_SECONDS


def _make_sensible(case: Any, number: int, job_ids: tuple[str, ...], speech: bytes, quiet: bytes) -> None:
    """Insert values that no generator finds: the id of an existing job, an audio file, the name of a model."""
    path = case.path_parameters or {}
    if "job_id" in path and case.method != "DELETE":
        path["job_id"] = job_ids[number % len(job_ids)]
    for name in path.keys() & {"id", "deployment"}:
        path[name] = "whisper-1"
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f"{case.operation.label} {number}"
    if isinstance(case.query, dict) and "language" in case.query:
        case.query["language"] = "en"
    if isinstance(case.body, dict) and case.media_type == "multipart/form-data":
        audio = quiet if number % 4 else speech
        several = isinstance(case.body.get("file"), list)
        sensible = {**SENSIBLE, "file": [audio, b"not audio"] if several else audio, "sync": number % 8 < 2}
        if not case.path.startswith(("/v1/", "/openai/")):
            # On this route, output_format has the same meaning.
            sensible["response_format"] = None
        file_field = "audio_file" if case.path == "/asr" else "file"
        sensible["audio_file"] = audio if case.path == "/asr" else None
        given = {name: sensible.get(name, value) for name, value in {file_field: b"", **case.body}.items()}
        case.body = {name: value for name, value in given.items() if value is not None}
    elif isinstance(case.body, dict) and "/audio/" in case.path:
        data = base64.b64encode(quiet if number % 4 else speech).decode()
        sources = {"input_audio": {"data": data}, "file": None, "file_url": None}
        sensible = {name.removesuffix("[]"): value for name, value in {**SENSIBLE, **sources}.items()}
        given = {name: sensible.get(name, value) for name, value in {"input_audio": None, **case.body}.items()}
        case.body = {name: value for name, value in given.items() if value is not None}
