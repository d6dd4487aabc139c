"""The script that tries other projects' clients: its checks, and the whole of it with the client that is installed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from forked import Forked

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from try_clients import CALLS, CLIENTS, Row, judged, main, table

SCRIPT = CALLS.with_name("try_clients.py")


def line(call: str, text: str) -> str:
    return json.dumps({"call": call, "text": text})


def test_a_call_must_give_the_transcript() -> None:
    heard = judged("a", f"a warning\n{line('one', 'from Chicago.')}\n{line('two', 'from Chicago.')}\n", 0, 1.0)
    assert [(row.call, row.outcome) for row in heard] == [("one", "ok"), ("two", "ok")]
    other = judged("a", line("one", "something else"), 0, 1.0)
    assert [row.outcome for row in other] == ["FAILED"]
    broken = judged("a", f"{line('one', 'from Chicago.')}\nTraceback\nValueError: no", 1, 1.0)
    assert [row.outcome for row in broken] == ["ok", "FAILED"]
    assert "ValueError: no" in broken[-1].text
    assert [row.outcome for row in judged("a", "", 0, 1.0)] == ["FAILED"]


def test_a_failure_is_shown_in_full() -> None:
    shown = table([Row("a", "one", "FAILED", 1.0, "x" * 500), Row("b", "two", "ok", 1.0, "y" * 500)])
    assert "x" * 500 in shown
    assert "y" * 100 not in shown


def test_every_client_is_pinned_and_has_its_calls() -> None:
    for client in CLIENTS:
        assert (CALLS / client.file).is_file()
        mark = "@" if client.is_node else "=="
        assert all(mark in package[1:] for package in client.packages)


def test_a_client_that_cannot_be_installed_fails_unless_it_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], models_dir: Path, base_model_dir: Path
) -> None:
    monkeypatch.setenv("WHISPER_MODELS_DIR", str(models_dir))
    monkeypatch.setattr("shutil.which", lambda name: None)
    only = ["--only", "openai-node", "vercel-ai", "--skip", "vercel-ai"]
    assert main(only) == 1
    assert "there is no npm" in capsys.readouterr().out
    assert main([*only, "--skip-uninstallable"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("skipped") == 2
    assert "by --skip" in shown


def test_openai_s_package_against_a_real_server(
    tmp_path: Path, models_dir: Path, base_model_dir: Path, ecapa_path: Path
) -> None:
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    command = [str(SCRIPT), "--only", "openai-python", "--installed"]
    environment = {**os.environ, "WHISPER_MODELS_DIR": str(models_dir)}
    code = Forked(main, command, Path.cwd(), environment, out, err).wait(600)
    assert code == 0, out.read_text("utf-8") + err.read_text("utf-8")
    rows = out.read_text("utf-8").splitlines()[1:]
    assert len(rows) == 7
    assert all(row.startswith("openai-python") and " ok " in row for row in rows)
