"""``whisper-api audit``, and what other commands write into the trail."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from whisper_api.audit_records import AuditRecord
from whisper_api.cli.main import main
from whisper_api.store.jobs import JobStore

Entries = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith(("WHISPER_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "data"


@pytest.fixture
def entries(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> Entries:
    def read(*arguments: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main(["audit", *arguments, "--data-dir", str(data_dir)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return read


def test_commands_that_change_keys_are_recorded_with_their_user(
    data_dir: Path, entries: Entries, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "create", "laptop", "--data-dir", str(data_dir)]) == 0
    token = capsys.readouterr().out.strip()
    assert main(["keys", "list", "--data-dir", str(data_dir)]) == 0
    assert main(["keys", "revoke", "laptop", "--data-dir", str(data_dir)]) == 0
    assert main(["keys", "revoke", "laptop", "--data-dir", str(data_dir)]) == 2
    found = entries()
    assert [(each["action"], each["target"]) for each in found] == [
        ("key.create", token[3:11]),
        ("key.revoke", token[3:11]),
    ]
    assert {(each["actor"], each["name"]) for each in found} == {("command line", getpass.getuser())}
    assert token[12:] not in json.dumps(found)


def test_a_trail_that_is_switched_off_stays_empty(
    data_dir: Path, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHISPER_AUDIT_RETENTION_DAYS", "0")
    assert main(["keys", "create", "laptop", "--data-dir", str(data_dir)]) == 0
    assert entries() == []


def test_entries_are_chosen_by_time_key_and_action(data_dir: Path, entries: Entries) -> None:
    def at(text: str, **fields: Any) -> AuditRecord:
        return AuditRecord(time=datetime.fromisoformat(text).astimezone(timezone.utc), actor="key", **fields)

    with contextlib.closing(JobStore(data_dir / "jobs.db")) as store:
        store.add_audit(
            [
                at("2026-01-31T11:00:00+00:00", action="job.read", name="Ada"),
                at("2026-01-31T12:00:00+00:00", action="job.delete", name="Bob"),
                at(datetime.now(timezone.utc).isoformat(), action="speaker.read", name="Ada"),
            ],
            synced=True,
        )

    def actions(*arguments: str) -> list[str]:
        return [each["action"] for each in entries(*arguments)]

    assert actions() == ["job.read", "job.delete", "speaker.read"]
    assert actions("--since", "2026-01-31T13:00:00+01:00", "--until", "2026-02-01") == ["job.delete"]
    assert actions("--until", "2026-01-31T11:30:00Z") == ["job.read"]
    assert actions("--since", "30m") == ["speaker.read"]
    assert actions("--key", "Ada", "--action", "job") == ["job.read"]
    assert actions("--action", "job.delete") == ["job.delete"]
    assert entries("--since", "1h")[0]["time"].endswith("Z")


@pytest.mark.parametrize("arguments", [("--since", "yesterday"), ("--until", "7"), ("--action", "job.eat")])
def test_wrong_usage_is_an_error(data_dir: Path, arguments: tuple[str, ...]) -> None:
    assert main(["audit", *arguments, "--data-dir", str(data_dir)]) == 2
