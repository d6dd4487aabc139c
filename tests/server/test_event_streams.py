"""Events of real jobs over real connections: as text is decoded, and over a kill of the server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec

from server.conftest import Start
from server.harness import PATIENCE_SECONDS, submit
from whisper_api import Client
from whisper_api.job_values import JobEvent, JobSegmentEvent
from whisper_api.jobs.events import LAST_ID
from whisper_api.options import TranscriptionOptions

OPTIONS = TranscriptionOptions(model="tiny.en", language="en", diarize=False)


def told(response: httpx.Response) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The events of a stream as they come: id, name and data."""
    fields: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            if "data" in fields:
                yield int(fields["id"]), fields["event"], msgspec.json.decode(fields["data"])
            fields = {}


def test_text_is_sent_before_the_result_exists(client: httpx.Client, cut: Callable[[float, float], bytes]) -> None:
    job_id = submit(client, cut(0.0, 30.0), align="true")
    with client.stream("GET", f"/transcription/{job_id}/events") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        events = list(told(response))
    ids = [number for number, _, _ in events]
    assert ids == sorted(set(ids))
    assert ids[-1] == LAST_ID
    names = [name for _, name, _ in events]
    assert names[-1] == "completed"
    assert names.index("segment") < names.index("completed")
    texts: dict[int, dict[str, Any]] = {}
    for _, name, data in events:
        if name == "segment":
            texts[data["index"]] = data
    assert all(text["aligned"] for text in texts.values())
    words = [word["word"] for index in sorted(texts) for each in texts[index]["segments"] for word in each["words"]]
    result = client.get(f"/transcription/{job_id}/result").json()
    assert words == [word["word"] for each in result["segments"] for word in each["words"]]
    assert {data["stage"] for _, name, data in events if name == "progress"} >= {"asr"}
    # The same again, for whoever asks now, and nothing for whoever knows.
    with client.stream("GET", f"/transcription/{job_id}/events") as response:
        assert list(told(response)) == events[-1:]
    again = client.get(f"/transcription/{job_id}/events", headers={"Last-Event-ID": str(ids[-1])})
    assert again.status_code == 204


def test_a_watcher_survives_a_kill_of_the_server_and_ends_with_the_result(start_server: Start, hours: bytes) -> None:
    server = start_server()
    events: list[JobEvent] = []
    begun = threading.Event()
    with Client(server.url, server.user_key) as client, Client(server.url, server.user_key) as watcher:
        # A minute and a half: much is still to be done when the first text is there.
        job_id = client.submit(hours[: len(hours) // 20], OPTIONS)

        def watch() -> None:
            for event in watcher.events(job_id):
                events.append(event)
                if isinstance(event, JobSegmentEvent):
                    begun.set()

        thread = threading.Thread(target=watch)
        thread.start()
        assert begun.wait(PATIENCE_SECONDS)
        server.kill()
        before = len(events)
        server.start(wait=False)
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        names = [str(event.__struct_config__.tag) for event in events]
        # The earlier text is void, and the server sends all of it again.
        assert "completed" not in names[:before]
        assert names[before] == "queued"
        assert names[-1] == "completed"
        text: dict[int, JobSegmentEvent] = {}
        for event in events[before:]:
            if isinstance(event, JobSegmentEvent):
                text[event.index] = event
        words = [word.word for index in sorted(text) for segment in text[index].segments for word in segment.words]
        result = client.result(job_id)
        assert words == [word.word for segment in result.segments for word in segment.words]
        assert words
