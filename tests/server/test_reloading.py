"""SIGHUP: a running server reads its configuration again, takes what can change, and says what cannot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import operator
import os
import pty
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.conftest import Start
from server.harness import PATIENCE_SECONDS, RunningServer, post, problem
from server.inside import ORIGIN, Inside, inside, on_a_loop
from whisper_api.config import RELOADABLE, Config, LiveConfig, Loaded, settings
from whisper_api.errors import ConfigError
from whisper_api.server.run import reload_when_asked
from whisper_api.server.signals import Asked, signals_handled
from whisper_api.server.systemd import Supervisor

NO_AUDIO = b"no audio" * 100


def reloaded(server: RunningServer, changes: Mapping[str, object], told: str) -> str:
    """Change the configuration, send SIGHUP and wait until the log says something new. Returns the new lines."""
    server.configure(changes)
    return hung_up(server, told)


def hung_up(server: RunningServer, told: str) -> str:
    begin = len(server.log)
    server.send(signal.SIGHUP)
    return lines_with(server, told, begin)


def lines_with(server: RunningServer, told: str, begin: int) -> str:
    """The log from a place on, as soon as it has a text."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while told not in server.log[begin:]:
        assert server.running
        assert time.monotonic() < deadline, server.log
        time.sleep(0.01)
    return server.log[begin:]


def test_a_running_server_takes_limits_level_and_origins_and_keeps_the_rest(start_server: Start) -> None:
    server = start_server({"MAX_FILE_SIZE": 100})
    port = server.port
    with server.client(server.admin_key) as admin:
        problem(post(admin, NO_AUDIO), 413, "file_too_large")
        told = reloaded(
            server,
            {
                "MAX_FILE_SIZE": 1_000_000,
                "MAX_QUEUED_JOBS": 7,
                "WHISPER_OUTPUT_FORMAT": "srt",
                "WHISPER_API_PORT": port + 1,
                "WHISPER_MODEL": "tiny.en",
            },
            "need a restart",
        )
        assert "MAX_FILE_SIZE: 100 -> 1000000" in told
        assert "need a restart: WHISPER_API_PORT, WHISPER_MODEL" in told
        status = admin.get("/status").json()
        assert (status["resources"]["max_file_size"], status["resources"]["max_queued_jobs"]) == (1_000_000, 7)
        assert status["processing"]["default_output_format"] == "srt"
        problem(post(admin, NO_AUDIO), 415, "invalid_audio")

        # A file that cannot be used changes nothing, and the server goes on.
        server.config_file.write_text('MAX_FILE_SIZE = "many"', encoding="utf-8")
        assert "MAX_FILE_SIZE" in hung_up(server, "the old one stays in force")
        server.config_file.write_text("no TOML", encoding="utf-8")
        assert "not TOML" in hung_up(server, "the old one stays in force")
        server.config_file.unlink()
        assert "there is no file" in hung_up(server, "the old one stays in force")
        assert admin.get("/status").json()["resources"]["max_file_size"] == 1_000_000

        reloaded(server, {"WHISPER_LOG_LEVEL": "error"}, "configuration read again")
        begin = len(server.log)
        admin.get("/status")
        assert server.log[begin:] == ""
        reloaded(server, {"WHISPER_LOG_LEVEL": "debug"}, "configuration read again")
        admin.get("/livez")
        lines_with(server, "path=/livez", begin)
    assert server.stop() == 0


def test_every_reloadable_key_is_one_of_the_table() -> None:
    assert {setting.key for setting in settings()} >= RELOADABLE
    # Paths, addresses and models belong to things that are made at the start.
    kinds = {setting.key: setting.default for setting in settings() if setting.key in RELOADABLE}
    assert not [key for key, default in kinds.items() if isinstance(default, Path)]


def another(setting: Any) -> object:
    """A value of a setting that is not its default."""
    others: dict[str, object] = {
        "ALLOWED_ORIGINS": "https://app.example",
        "URL_PRIVATE_HOSTS": "files.example",
        "WHISPER_AUTH_FAILURE_LIMIT": "5/minute",
        "WHISPER_LOG_LEVEL": "error",
        "WHISPER_MODEL_DOWNLOADS": "nobody",
        "WHISPER_OUTPUT_FORMAT": "srt",
        "WHISPER_QUOTA": "5 jobs/day",
        "WHISPER_RATE_LIMIT": "5/minute",
    }
    return others.get(setting.key, not setting.default if isinstance(setting.default, bool) else 7)


@on_a_loop
async def test_every_reloadable_value_reaches_the_part_that_holds_it(tmp_path: Path) -> None:
    # A server whose reloadable keys have all changed is like one that began with these values.
    changes: dict[str, Any] = {each.attribute: another(each) for each in settings() if each.key in RELOADABLE}

    holders = [
        *(f"{config}.{name}" for config in ("state.config", "service.settings.config") for name in changes),
        "service.queue._capacity",
        "service._reservations.per_owner",
        "service._retention.retention_seconds",
        "service._retention.grace_seconds",
        "service.audit._days",
        "service.usage._days",
        "service.usage.quotas._default",
        "state.limits._default",
        "state.limits._failure_rates",
        "service.speakers._most",
        "state.key_uploads._most",
        "state.address_uploads._most",
        "state.form_bytes.most",
    ]

    def values(app: Inside) -> dict[str, object]:
        return {holder: operator.attrgetter(holder)(app) for holder in holders}

    async with inside(tmp_path / "changed") as app:
        before = values(app)
        change = app.service.settings.change(msgspec.structs.replace(app.service.settings.config, **changes))
        assert len(change.applied) == len(changes)
        assert change.waiting == ()
        changed = values(app)
    async with inside(tmp_path / "begun", **changes) as app:
        assert changed == values(app)
    assert all(before[name] != changed[name] for name in before)


@on_a_loop
async def test_new_origins_hold_for_the_next_request(tmp_path: Path) -> None:
    origin = "https://app.example"
    async with inside(tmp_path) as app, app.client(Origin=origin) as page:
        assert (await page.get("/status")).status_code == 403
        app.service.settings.change(Config(enable_authorization=False, allowed_origins=origin))
        allowed = await page.get("/status")
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == origin
        app.service.settings.change(Config(enable_authorization=False))
        assert (await page.get("/status", headers={"Origin": origin})).status_code == 403
        assert (await page.get("/status", headers={"Origin": ORIGIN})).status_code == 200


def test_parts_are_told_until_they_are_removed() -> None:
    live, told = LiveConfig(Config()), list[int]()

    def take(config: Config) -> None:
        told.append(config.max_queued_jobs)

    live.register(take)
    change = live.change(Config(max_queued_jobs=5, port=1))
    assert (change.applied, change.waiting) == (("MAX_QUEUED_JOBS: 1000 -> 5",), ("WHISPER_API_PORT",))
    assert live.config == Config(max_queued_jobs=5)
    live.unregister(take)
    live.change(Config(max_queued_jobs=6))
    assert told == [5]
    assert live.config.max_queued_jobs == 6


class Certificates:
    """Stands for connections whose certificate may be unusable."""

    def __init__(self, error: OSError | None = None) -> None:
        self.error = error
        self.renewed = 0

    def renew_certificate(self) -> None:
        self.renewed += 1
        if self.error is not None:
            raise self.error


@on_a_loop
async def test_systemd_hears_of_a_reload_and_a_failed_one_changes_nothing(
    notify_socket: str, caplog: pytest.LogCaptureFixture
) -> None:
    loads: list[Callable[[], Loaded]] = [lambda: Loaded(Config(max_queued_jobs=5), {}, (), None), _fail]
    live, connections, reload = LiveConfig(Config()), Certificates(ssl.SSLError("no certificate")), Asked()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(notify_socket)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        # A signal before the loop runs counts.
        reload.ask()
        supervisor = Supervisor({"NOTIFY_SOCKET": notify_socket})
        parts: Any = [connections]
        task = asyncio.create_task(reload_when_asked(reload, lambda: loads.pop(0)(), live, supervisor, parts))
        for _ in range(2):
            assert (await loop.sock_recv(sock, 100)).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert await loop.sock_recv(sock, 100) == b"READY=1"
            reload.ask()
        task.cancel()
    assert live.config.max_queued_jobs == 5
    assert connections.renewed == 1
    assert "certificate cannot be used" in caplog.text
    assert "there is no file" in caplog.text


def _fail() -> Loaded:
    raise ConfigError("there is no file")


@contextlib.contextmanager
def in_terminal(directory: Path, *command: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process with a terminal of its own, and the descriptor whose end closes the terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*command, sys.executable, "-c", WAITER],
        cwd=directory,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_take_terminal,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.communicate()


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # These tests may run where hang-ups are ignored, as under nohup.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


WAITER = """
import signal, sys, time
from whisper_api.server.signals import Asked, signals_handled
stop, reload = Asked(), Asked()
with signals_handled(stop, reload):
    print("ready", flush=True)
    while not (stop.asked or reload.asked):
        time.sleep(0.01)
    print("stop" if stop.asked else "reload", flush=True)
"""


@pytest.mark.parametrize("closed", [True, False], ids=["terminal closed", "signal"])
def test_a_closed_terminal_stops_the_server_and_a_signal_does_not(tmp_path: Path, closed: bool) -> None:
    with in_terminal(tmp_path) as (process, terminal):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if closed:
            os.close(terminal)
        else:
            process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == (b"stop\n" if closed else b"reload\n")
        if not closed:
            os.close(terminal)


def test_handlers_are_put_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    with signals_handled(Asked(), None):
        assert signal.getsignal(signal.SIGHUP) == before[signal.SIGHUP]
    with signals_handled(Asked(), Asked()):
        assert signal.getsignal(signal.SIGHUP) != before[signal.SIGHUP]
    assert {number: signal.getsignal(number) for number in before} == before


def test_settings_are_json() -> None:
    """The change is told in one line of the log, whatever the values are."""
    live = LiveConfig(Config())
    (line,) = live.change(Config(url_private_hosts="a\nb")).applied
    assert line == f'URL_PRIVATE_HOSTS: "" -> {json.dumps("a" + chr(10) + "b")}'
