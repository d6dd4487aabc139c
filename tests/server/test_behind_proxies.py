"""A server behind nginx and Caddy, under a prefix: uploads, events, addresses, and clients that the log knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.harness import RunningServer, finish, problem
from server.reverse_proxies import PREFIX, PROXIES, reverse_proxy
from whisper_api import Client, TranscriptionOptions

# nginx takes no more by itself.
ONE_MEGABYTE = 1 << 20
# Another address of this machine (RFC 1122), from which a client can be told from the proxy.
ELSEWHERE = "127.0.0.2"


@pytest.fixture(scope="module")
def proxied(
    tmp_path_factory: pytest.TempPathFactory, models_dir: Path, base_model_dir: Path
) -> Iterator[RunningServer]:
    """A server that trusts a proxy on its machine."""
    changes = {"WHISPER_TRUSTED_PROXIES": "127.0.0.1", "WHISPER_LOG_FORMAT": "json"}
    with RunningServer(tmp_path_factory.mktemp("proxied"), models_dir, changes) as server:
        yield server


@pytest.fixture(params=PROXIES)
def url(request: pytest.FixtureRequest, proxied: RunningServer, tmp_path: Path) -> Iterator[str]:
    """The URL of the server through a proxy."""
    with reverse_proxy(request.param, proxied.port, tmp_path) as url:
        yield url


def test_a_large_upload_is_accepted_and_found_again(proxied: RunningServer, url: str, hours: bytes) -> None:
    assert len(hours) > ONE_MEGABYTE
    with proxied.client(base_url=url) as client:
        answer = client.post("/transcribe", files={"file": ("a.mp3", hours)})
        assert answer.status_code == 202, answer.text
        status = f"{url}{answer.json()['status_url']}"
        assert httpx.URL(url).join(answer.headers["Location"]) == status
        assert client.get(status).status_code == 200
        assert client.delete(f"{status}?force=true").status_code == 200


def test_events_come_while_the_job_runs(proxied: RunningServer, url: str, hours: bytes) -> None:
    with proxied.client(base_url=url) as client:
        job = client.post("/transcribe", files={"file": ("a.mp3", hours)}).json()
        with client.stream("GET", f"{url}{job['status_url']}/events") as events:
            lines = (line for line in events.iter_lines() if line.startswith("event:"))
            # The job outlasts every test, so a proxy that buffered its events would not pass this one on.
            assert next(lines) in ("event: queued", "event: progress")
            assert client.delete(f"{url}{job['status_url']}?force=true").status_code == 200
            assert list(lines)[-1] == "event: canceled"


def test_the_client_of_the_package_works_through_it(proxied: RunningServer, url: str, sample_call: Path) -> None:
    options = TranscriptionOptions(language="en", align=False, diarize=False)
    with Client(url, proxied.user_key) as client:
        assert "New Jersey" in client.transcribe(sample_call, options).text


def test_the_prefix_alone_leads_to_the_page(proxied: RunningServer, url: str) -> None:
    with proxied.client(key="", follow_redirects=True) as client:
        answer = client.get(url)
        assert answer.status_code == 200
        assert str(answer.url) == f"{url}/"


def test_documents_and_page_stand_under_the_prefix(proxied: RunningServer, url: str) -> None:
    with proxied.client(key="", base_url=url) as client:
        assert client.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]
        assert f"URL={url}\n" in client.get("/docs").text
        assert client.get("/assets/app.js").status_code == client.get("/").status_code == 200
        problem(client.get("/status"), 401, "unauthorized")


def test_the_log_names_the_client_and_ignores_headers_of_untrusted_peers(proxied: RunningServer, url: str) -> None:
    def clients(path: str) -> list[str]:
        lines = [json.loads(line) for line in proxied.log.splitlines() if line.startswith("{")]
        return [line["client"] for line in lines if line.get("path", "").endswith(path)]

    lies = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    transport = httpx.HTTPTransport(local_address=ELSEWHERE)
    with httpx.Client(transport=transport, headers=lies) as client:
        for address in (url, proxied.url):
            client.get(f"{address}/no-such-path")
    assert set(clients("/no-such-path")) == {ELSEWHERE}


def test_a_job_is_waited_for_through_it(proxied: RunningServer, url: str, hello: bytes) -> None:
    with proxied.client(base_url=url) as client:
        answer = client.post("/asr", params={"output": "srt"}, files={"audio_file": ("a.wav", hello)})
        assert answer.status_code == 200, answer.text
        assert answer.headers["Asr-Engine"]
        job_id = answer.headers["X-Job-ID"]
        assert finish(client, job_id)["status"] == "Completed"
