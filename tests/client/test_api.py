"""The client with a server that fails on demand; tests/server uses it with the real one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from rest_server import TEXT, Hold, Lose, Refuse, Request, Reset, Rest, serving

from client.blocking import MakeClient
from whisper_api import Client, TranscriptionOptions, errors
from whisper_api.client import async_transport, responses, transport
from whisper_api.errors import RULES
from whisper_api.job_values import Correction, Corrections, JobStatus
from whisper_api.options import RenderOptions

AUDIO = bytes(range(256)) * 4096  # a megabyte that is not the same everywhere


def posts(rest: Rest) -> list[Request]:
    return rest.of("POST")


# --- what is sent ---


def test_a_file_its_bytes_and_file_objects_arrive_as_they_are(client: Client, rest: Rest, tmp_path: Path) -> None:
    path = tmp_path / "call.wav"
    path.write_bytes(AUDIO)
    with path.open("rb") as file:
        file.seek(1000)
        for source in (path, str(path), AUDIO, io.BytesIO(AUDIO), file):
            client.submit(source)
    assert [post.file == AUDIO for post in posts(rest)] == [True] * 5
    assert [post.file_name for post in posts(rest)] == ["call.wav", "call.wav", "audio", "audio", "call.wav"]


def test_requests_are_sent_in_the_trace_of_the_callers_active_span(client: Client, rest: Rest) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("the caller")
    with tracer.start_as_current_span("a call") as span:
        job_id = client.submit(AUDIO)
    client.status(job_id)
    context = span.get_span_context()
    post, get = rest.seen
    assert post.headers["traceparent"].startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    assert "traceparent" not in get.headers


def test_a_stream_that_cannot_seek_is_sent_whole_and_can_be_sent_again(client: Client, rest: Rest) -> None:
    rest.faults["POST"] = [Reset(100_000)]
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(AUDIO)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(reading, "rb") as pipe:
        client.submit(pipe)
    writer.join()
    assert posts(rest)[1].file == AUDIO


@pytest.mark.parametrize("name", ['a"b.wav', "Ünïcodé 日本.wav", "a\r\nX-Evil: 1.wav", "../up.wav", "percent%22.wav"])
def test_a_file_name_cannot_break_out_of_the_form(name: str, client: Client, rest: Rest, tmp_path: Path) -> None:
    file = io.BytesIO(AUDIO)
    file.name = name
    client.submit(file)
    (post,) = posts(rest)
    assert post.file == AUDIO
    assert post.fields == {"sync": "false"}
    assert post.file_name is not None
    assert post.file_name.isprintable()


def test_a_file_name_that_is_not_unicode_is_sent_all_the_same(client: Client, rest: Rest, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    try:
        path.write_bytes(AUDIO)
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    client.submit(path)
    assert posts(rest)[0].file == AUDIO


def test_options_that_were_set_are_fields_and_the_others_are_left_to_the_server(client: Client, rest: Rest) -> None:
    options = TranscriptionOptions(
        model="base", language="en", align=False, diarize=True, prompt="Café & é\n", temperature=0.2, num_speakers=2
    )
    client.submit(AUDIO, options, output_format="srt", keep_result=True, hf_token="hf_x")
    client.submit(AUDIO)
    assert posts(rest)[0].fields == {
        "sync": "false",
        "model": "base",
        "language": "en",
        "align": "false",
        "diarize": "true",
        "prompt": "Café & é\n",
        "temperature": "0.2",
        "num_speakers": "2",
        "output_format": "srt",
        "keep_result": "true",
        "hf_token": "hf_x",
    }
    assert posts(rest)[1].fields == {"sync": "false"}


def test_the_key_is_sent_only_to_its_server_and_with_every_request(
    client: Client, make_client: MakeClient, rest: Rest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    client.transcribe(AUDIO)
    list(client.jobs())
    assert {request.headers["authorization"] for request in rest.seen} == {"Bearer wk_key"}
    assert "wk_key" not in repr(client)
    with make_client(rest.url) as other:
        list(other.jobs())
    assert "authorization" not in rest.seen[-1].headers


def test_progress_of_the_upload_rises_to_the_end(client: Client, rest: Rest) -> None:
    told: list[tuple[int, int]] = []
    client.submit(AUDIO, on_upload=lambda sent, total: told.append((sent, total)))
    assert {total for _, total in told} == {len(AUDIO)}
    sent = [sent for sent, _ in told]
    assert sent == sorted(set(sent))
    assert (sent[0], sent[-1]) == (0, len(AUDIO))


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_a_large_file_is_never_held_whole(kind: str, rest: Rest, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(300 << 20)
    script = f"""
import asyncio, inspect, resource, sys
from whisper_api import {kind}
async def main():
    client = {kind}(sys.argv[1])
    peaks = []
    for source in (b"warm", sys.argv[2]):
        submitted = client.submit(source)
        if inspect.isawaitable(submitted):
            await submitted
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(peaks[1] - peaks[0])
asyncio.run(main())
"""
    command = [sys.executable, "-c", script, rest.url, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout) / (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 30_000
    assert posts(rest)[1].size > 300 << 20


# --- what fails on the way ---


@pytest.mark.parametrize(
    "fault",
    [
        Reset(0),
        Reset(400_000),
        Refuse(503, "queue_full", retry_after="0"),
        Refuse(429, "caller_limit"),
        Refuse(502, body=b"<html>bad gateway</html>"),
        Refuse(504),
        Lose(),
        Lose(after=0),
        Lose(after=10),
    ],
    ids=repr,
)
def test_a_second_attempt_has_the_same_key_and_the_whole_body_and_makes_no_second_job(
    fault: Any, client: Client, rest: Rest
) -> None:
    rest.faults["POST"] = [fault, fault]
    job_id = client.submit(AUDIO, TranscriptionOptions(language="en"))
    assert len(posts(rest)) == 3
    assert len({post.headers["idempotency-key"] for post in posts(rest)}) == 1
    assert posts(rest)[2].file == AUDIO
    assert posts(rest)[2].fields == {"sync": "false", "language": "en"}
    assert [*rest.jobs] == [job_id]


def test_two_submissions_of_the_same_file_are_two_jobs(client: Client, rest: Rest) -> None:
    assert client.submit(AUDIO) != client.submit(AUDIO)
    assert len(rest.jobs) == 2


def test_a_second_attempt_tells_its_progress_from_the_beginning(client: Client, rest: Rest) -> None:
    rest.faults["POST"] = [Refuse(503)]
    sent: list[int] = []
    client.submit(AUDIO, on_upload=lambda done, total: sent.append(done))
    assert sent.count(0) == 2
    assert sent[-1] == len(AUDIO)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 500])
def test_a_refusal_is_not_tried_again(status: int, client: Client, rest: Rest) -> None:
    rest.faults["POST"] = [Refuse(status, "some_code", "For some reason")]
    with pytest.raises(errors.RequestError, match="For some reason") as raised:
        client.submit(AUDIO)
    assert (raised.value.status, raised.value.code) == (status, "some_code")
    assert len(posts(rest)) == 1


def test_attempts_are_counted(make_client: MakeClient, rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "FIRST_PAUSE", 0.01)
    rest.faults["POST"] = [Refuse(503, "queue_full", "Too many wait", retry_after="0")] * 9
    with make_client(rest.url, retries=2) as client, pytest.raises(errors.QueueFull, match="Too many wait"):
        client.submit(AUDIO)
    assert len(posts(rest)) == 3


@pytest.mark.parametrize("written", ["1", "date"])
def test_retry_after_is_waited_for(written: str, client: Client, rest: Rest) -> None:
    begun = time.monotonic()
    # An HTTP date has whole seconds, so this one is one to two seconds from now.
    after = formatdate(time.time() + 2, usegmt=True) if written == "date" else written
    rest.faults["POST"] = [Refuse(503, "draining", retry_after=after)]
    client.submit(AUDIO)
    assert time.monotonic() - begun >= 0.9


def test_an_answer_that_asks_for_too_much_patience_is_an_error_at_once(client: Client, rest: Rest) -> None:
    rest.faults["POST"] = [Refuse(503, "queue_full", "Come back tomorrow", retry_after="86400")]
    with pytest.raises(errors.QueueFull) as raised:
        client.submit(AUDIO)
    assert raised.value.retry_after == 86400
    assert len(posts(rest)) == 1


def test_pauses_grow_and_are_not_all_the_same(
    make_client: MakeClient, rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def pause_async(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(transport, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(async_transport, "asyncio", SimpleNamespace(sleep=pause_async))
    rest.faults["GET"] = [Refuse(503)] * 24
    with make_client(rest.url, retries=11) as client:
        for _ in range(2):
            with pytest.raises(errors.RequestError):
                client.status("x")
    first, second = pauses[:11], pauses[11:]
    assert first != second
    for attempt, pause in enumerate(first):
        longest = min(responses.LONGEST_PAUSE, responses.FIRST_PAUSE * 2**attempt)
        assert longest / 2 <= pause <= longest


def test_an_unreachable_server_is_named_with_the_reason(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "FIRST_PAUSE", 0.01)
    with serving(Rest()) as rest:
        pass
    with make_client(rest.url, retries=1) as client, pytest.raises(errors.RequestError) as raised:
        client.status("x")
    assert raised.value.status is None
    assert str(raised.value) == f"{rest.url} cannot be reached: Connection refused"


def test_a_server_that_does_not_answer_is_an_error(make_client: MakeClient, rest: Rest) -> None:
    ended = threading.Event()
    rest.faults["POST"] = [Hold(ended)]
    with make_client(rest.url, timeout=0.3, retries=0) as client, pytest.raises(errors.RequestError, match="in time"):
        client.submit(AUDIO)
    ended.set()


# --- what is wrong on this side ---


def test_a_missing_file_is_an_error_before_any_request(client: Client, rest: Rest, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.submit(tmp_path / "none.wav")
    assert not rest.seen


def test_a_file_of_text_is_refused(client: Client, rest: Rest) -> None:
    with pytest.raises(errors.InvalidInput, match="binary"):
        client.submit(io.StringIO("text"))  # type: ignore[arg-type]
    assert not rest.seen


class Failing(io.BytesIO):
    """A file that raises an error after its first half."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > len(AUDIO) // 2:
            raise OSError(5, "Input/output error")
        return super().read(size)


class Shrinking(io.BytesIO):
    """A file that ends before its stated size."""

    def read(self, size: int | None = -1) -> bytes:
        return b"" if self.tell() > len(AUDIO) // 2 else super().read(size)


def test_a_file_that_cannot_be_read_is_no_broken_connection(client: Client, rest: Rest) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        client.submit(Failing(AUDIO))
    with pytest.raises(errors.InvalidInput, match="shorter"):
        client.submit(Shrinking(AUDIO))
    assert not rest.jobs


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("no"), KeyboardInterrupt()])
def test_an_error_of_the_callback_is_raised_as_it_is(error: BaseException, client: Client, rest: Rest) -> None:
    def fail(sent: int, total: int) -> None:
        if sent > 500_000:
            raise error

    with pytest.raises(type(error)):
        client.submit(AUDIO, on_upload=fail)
    assert not rest.jobs
    # The next request does not use the connection whose body was broken off.
    assert client.submit(AUDIO) in rest.jobs


@pytest.mark.parametrize("url", ["", "127.0.0.1:8181", "ftp://host", "http://", "file:///etc/passwd"])
def test_an_address_that_is_none_is_refused(url: str, make_client: MakeClient) -> None:
    with pytest.raises(errors.InvalidOption, match="url"):
        make_client(url)


def test_a_key_that_cannot_be_one_is_refused_and_not_shown(make_client: MakeClient) -> None:
    with pytest.raises(errors.InvalidOption, match="api_key") as raised:
        make_client(api_key="wk_geheim\r\nX-Evil: 1")
    assert "geheim" not in str(raised.value)
    assert make_client(api_key="  wk_key\n") is not None


# --- what goes with a job, and what is found by it ---


def test_metadata_is_sent_as_json(client: Client, rest: Rest) -> None:
    metadata = {"case": "Ü-17", "pages": [1, 2.5, None, True], "nested": {"a": ""}}
    client.submit(AUDIO, metadata=metadata)
    client.transcribe(AUDIO, metadata=metadata)
    client.submit(AUDIO, metadata={})
    assert [json.loads(post.fields["metadata"]) for post in posts(rest)] == [metadata, metadata, {}]


def test_the_filters_of_a_search_are_sent(client: Client, rest: Rest) -> None:
    when = datetime(2030, 1, 31, 9, 30, tzinfo=timezone(timedelta(hours=2)))
    list(client.jobs("Failed", metadata_key="case", metadata_value="17", created_after=when))
    query = rest.seen[-1].query
    assert {**query, "created_after": ""} == {
        "status": "Failed",
        "metadata_key": "case",
        "metadata_value": "17",
        "created_after": "",
    }
    assert datetime.fromisoformat(query["created_after"]) == when
    # A time without a zone is local time.
    list(client.jobs(created_before=datetime(2030, 1, 31, 9, 30)))
    assert datetime.fromisoformat(rest.seen[-1].query["created_before"]) == datetime(2030, 1, 31, 9, 30).astimezone()


@pytest.mark.parametrize(("value", "sent"), [("", '""'), (" x", '" x"'), ("x y", "x y"), ('"x"', '"x"')])
def test_a_value_that_a_server_would_not_see_is_sent_as_json(value: str, sent: str, client: Client, rest: Rest) -> None:
    list(client.jobs(metadata_key="case", metadata_value=value))
    assert rest.seen[-1].query["metadata_value"] == sent


def test_a_search_holds_for_every_page(client: Client, rest: Rest) -> None:
    for _ in range(5):
        client.submit(AUDIO)
    assert len(list(client.jobs(metadata_key="case"))) == 5
    assert [request.query["metadata_key"] for request in rest.of("GET")] == ["case"] * 3


def test_corrections_are_sent_and_read(client: Client, rest: Rest) -> None:
    job_id = client.submit(AUDIO)
    assert client.corrections(job_id) == Corrections()
    corrections = Corrections(words=(Correction(segment=0, word=1, text="été"),), speakers={"SPEAKER_00": "Ada"})
    rest.faults["PUT"] = [Reset(0), Refuse(503, "storage_unavailable", retry_after="0")]
    assert client.correct(job_id, corrections) == corrections
    assert client.corrections(job_id) == corrections
    assert rest.of("PUT")[-1].headers["content-type"] == "application/json"
    with pytest.raises(errors.JobNotFound):
        client.correct("none", corrections)


# --- errors by name ---


@pytest.mark.parametrize("kind", [*RULES], ids=lambda kind: str(kind.__name__))
def test_every_error_of_the_server_comes_out_under_its_name(
    kind: type[errors.WhisperApiError], client: Client, rest: Rest
) -> None:
    status, code = RULES[kind]
    job_id = client.submit(AUDIO)
    detail = "language: expected a code" if kind is errors.InvalidOption else "Something in particular"
    rest.faults["GET"] = [Refuse(status, code, detail, retry_after="0")] * 12
    expected = {
        errors.ModelError: errors.ModelUnavailable,
        errors.DeviceError: errors.DeviceUnavailable,
        errors.EngineClosed: errors.Draining,
    }.get(kind, kind)
    with pytest.raises(expected) as raised:
        client.result(job_id)
    assert type(raised.value) is expected
    if kind not in (errors.JobNotFound, errors.JobIsProcessing, errors.SpeakerNotFound):
        assert str(raised.value) == detail
    if isinstance(raised.value, errors.JobError):
        assert raised.value.job_id == job_id
    if isinstance(raised.value, errors.InvalidOption):
        assert raised.value.field == "language"


def test_the_error_of_a_field_has_the_words_of_the_server(client: Client, rest: Rest) -> None:
    rest.faults["POST"] = [Refuse(400, "invalid_field", "The field prompt is not UTF-8: send it as such")]
    with pytest.raises(errors.InvalidInput, match="The field prompt is not UTF-8: send it as such"):
        client.submit(AUDIO)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"detail": 7}'])
def test_an_error_that_is_no_problem_is_still_an_error(body: bytes, client: Client, rest: Rest) -> None:
    rest.faults["GET"] = [Refuse(418, body=body)]
    with pytest.raises(errors.RequestError, match="418"):
        client.status("x")


def test_another_server_is_not_taken_for_this_one(client: Client, rest: Rest) -> None:
    rest.faults["GET"] = [Refuse(200, body=b"<html>Welcome</html>")]
    with pytest.raises(errors.RequestError, match="Whisper API"):
        client.status("x")
    rest.faults["GET"] = [Refuse(301, location="https://elsewhere.example/")]
    with pytest.raises(errors.RequestError, match=r"https://elsewhere\.example/"):
        client.status("x")


# --- jobs ---


def test_waiting_reports_each_status_once_and_returns_the_last(client: Client, rest: Rest) -> None:
    rest.script = [
        {"status": "Queued", "queue_position": 2},
        {"status": "Queued", "queue_position": 2},
        {"status": "Processing", "progress": 0.5, "stage": "asr"},
        {"status": "Completed"},
    ]
    told: list[JobStatus] = []
    last = client.wait(client.submit(AUDIO), on_progress=told.append)
    assert [status.status for status in told] == ["Queued", "Processing", "Completed"]
    assert told[-1] == last


@pytest.mark.parametrize("state", ["Completed", "Failed", "Canceled"])
def test_every_end_of_a_job_ends_the_wait(state: str, client: Client, rest: Rest) -> None:
    rest.script = [{"status": state}]
    assert client.wait(client.submit(AUDIO)).status == state


def test_waiting_returns_the_current_status_after_the_timeout(client: Client, rest: Rest) -> None:
    rest.script = [{"status": "Processing"}]
    job_id = client.submit(AUDIO)
    assert client.wait(job_id, timeout=0.5).status == "Processing"
    with pytest.raises(errors.JobNotFinished) as raised:
        client.transcribe(AUDIO, timeout=0.1)
    assert raised.value.job_id in rest.jobs
    assert not rest.canceled


def test_a_server_that_holds_no_request_is_not_asked_without_a_pause(client: Client, rest: Rest) -> None:
    rest.script = [{"status": "Processing"}]
    client.wait(client.submit(AUDIO), timeout=1.0)
    assert len(rest.of("GET")) <= 7


def test_waiting_outlasts_a_restart(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "FIRST_PAUSE", 0.02)
    seen = threading.Event()
    before = Rest(script=[{"status": "Processing"}])
    ended: list[JobStatus] = []
    with contextlib.ExitStack() as first, make_client(first.enter_context(serving(before)).url, retries=0) as client:
        job_id = client.submit(AUDIO)
        waiter = threading.Thread(
            target=lambda: ended.append(client.wait(job_id, on_progress=lambda status: seen.set()))
        )
        waiter.start()
        assert seen.wait(60)
        broken = len(before.of("GET"))
        before.faults["GET"] = [Reset(0)] * 1000
        while len(before.of("GET")) < broken + 3:
            time.sleep(0.01)
        first.close()
        with serving(Rest(jobs={job_id: [{"status": "Completed"}]}), urlsplit(before.url).port or 0):
            waiter.join(60)
    assert [status.status for status in ended] == ["Completed"]


def test_results_come_as_values_and_as_the_text_of_a_file(client: Client, rest: Rest) -> None:
    job_id = client.submit(AUDIO)
    result = client.result(job_id)
    assert (result.text, result.language, result.segments[0].text) == (TEXT, "en", TEXT)
    assert client.result_as(job_id, "srt") == f"srt of {job_id}"
    assert client.result_file(job_id) == f"docx of {job_id}".encode()


def test_the_layout_of_subtitles_goes_with_the_job_and_with_each_format(client: Client, rest: Rest) -> None:
    job_id = client.submit(AUDIO, output_format="srt", render_options=RenderOptions(max_line_width=42))
    fields = rest.of("POST")[0].fields
    assert {name: fields[name] for name in RenderOptions.__struct_fields__ if name in fields} == {
        "max_line_width": "42"
    }
    client.result_as(job_id, "vtt", RenderOptions(max_line_count=2, highlight_words=True))
    asked = rest.of("GET")[-1].query
    assert asked == {"format": "vtt", "max_line_count": "2", "highlight_words": "true"}


def test_a_result_that_was_cut_short_is_fetched_again(client: Client, rest: Rest) -> None:
    job_id = client.submit(AUDIO)
    rest.faults["GET"] = [Lose(after=30), Lose(after=3)]
    assert client.result(job_id).text == TEXT
    rest.faults["GET"] = [Lose(after=5)]
    assert client.result_as(job_id, "srt") == f"srt of {job_id}"


def test_canceling_is_by_force_only_when_asked_for(client: Client, rest: Rest) -> None:
    job_id = client.submit(AUDIO)
    client.cancel(job_id)
    client.cancel(job_id, force=True)
    assert rest.canceled == [(job_id, {}), (job_id, {"force": "true"})]
    with pytest.raises(errors.JobNotFound):
        client.cancel("another/../job")


def test_all_pages_of_jobs_are_read(client: Client, rest: Rest) -> None:
    ids = [client.submit(AUDIO) for _ in range(5)]
    assert [job.job_id for job in client.jobs()] == ids[::-1]
    assert not list(client.jobs("Failed"))
    assert rest.seen[-1].query["status"] == "Failed"


def test_transcribing_returns_the_result_or_raises_the_error_of_the_job(client: Client, rest: Rest) -> None:
    assert client.transcribe(AUDIO, output_format="srt").text == TEXT
    assert posts(rest)[0].fields["output_format"] == "srt"
    rest.script = [{"status": "Failed", "error": "there is nobody in it"}]
    with pytest.raises(errors.JobFailed, match="there is nobody in it"):
        client.transcribe(AUDIO)
    rest.script = [{"status": "Canceled", "error": "its key was revoked"}]
    with pytest.raises(errors.JobCanceled, match="its key was revoked"):
        client.transcribe(AUDIO)
    rest.script = [{"status": "Canceled"}]
    with pytest.raises(errors.JobCanceled, match="the job was canceled"):
        client.transcribe(AUDIO)
    assert not rest.canceled


def test_an_interruption_cancels_the_job(client: Client, rest: Rest) -> None:
    rest.script = [{"status": "Processing"}]

    def interrupt(status: JobStatus) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.transcribe(AUDIO, on_progress=interrupt)
    assert rest.canceled == [(next(iter(rest.jobs)), {"force": "true"})]


def test_a_session_of_the_callers_own_is_used_and_left_open(rest: Rest) -> None:
    import requests

    class Counting(requests.Session):  # type: ignore[misc]
        requests = 0
        closed = False

        def request(self, *arguments: Any, **named: Any) -> Any:
            self.requests += 1
            return super().request(*arguments, **named)

        def close(self) -> None:
            self.closed = True
            super().close()

    session = Counting()
    with Client(rest.url, session=session) as client:
        client.submit(AUDIO)
    assert session.requests == 1
    assert not session.closed


def test_statuses_are_those_of_the_schema(client: Client, rest: Rest) -> None:
    rest.script = [{"status": "Processing", "progress": 0.25, "stage": "asr", "eta_seconds": 3.5, "new_in_2031": True}]
    status = client.status(client.submit(AUDIO), wait=2.5)
    assert (status.status, status.progress, status.stage, status.eta_seconds) == ("Processing", 0.25, "asr", 3.5)
    assert rest.seen[-1].query == {"wait": "2.5"}
