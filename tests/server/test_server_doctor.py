"""``whisper-api doctor --server``: what it finds on a server and on the way to it."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from pathlib import Path

import msgspec
import pytest
import trustme

from server.conftest import Start
from server.harness import RunningServer, free_port
from server.reverse_proxies import reverse_proxy
from whisper_api.cli.doctor import server as examination
from whisper_api.cli.doctor.check import Check
from whisper_api.cli.doctor.server import ServerReport
from whisper_api.cli.doctor.way import Probe, clock
from whisper_api.cli.main import main


@pytest.fixture(autouse=True)
def _plain_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WHISPER_API_KEY", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    return Doctor(capsys, monkeypatch)


class Doctor:
    """Runs the command, and reads its report."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, url: str, key: str, *arguments: str) -> tuple[int, dict[str, Check]]:
        """The exit code, and the checks by name."""
        self._monkeypatch.setenv("WHISPER_API_KEY", key)
        code = main(["doctor", "--server", url, "--json", *arguments])
        output = self._capsys.readouterr().out
        assert not key or key not in output
        report = msgspec.json.decode(output, type=ServerReport)
        assert report.works == (code == 0)
        return code, {check.name: check for check in (*report.connection, *report.server)}


def test_an_admin_learns_everything_of_a_healthy_server(server: RunningServer, doctor: Doctor) -> None:
    code, checks = doctor(server.url, server.admin_key, "--transcribe")
    assert code == 0, checks
    states = {name: check.state for name, check in checks.items()}
    assert states.pop("tls") == "missing"
    assert set(states) == {
        "reachable",
        "clock",
        "streams",
        "uploads",
        "version",
        "ready",
        "key",
        "queue",
        "disks",
        "models",
        "devices",
        "metrics",
        "transcription",
    }
    assert set(states.values()) == {"ok"}
    assert "role admin" in checks["key"].detail
    assert checks["uploads"].detail == "may have 536.9 MB"
    assert "base" in checks["transcription"].detail
    with server.client(server.admin_key) as client:
        # The job is gone but for its row, and the announced upload has left nothing.
        newest = client.get("/transcriptions", params={"limit": 1}).json()["jobs"][0]
        assert newest["status"] == "Completed"
        assert newest["result_gone"]


def test_a_user_learns_what_a_user_may_know(
    server: RunningServer, doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    code, checks = doctor(server.url, server.user_key)
    assert code == 0
    assert {name for name, check in checks.items() if check.state == "missing"} == {"tls", "disks", "metrics"}
    assert main(["doctor", "--server", server.url]) == 0
    table = capsys.readouterr().out
    for name, check in checks.items():
        assert any(line.split()[:1] == [name.split()[0]] for line in table.splitlines()), name
        assert check.remedy is None or f"-> {check.remedy}" in table
    assert table.endswith("nothing is wrong\n")


def test_a_key_that_is_refused_and_a_server_that_is_not_there_are_failures(
    server: RunningServer, doctor: Doctor
) -> None:
    code, checks = doctor(server.url, "wk_00000000_nothing")
    assert code == 1
    assert checks["key"].state == "failed"
    assert checks["ready"].state == "ok"
    code, checks = doctor(f"http://127.0.0.1:{free_port()}", "")
    assert code == 1
    assert list(checks) == ["reachable"]
    assert "cannot be reached" in checks["reachable"].detail
    code, checks = doctor(f"{server.url}/elsewhere", server.user_key)
    assert code == 1
    assert list(checks) == ["reachable"]
    assert "404" in checks["reachable"].detail


@pytest.mark.parametrize("arguments", [["--transcribe"], ["--server", "box:8181"], ["--key-file", "x"]])
def test_wrong_usage_has_its_exit_code(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert "error" in capsys.readouterr().err


def test_a_proxy_that_holds_streams_back_and_limits_uploads_is_found(
    start_server: Start, doctor: Doctor, tmp_path: Path
) -> None:
    server = start_server({"WHISPER_TRUSTED_PROXIES": "127.0.0.1"})

    def worse(example: str) -> str:
        changed = example.replace("proxy_buffering off;", "proxy_ignore_headers X-Accel-Buffering;")
        # nginx passes chunks on even when it buffers, and other bodies only when a buffer is full.
        changed = changed.replace("proxy_http_version 1.1;", "proxy_http_version 1.0;")
        return changed.replace("client_max_body_size 0;", "client_max_body_size 50m;")

    with reverse_proxy("nginx", server.port, tmp_path / "good") as url:
        code, checks = doctor(url, server.user_key)
        assert code == 0, checks
        assert checks["uploads"].state == checks["streams"].state == "ok"
    with reverse_proxy("nginx", server.port, tmp_path / "bad", worse) as url:
        code, checks = doctor(url, server.user_key)
    assert code == 1
    assert {name for name, check in checks.items() if check.state == "failed"} == {"uploads", "streams"}
    assert checks["uploads"].detail == "a proxy on the way refuses 100.0 MB and takes 10.0 MB"


@pytest.mark.parametrize(("days", "state"), [(90, "ok"), (3, "warning")])
def test_the_end_of_a_certificate_is_told_before_it_comes(
    days: int,
    state: str,
    start_server: Start,
    doctor: Doctor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is no failure before it comes: a certificate of six days is never valid for longer."""
    authority = trustme.CA()
    until = datetime.now(timezone.utc) + timedelta(days=days)
    certificate = authority.issue_cert("127.0.0.1", not_after=until)
    pem, bundle = tmp_path / "server.pem", tmp_path / "authority.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    authority.cert_pem.write_to_path(bundle)
    settings = {"WHISPER_TLS_CERT_FILE": pem, "WHISPER_TLS_KEY_FILE": pem, "ENABLE_AUTHORIZATION": False}
    server = start_server(settings, wait=False)
    url = f"https://127.0.0.1:{server.port}"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    deadline = time.monotonic() + 60
    while (checks := doctor(url, "")[1])["reachable"].state != "ok" or checks["ready"].state != "ok":
        assert time.monotonic() < deadline, checks
        time.sleep(0.1)
    assert checks["tls"].state == state
    assert main(["doctor", "--server", url]) == 0
    assert capsys.readouterr().out.endswith("see WARNING\n" if state == "warning" else "nothing is wrong\n")
    assert checks["uploads"].state == "ok"
    assert checks["key"].state == "missing"
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    code, checks = doctor(url, "")
    assert code == 1
    assert "trusted" in checks["reachable"].detail
    assert "REQUESTS_CA_BUNDLE" in str(checks["reachable"].remedy)


@pytest.mark.parametrize(("ahead", "state"), [(0, "ok"), (-3, "ok"), (60, "failed"), (-60, "failed")])
def test_a_clock_that_is_wrong_is_told(ahead: float, state: str) -> None:
    now = time.time()
    check = clock(Probe(now, 0.1, 200, headers={"date": formatdate(now + ahead, usegmt=True)}))
    assert check.state == state
    assert clock(Probe(now, 0.1, 200)).state == "missing"


def test_what_needs_an_operator_is_a_failure(
    server: RunningServer, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real status with other figures."""
    with server.client(server.admin_key) as client:
        facts = client.get("/status").json()
    assert facts["server"]["warnings"] == []
    assert facts["queue_state"]["oldest_wait_seconds"] is None
    facts["queue_state"] |= {"queued_jobs": 1000, "oldest_wait_seconds": 61.0}
    facts["resources"] |= {"uploads_disk_free_bytes": 1000}
    assert examination._queue(facts).state == examination._disks(facts).state == "failed"  # noqa: SLF001
    assert "61 s" in examination._queue(facts).detail  # noqa: SLF001
    monkeypatch.setattr(examination, "__version__", "99.0")
    _, checks = doctor(server.url, server.user_key)
    assert checks["version"].state == "missing"
    assert "99.0" in checks["version"].detail


def test_warnings_of_the_server_are_told_to_admins_alone(start_server: Start, doctor: Doctor) -> None:
    server = start_server({"WHISPER_DATA_DIR": "data"})
    (server.directory / "data").chmod(0o755)
    code, checks = doctor(server.url, server.admin_key)
    assert code == 1
    assert "is open to other users" in checks["warning"].detail
    code, checks = doctor(server.url, server.user_key)
    assert code == 0
    assert "warning" not in checks
