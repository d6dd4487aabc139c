"""A server behind nginx and Caddy, under a prefix: uploads, events, addresses, and clients that the log knows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.harness import RunningServer, finish, problem, until
from server.reverse_proxies import PREFIX, PROXIES, authority_of, reverse_proxy
from whisper_api import Client, TranscriptionOptions
from whisper_api.cli.main import main

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
def url(
    request: pytest.FixtureRequest, proxied: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of the server through a proxy, whose certificate the client of the package trusts."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority_of(tmp_path)))
    with reverse_proxy(request.param, proxied.port, tmp_path) as url:
        yield url


def through(proxied: RunningServer, url: str, **arguments: Any) -> httpx.Client:
    """A client of a proxy, which speaks HTTP/2 where the proxy offers it, as browsers do."""
    return proxied.client(base_url=url, http2=True, **arguments)


def test_a_large_upload_is_accepted_and_found_again(proxied: RunningServer, url: str, hours: bytes) -> None:
    assert len(hours) > ONE_MEGABYTE
    with through(proxied, url) as client:
        answer = client.post("/transcribe", files={"file": ("a.mp3", hours)})
        assert answer.status_code == 202, answer.text
        assert answer.http_version == ("HTTP/2" if url.startswith("https") else "HTTP/1.1")
        status = f"{url}{answer.json()['status_url']}"
        assert httpx.URL(url).join(answer.headers["Location"]) == status
        assert client.get(status).status_code == 200
        assert client.delete(f"{status}?force=true").status_code == 200


def test_an_upload_is_passed_on_as_it_comes(proxied: RunningServer, url: str, hours: bytes) -> None:
    with through(proxied, url) as client:
        request = client.build_request("POST", "/transcribe", files={"file": ("a.mp3", hours)})
        whole = request.read()

        def halves() -> Iterator[bytes]:
            yield whole[: len(whole) // 2]
            # A proxy that kept the first half until it had the second would wait here forever.
            until(lambda: any(file.stat().st_size > ONE_MEGABYTE for file in proxied.uploads_dir.rglob("*")))
            yield whole[len(whole) // 2 :]

        headers = {"Content-Type": request.headers["Content-Type"], "Content-Length": str(len(whole))}
        answer = client.post("/transcribe", content=halves(), headers=headers)
        assert answer.status_code == 202, answer.text
        assert client.delete(f"{url}{answer.json()['status_url']}?force=true").status_code == 200


def test_the_server_learns_that_a_client_has_gone(proxied: RunningServer, url: str, hours: bytes) -> None:
    def open_streams() -> float:
        (line,) = re.findall(r"^whisper_api_open_streams (\S+)$", admin.get("/metrics").text, re.MULTILINE)
        return float(line)

    with through(proxied, url) as client, proxied.client(proxied.admin_key) as admin:
        job = client.post("/transcribe", files={"file": ("a.mp3", hours)}).json()
        with through(proxied, url) as going, going.stream("GET", f"{url}{job['status_url']}/events") as events:
            lines = events.iter_lines()
            next(lines)
            until(lambda: open_streams() == 1)
        until(lambda: open_streams() == 0)
        assert client.delete(f"{url}{job['status_url']}?force=true").status_code == 200


def test_the_doctor_finds_nothing_wrong_with_it(
    proxied: RunningServer, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHISPER_API_KEY", proxied.user_key)
    assert main(["doctor", "--server", url]) == 0, capsys.readouterr().out


def test_events_come_while_the_job_runs(proxied: RunningServer, url: str, hours: bytes) -> None:
    with through(proxied, url) as client:
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
    with through(proxied, url, key="") as client:
        assert client.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]
        assert f"URL={url}\n" in client.get("/docs").text
        assert client.get("/assets/app.js").status_code == client.get("/").status_code == 200
        problem(client.get("/status"), 401, "unauthorized")


def test_the_log_names_the_client_and_ignores_headers_of_untrusted_peers(proxied: RunningServer, url: str) -> None:
    def clients(path: str) -> list[str]:
        lines = [json.loads(line) for line in proxied.log.splitlines() if line.startswith("{")]
        return [line["client"] for line in lines if line.get("path", "").endswith(path)]

    lies = {"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    transport = httpx.HTTPTransport(local_address=ELSEWHERE, verify=False)
    with httpx.Client(transport=transport, headers=lies) as client:
        for address in (url, proxied.url):
            client.get(f"{address}/no-such-path")
    assert set(clients("/no-such-path")) == {ELSEWHERE}


def test_a_job_is_waited_for_through_it(proxied: RunningServer, url: str, hello: bytes) -> None:
    with through(proxied, url) as client:
        answer = client.post("/asr", params={"output": "srt"}, files={"audio_file": ("a.wav", hello)})
        assert answer.status_code == 200, answer.text
        assert answer.headers["Asr-Engine"]
        job_id = answer.headers["X-Job-ID"]
        assert finish(client, job_id)["status"] == "Completed"
