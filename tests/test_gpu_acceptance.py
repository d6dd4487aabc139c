"""The acceptance script for a GPU runs from end to end on a CPU, and no probe can end the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forked import Forked, run_script

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import gpu_acceptance
from acceptance.conditions import Conditions
from acceptance.rows import Findings, Row, read
from gpu_acceptance import PROBES, Outcome, Probe, report, run

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
# Probes with nothing to look at on a CPU.
SKIPPED = {"tests", "gpus", "large", "speed, torch's allocator"}


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Conditions:
    return Conditions("cpu", str(tmp_path_factory.mktemp("models")), tiny=True)


@pytest.mark.models
@pytest.mark.usefixtures("tiny_en_model_dir", "ecapa_path")
def test_it_runs_on_a_cpu_from_end_to_end(tmp_path: Path, models_dir: Path) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "WHISPER_MODELS_DIR": str(models_dir)}
    places = ["--report", str(tmp_path / "to" / "it"), "--models", str(tmp_path / "models")]
    command = [str(SCRIPTS / "gpu_acceptance.py"), "--device", "cpu", "--tiny", *places]
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    peers = ("pyannote.audio", "whisperx.alignment", "whisperx.asr")
    code = Forked(run_script, command, tmp_path, environment, out, err, peers).wait(600)
    told = out.read_text("utf-8") + err.read_text("utf-8")
    assert code == 0, told
    found = json.loads((tmp_path / "to" / "it.json").read_text("utf-8"))
    verdicts = {probe["probe"]: {row["verdict"] for row in probe["rows"]} for probe in found["probes"]}
    assert list(verdicts) == [probe.name for probe in PROBES]
    assert {name for name, seen in verdicts.items() if seen == {"skipped"}} == SKIPPED
    assert all("fail" not in seen for seen in verdicts.values())
    # What does not need a GPU is judged on a CPU too.
    judged = {name for name, seen in verdicts.items() if "pass" in seen}
    assert {"word-times", "encoders", "lanes", "wav2vec2", "tf32", "out-of-memory", "eviction", "assert"} <= judged
    text = (tmp_path / "to" / "it.md").read_text("utf-8")
    assert "says nothing about a GPU" in text
    assert all(f"## {probe.name} (" in text for probe in PROBES)
    # The goals stand beside what was found.
    assert "| at least 1500 x real time |" in text
    assert "| at most 12 s |" in text


PROBE = """
import os, time
def crash(conditions, findings):
    findings.note("before", "here")
    os.abort()
def fail(conditions, findings):
    raise ValueError("no such thing")
def hang(conditions, findings):
    findings.note("before", "here")
    time.sleep(600)
def quick(conditions, findings):
    findings.figure("speed", 2.0, "times", at_least=3.0)
    findings.figure("errors", 2.0, at_most=1.0, everywhere=True)
"""


@pytest.mark.parametrize(
    ("function", "before", "reason"),
    [
        ("crash", 1, "ended with status -6: "),
        ("fail", 0, "ended with status 1: ValueError: no such thing"),
        ("hang", 1, "did not end within 3 s: "),
    ],
)
def test_a_probe_that_crashes_fails_or_hangs_is_a_row(
    function: str, before: int, reason: str, conditions: Conditions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = started(function, conditions, tmp_path, monkeypatch)
    assert [row.verdict for row in outcome.rows] == ["measured"] * before + ["fail"]
    assert outcome.rows[-1].found.startswith(reason)
    # Where it was is in the log.
    assert f"in {function}" in outcome.log


def test_a_bound_for_a_gpu_is_not_judged_on_a_cpu(
    conditions: Conditions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = started("quick", conditions, tmp_path, monkeypatch)
    assert [(row.expected, row.verdict) for row in outcome.rows] == [
        ("at least 3 times", "measured"),
        ("at most 1", "fail"),
    ]


def started(function: str, conditions: Conditions, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What a probe of PROBE has found within 3 s."""
    (folder / "probe_for_a_test.py").write_text(PROBE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    return run(Probe("probe", f"probe_for_a_test:{function}"), conditions, 3.0)


def test_a_probe_without_time_is_skipped_and_says_how_to_run_it(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*ignored: Any, **also_ignored: Any) -> None:
        raise AssertionError("no process was to start")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    (row,) = run(PROBES[0], conditions, 0.0).rows
    assert row.verdict == "skipped"
    assert '--only "machine"' in row.found


def test_a_figure_that_is_not_a_number_meets_no_bound(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "rows", judges=True)
    findings.figure("difference", float("nan"), at_most=1.0)
    findings.figure("ratio", 2.0, "times", at_least=1.0, at_most=3.0)
    rows, ended = read(tmp_path / "rows")
    assert [row.verdict for row in rows] == ["fail", "pass"]
    assert rows[1].expected == "at least 1 and at most 3 times"
    assert not ended
    with (tmp_path / "rows").open("a") as file:
        file.write('{"what": "half a li')
    assert read(tmp_path / "rows")[0] == rows


def test_what_is_not_as_expected_is_at_the_top_of_the_report(tmp_path: Path, conditions: Conditions) -> None:
    good = Outcome("good", 1.0, [Row("one", "1", "1", "pass")])
    bad = Outcome("bad", 1.0, [Row("two|three", "2", "3\n4", "fail")], log="its ``` log")
    report(tmp_path / "a.report", conditions, [good, bad], 2.0)
    text = (tmp_path / "a.report.md").read_text("utf-8")
    assert text.index("| bad: two\\|three | 2 | 3 4 | fail |") < text.index("## good")
    assert "its ''' log" in text
    assert json.loads((tmp_path / "a.report.json").read_text("utf-8"))["probes"][1]["rows"][0]["verdict"] == "fail"


def test_a_gpu_that_does_not_exist_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for device, reason in (("cuda:99", "--device cpu --tiny"), ("tpu", "is neither cpu nor cuda:<index>")):
        monkeypatch.setattr(sys, "argv", ["gpu_acceptance.py", "--device", device])
        with pytest.raises(SystemExit, match="2"):
            gpu_acceptance.main()
        assert reason in capsys.readouterr().err
