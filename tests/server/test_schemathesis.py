"""What the description of the API says holds for the live server, whatever is sent to it (Schemathesis)."""

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
from hypothesis import HealthCheck, settings

from server.harness import RunningServer, finish, submit
from whisper_api.server.app import ROUTES
from whisper_api.server.openapi.openapi import FORM_OF_TEXT, description

schemathesis = pytest.importorskip("schemathesis", reason="Schemathesis needs Python 3.11")

KEY = "tests-schemathesis"
# Other names of what is looked at.
ALIASES = [
    "/transcription",
    "/health",
    *(path.replace(":path", "") for path in ROUTES if path.startswith(("/openai/v1/", "/openai/models"))),
    "/openai/deployments/{deployment}/audio/translations",
]
# Not looked at: what is not known is ignored, and a value that is empty was not given, as with the old server; whether
# there is such a model or a language is no matter of schemas.
LEFT_OUT = ("negative_data_rejection", "positive_data_acceptance")
# Beside the cases at the edges of each value, which are always the same.
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
    **dict.fromkeys(("url", "device_index", "languages[]")),
    **dict.fromkeys(f"known_speaker_{what}{end}" for what in ("names", "references") for end in ("", "[]")),
}
# What must have been answered at least once: else the cases no longer reach what they are to look at.
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
    """The description, more strictly than it is given out: what is answered has no field that is not described."""
    document = description(ROUTES, root_path="", authorization=True)
    for component in document["components"]["schemas"].values():
        if "properties" in component:
            component.setdefault("additionalProperties", False)
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if path != "/detect-language":
            # It is read by the same code everywhere.
            content.pop(FORM_OF_TEXT, None)
    return document


DOCUMENT = strictly()
described = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.config.SchemathesisConfig(seed=1)).exclude(
    path=ALIASES
)


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path, base_model_dir: Path, ecapa_path: Path
) -> Iterator[RunningServer]:
    """A server of its own, with authorization on."""
    changes = {"WHISPER_LANGUAGE": "en", "SYNC_REQUEST_TIMEOUT_SECONDS": 20}
    with RunningServer(tmp_path_factory.mktemp("schemathesis"), models_dir, changes) as server:
        yield server
        assert server.running
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def answered() -> Iterator[dict[str, set[int]]]:
    """Statuses by operation. Those that were looked at must have answered with what they are to be looked at for."""
    found: dict[str, set[int]] = collections.defaultdict(set)
    yield found
    missed = {label: REACHED[label] - found[label] for label in REACHED if label in found}
    assert not any(missed.values()), missed


@pytest.fixture(scope="module")
def job_ids(served: RunningServer, hello: bytes) -> tuple[str, ...]:
    """A job that has a result, and one that was canceled."""
    with served.client(served.key(KEY)) as client:
        done = submit(client, hello, keep_result="true", align="true")
        finish(client, done, "Completed")
        canceled = submit(client, hello)
        client.delete(f"/transcription/{canceled}", params={"force": "true"})
    return done, canceled


@pytest.fixture(scope="module")
def quiet() -> bytes:
    """A quarter of a second in which nobody speaks: its job takes next to no time."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(8_000))
    return file.getvalue()


def test_the_server_gives_out_the_description_that_it_is_held_to(served: RunningServer) -> None:
    with served.client("") as client:
        given = client.get("/openapi.json").json()
    assert given == json.loads(json.dumps(description(ROUTES, root_path="", authorization=True)))


@described.parametrize()  # type: ignore[untyped-decorator]
@SETTINGS
def test_what_the_server_answers_is_what_it_says(
    case: Any,
    served: RunningServer,
    job_ids: tuple[str, ...],
    hello: bytes,
    quiet: bytes,
    answered: dict[str, set[int]],
) -> None:
    # From the case alone, so that the same one is sent when it is tried again.
    sent = repr((case.path_parameters, case.query, case.headers, case.body))
    number = zlib.crc32(sent.encode(errors="replace"))
    _bound_wait(case)
    if number % 2:
        _make_sensible(case, number // 2, job_ids, hello, quiet)
    # That a key is asked for is looked at by two more requests, which would be most of them.
    names = LEFT_OUT if number % 16 < 2 else (*LEFT_OUT, "ignored_auth")
    left_out = [schemathesis.checks.CHECKS.get_one(name) for name in names]
    response = case.call_and_validate(
        base_url=served.url, headers={"Authorization": f"Bearer {served.key(KEY)}"}, excluded_checks=left_out
    )
    answered[case.operation.label].add(response.status_code)
    if response.status_code >= 400 and response.status_code != 405:
        body = response.json()
        told = DOCUMENT["paths"][case.operation.path][case.operation.method]["responses"][str(response.status_code)]
        assert f"`{body['code'] if 'code' in body else body['error']['code']}`: " in told["description"]
    if response.status_code == 202:
        _stop_jobs(served, response.json())


def test_what_is_to_be_reached_is_there() -> None:
    operations = {f"{method.upper()} {path}" for path, methods in strictly()["paths"].items() for method in methods}
    assert operations > set(REACHED)


def _bound_wait(case: Any) -> None:
    wait = (case.query or {}).get("wait")
    if isinstance(wait, (int, float)) and LONGEST_WAIT_SECONDS < wait <= 60:
        case.query["wait"] = LONGEST_WAIT_SECONDS


def _make_sensible(case: Any, number: int, job_ids: tuple[str, ...], speech: bytes, quiet: bytes) -> None:
    """Put in what no generator finds: the id of a job that is there, a file that is audio, the name of a model."""
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
            # Here, output_format says the same.
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


def _stop_jobs(server: RunningServer, accepted: dict[str, Any]) -> None:
    """Whoever waits for the next job shall not have to wait for these."""
    with server.client(server.key(KEY)) as client:
        for job in accepted.get("jobs", [accepted]):
            if job.get("job_id"):
                client.delete(f"/transcription/{job['job_id']}", params={"force": "true"})
