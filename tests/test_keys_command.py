"""``whisper-api keys``, run as it is."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from whisper_api.access.keys import KeyRing
from whisper_api.cli.main import main
from whisper_api.errors import KeyExpired
from whisper_api.store.jobs import JobStore

Run = Callable[..., int]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def keys(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in [*os.environ]:
        if name.startswith(("WHISPER_", "RUST_LOG")):
            monkeypatch.delenv(name)

    def run(*arguments: str) -> int:
        return main(["keys", *arguments, "--data-dir", str(data_dir)])

    return run


def verify(data_dir: Path, token: str) -> bool:
    store = JobStore(data_dir / "jobs.db")
    try:
        return KeyRing(store).verify(token) is not None
    finally:
        store.close()


def test_a_script_reads_the_key_and_nothing_else(keys: Run, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("create", "laptop", "--role", "admin") == 0
    out, err = capsys.readouterr()
    token = out.removesuffix("\n")
    assert verify(data_dir, token)
    assert "laptop" in err
    assert "Bearer" in err
    assert token not in err


def test_the_list_shows_everything_but_secrets(keys: Run, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys("create", "laptop")
    keys("create", "the office", "--role", "admin")
    first, second = capsys.readouterr().out.split()
    assert keys("revoke", "laptop") == 0
    assert capsys.readouterr().out == ""
    assert keys("list") == 0
    out = capsys.readouterr().out
    header, laptop, office = out.splitlines()
    assert header.split() == ["id", "name", "role", "scopes", "created", "expires", "last", "used", "state"]
    assert laptop.split()[:3] == [first[3:11], "laptop", "user"]
    assert laptop.endswith("Z")
    assert office.split()[:4] == [second[3:11], "the", "office", "admin"]
    assert office.endswith("active")
    assert first[12:] not in out
    assert second[12:] not in out


def test_a_revoked_key_no_longer_opens_a_store_that_is_in_use(
    keys: Run, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serving = JobStore(data_dir / "jobs.db")
    serving.exclusive()
    ring = KeyRing(serving)
    assert keys("create", "laptop") == 0
    token = capsys.readouterr().out.strip()
    assert ring.verify(token) is not None
    assert keys("revoke", token[3:11]) == 0
    assert ring.verify(token) is None
    serving.close()


@pytest.mark.parametrize(
    "arguments",
    [("revoke", "nobody"), ("create", ""), ("create", "a\nb"), ("create", "x", "--role", "root"), ("create",), ()],
    ids=["unknown key", "empty name", "line end in the name", "unknown role", "no name", "no command"],
)
def test_wrong_usage_is_an_error(keys: Run, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "error:" in err


def test_a_taken_name_is_an_error(keys: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("create", "laptop") == 0
    capsys.readouterr()
    assert keys("create", "laptop") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "already" in err


def test_an_unusable_database_is_an_error(keys: Run, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys("list")
    with closing(sqlite3.connect(data_dir / "jobs.db")) as connection:
        connection.execute("PRAGMA user_version=1000")
    capsys.readouterr()
    assert keys("list") == 1
    assert "newer version" in capsys.readouterr().err


def fields_of(keys: Run, name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert keys("show", name) == 0
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())


def test_a_key_has_what_its_flags_say(keys: Run, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ("--rate", "60/minute", "--quota", "600 minutes/day; 1000 jobs/month")
    assert keys("create", "app", "--expires", "90d", "--scope", "read", "--scope", "transcribe", *limits) == 0
    shown = fields_of(keys, "app", capsys)
    assert (shown["role"], shown["state"], shown["scopes"]) == ("user", "active", "read, transcribe")
    assert (shown["rate"], shown["quota"]) == ("60/minute", "600 minutes/day; 1000 jobs/month")
    days = datetime.fromisoformat(shown["expires at"].replace("Z", "+00:00")) - datetime.now(timezone.utc)
    assert timedelta(days=89.9) < days <= timedelta(days=90)
    assert keys("change", "app", "--name", "web", "--expires", "never", "--scope", "all", "--rate", "default") == 0
    changed = fields_of(keys, "web", capsys)
    assert (changed["name"], changed["expires at"], changed["scopes"], changed["rate"]) == ("web", "-", "-", "-")
    assert (changed["key id"], changed["quota"]) == (shown["key id"], shown["quota"])


def test_a_rotation_prints_the_new_key_and_lists_how_long_the_old_one_lives(
    keys: Run, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys("create", "app")
    old = capsys.readouterr().out.strip()
    assert keys("rotate", "app", "--grace", "2h") == 0
    new, told = capsys.readouterr()
    assert verify(data_dir, old)
    assert verify(data_dir, new.strip())
    assert new.strip() not in told
    keys("list")
    assert re.search(r"active, old secret until 20", capsys.readouterr().out)
    assert keys("rotate", "app", "--grace", "0") == 0
    last = capsys.readouterr().out.strip()
    assert verify(data_dir, last)
    for ended in (old, new.strip()):
        with pytest.raises(KeyExpired, match="replaced"):
            verify(data_dir, ended)


@pytest.mark.parametrize(
    "flags",
    [
        ("--expires", "soon"),
        ("--expires", "2001-01-01"),
        ("--rate", "fast"),
        ("--quota", "much"),
        ("--scope", "all", "--role", "metrics", "--rate", "0/day"),
        ("--scope", "transcribe", "--role", "metrics"),
        ("--scope", "admin"),
    ],
)
def test_a_value_that_cannot_be_used_makes_no_key(
    keys: Run, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys("create", "app", *flags) == 2
    assert capsys.readouterr().out == ""
    keys("list")
    assert len(capsys.readouterr().out.splitlines()) == 1
