"""Every route against every role and every scope, and what an operator can read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from server.inside import AUDIO, Inside, inside, on_a_loop, problem
from whisper_api.access.key_rules import SCOPES_OF_ROLES
from whisper_api.access.keys import KeyRing
from whisper_api.errors import InvalidAudio
from whisper_api.key_values import Role, Scope
from whisper_api.server.app import ROUTES
from whisper_api.server.operations import Operation
from whisper_api.store.rows import Job
from whisper_api.testing import FakeExecutor

OPERATIONS = [(path, method, each) for path, route in ROUTES.items() for method, each in route.operations.items()]
# What every key of the operation's roles may call, whatever its scopes.
WITHOUT_SCOPE = {
    "GET /status",
    "GET /events/check",
    "GET /usage",
    "GET /metrics",
    "GET /models",
    "GET /models/{id:path}",
}


def code_in(answer: Any) -> str:
    """The code of an error in either shape."""
    body = answer.json()
    code: str = (body["error"] if isinstance(body.get("error"), dict) else body)["code"]
    return code


def expected(role: Role, scopes: tuple[Scope, ...], operation: Operation) -> str | None:
    """The code of the refusal of a key; None when it may call the operation."""
    if operation.open:
        return None
    if role not in operation.roles:
        return "forbidden_role"
    return None if not scopes or operation.scope in (None, *scopes) else "forbidden_scope"


@pytest.mark.parametrize("role", get_args(Role))
@on_a_loop
async def test_a_key_may_call_what_its_role_and_scopes_allow_and_nothing_else(tmp_path: Path, role: Role) -> None:
    async with inside(tmp_path, enable_authorization=True) as app:
        # The requests of this test must not end the key that sends them.
        app.token("root", "admin")
        for scopes in ((), *((scope,) for scope in SCOPES_OF_ROLES[role])):
            async with app.client(app.token(f"{role} {scopes}", role, scopes=scopes)) as client:
                for path, method, operation in OPERATIONS:
                    answer = await client.request(method, re.sub(r"\{[^}]*\}", "x", path))
                    code = code_in(answer) if answer.status_code == 403 else None
                    assert code == expected(role, scopes, operation), f"{role} {scopes}: {method} {path}"


def test_every_operation_declares_its_scope() -> None:
    without = {
        f"{method} {re.sub('^/(v1|openai/v1|openai)(?=/)', '', path)}"
        for path, method, operation in OPERATIONS
        if operation.scope is None and not operation.open
    }
    assert without == WITHOUT_SCOPE
    assert {operation.scope for _, _, operation in OPERATIONS} == {None, *get_args(Scope)}
    assert {operation.scope for path, _, operation in OPERATIONS if path.startswith("/admin/")} == {"admin"}


MARK = "Zwetschgenknödel"


def fail_if_asked(_: FakeExecutor, job: Job) -> None:
    if job.options.hotwords == f"{MARK} fails":
        raise InvalidAudio(f"{MARK} error")


async def submitted(app: Inside, client: Any, **fields: str) -> str:
    texts = {"prompt": f"{MARK} prompt", "metadata": f'{{"{MARK} key": "{MARK} value"}}', "keep_result": "true"}
    headers = {"Idempotency-Key": f"mark-{len(fields)}"}
    files = {"file": (f"{MARK}.wav", AUDIO)}
    answer = await client.post("/transcribe", data={**texts, **fields}, files=files, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


@on_a_loop
async def test_nothing_that_an_operator_reads_has_a_text_of_a_job(tmp_path: Path) -> None:
    executor = FakeExecutor(f"{MARK} text", behave=fail_if_asked)
    async with inside(tmp_path, executor, enable_authorization=True) as app:
        tokens = app.token("ann"), app.token("watch", "operator"), app.token("root", "admin")
        async with app.client(tokens[0]) as ann, app.client(tokens[1]) as operator, app.client(tokens[2]) as root:
            terms = {"terms": [f"{MARK} term"]}
            assert (await ann.put("/vocabularies/names", json=terms)).status_code == 200
            ring = KeyRing(app.service.store)
            speaker = app.service.speakers.enroll(ring.find("ann").key_id, f"{MARK} speaker", [AUDIO])
            done = await submitted(app, ann, vocabulary="names")
            failed = await submitted(app, ann, hotwords=f"{MARK} fails", language="en")
            for job_id in (done, failed):
                status = await app.finish(ann, job_id)
                assert MARK in str(status["metadata"])
                assert MARK in str(status.get("error")) or job_id == done
            assert MARK in (await ann.get(f"/transcription/{done}/result")).text
            correction: dict[str, Any] = {"speakers": {}, "words": []}
            assert (await ann.put(f"/transcription/{done}/corrections", json=correction)).status_code == 200
            executor.held = True
            active = await app.running(ann, metadata=f'{{"a": "{MARK}"}}')
            waiting = await submitted(app, ann, a="b", c="d", e="f")
            assert MARK in (await root.get("/transcriptions")).text

            read = 0
            for path, method, operation in OPERATIONS:
                if method != "GET":
                    continue
                for job_id in (done, failed, active, waiting):
                    address = path.replace("{job_id}", job_id).replace("{name}", "names")
                    address = address.replace("{speaker_id}", speaker.speaker_id)
                    queries = ("?wait=0.01", "?limit=3", f"?metadata_key={MARK}%20key") if "job" in path else ("",)
                    for query in ("", *queries):
                        answer = await operator.get(re.sub(r"\{[^}]*\}", "x", address) + query)
                        said = answer.text + str(answer.headers)
                        assert MARK not in said.replace(f"{MARK}%20key", ""), f"{method} {address}{query}"
                        read += answer.status_code == 200 and not operation.open
            assert read >= 12
            jobs = (await operator.get("/transcriptions")).json()["jobs"]
            assert {job["job_id"]: job["status"] for job in jobs} == {
                done: "Completed",
                failed: "Failed",
                active: "Processing",
                waiting: "Queued",
            }
            assert not any(job.keys() & {"file_name", "metadata"} or job["warnings"] for job in jobs)
            status = (await operator.get(f"/transcription/{failed}")).json()
            assert "administrators" in status["error"]
            queue = (await operator.get("/status")).json()["queue_state"]
            assert queue.pop("oldest_wait_seconds") > 0
            assert queue == {"queued_jobs": 1, "processing_jobs": 1}
            for query in ("metadata_key=a", "metadata_key=a&metadata_value=b", "metadata_value=b"):
                problem(await operator.get(f"/transcriptions?{query}"), 403, "forbidden_role")
            executor.release()
