"""Every script runs with the smallest shapes. No test checks what it measures."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Forked, run_script

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from measuring import arguments, needs

Started = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"

# What the peers import takes longer than most of what they do.
PEERS = ("pyannote.audio", "whisperx.alignment", "whisperx.asr")
SMALL = ["--quick", "--runs", "1", "--model", "tiny.en"]
# The arguments of each script. A script may miss its targets here and exit with status 1.
RUNS: dict[str, list[str]] = {
    "bench_events.py": [*SMALL, "--watchers", "2"],
    "bench_everything_on.py": [*SMALL, "--only", "overhead"],
    "bench_fairness.py": [*SMALL, "--no-peers", "--seconds", "12"],
    "bench_first_text.py": [*SMALL, "--seconds", "12"],
    "bench_latency.py": [*SMALL, "--no-peers", "--only", "short"],
    "bench_memory.py": [*SMALL, "--audio-memory", "1"],
    "bench_server.py": [*SMALL, "--clients", "2"],
    "bench_stages.py": [*SMALL, "--only", "diarization"],
    "bench_start.py": [*SMALL, "--no-peers"],
    "bench_throughput.py": [*SMALL, "--no-peers"],
    "eval_accuracy.py": ["{folder}", "--model", "tiny.en", "--beam-size", "1", "--no-peer", "--confidence"],
    "eval_diarization.py": [],
    "eval_speakers.py": ["--only", "two-telephone", "--seconds", "12"],
    "eval_invented.py": ["--model=tiny.en", "--vad=none", "--language=en", "--sound=hum", "--seconds=2", "--no-peer"],
    "eval_languages.py": ["{folder}", "--model", "tiny.en"],
    "eval_pauses.py": ["{folder}", "--minutes", "0", "0.05", "--noise", "pink"],
    "eval_vocabulary.py": ["{folder}", "--model", "tiny.en", "--distractors", "20"],
    "load_server.py": [
        "--seconds=1",
        "--pollers=2",
        "--uploaders=1",
        "--megabytes=1",
        "--uploads=1",
        "--rest=0.3",
        "--job=300",
    ],
    "quickstart.py": ["{folder}/hello.wav", "--once"],
    "random_models.py": ["{folder}/models", "--whisper", "tiny"],
}
# Requirements that the environment of the tests may lack: the script must report them at once.
EXTRAS = {
    "bench_latency.py": [needs.NORMALIZER],
    "bench_start.py": [needs.NORMALIZER],
    "bench_throughput.py": [needs.NORMALIZER],
    "eval_accuracy.py": [needs.NORMALIZER, needs.JIWER],
    "eval_languages.py": [needs.NORMALIZER, needs.JIWER],
    "eval_vocabulary.py": [needs.NORMALIZER, needs.JIWER],
}
# For each part of a script, a script that imports or starts it, and so runs it in these tests.
PARTS = {
    "acceptance": "gpu_acceptance.py",
    "client_calls": "try_clients.py",
    "conversations.py": "eval_diarization.py",
    "clients.py": "bench_events.py",
    "loopback_cluster.py": "bench_cluster.py",
    "simulated_engine.py": "bench_cluster.py",
    "fixed_tokens.py": "gpu_sides.py",
    "free_ports.py": "load_server.py",
    "gpu_floor.py": "acceptance",
    "gpu_gauge.py": "acceptance",
    "gpu_sides.py": "acceptance",
    "load_generator.py": "load_server.py",
    "measuring": "bench_events.py",
    "peers.py": "stage_sides.py",
    "stage_sides.py": "bench_stages.py",
    "with_parent.py": "chaos_cluster.py",
}
# Scripts with a file of tests of their own.
TESTED = {
    "bench_cluster.py": "cluster/test_scripts.py",
    "bench_front.py": "cluster/test_scripts.py",
    "chaos_cluster.py": "cluster/test_scripts.py",
    "compare_cluster.py": "cluster/test_equality.py",
    "fuzz_decoder.py": "test_fuzz_decoder.py",
    "gpu_acceptance.py": "test_gpu_acceptance.py",
    "try_clients.py": "test_try_clients.py",
    "try_image.py": "test_deploy.py",
}
# They install the project before they do anything, so only their syntax is looked at.
SHELL = {"coverage", "lint", "quickstart", "setup.sh", "test"}


def names() -> set[str]:
    return {path.name for path in SCRIPTS.iterdir() if not path.name.startswith((".", "__"))}


@pytest.fixture
def started(tmp_path: Path) -> Started:
    """Runs a script with these arguments and environment variables to its end."""

    def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command = [str(SCRIPTS / name), *arguments]
        out, err = tmp_path / "stdout", tmp_path / "stderr"
        environment = {**os.environ, "PYTHONPATH": path, **variables}
        code = Forked(run_script, command, Path.cwd(), environment, out, err, PEERS).wait(900)
        return subprocess.CompletedProcess(command, code, out.read_text("utf-8"), err.read_text("utf-8"))

    return run


def test_every_script_has_a_smoke_test() -> None:
    assert names() == {*RUNS, *PARTS, *SHELL, *TESTED}
    assert all((ROOT / "tests" / name).is_file() for name in TESTED.values())


@pytest.mark.parametrize(("part", "script"), PARTS.items())
def test_a_part_belongs_to_a_script_that_is_run(part: str, script: str) -> None:
    user = SCRIPTS / script
    files = user.glob("*.py") if user.is_dir() else [user]
    assert any(part.removesuffix(".py") in file.read_text(encoding="utf-8") for file in files)
    while script in PARTS:
        script = PARTS[script]
    assert script in RUNS or script in TESTED


@pytest.fixture
def folder(tmp_path: Path, sample_call: Path) -> Path:
    """A folder with a short recording and its reference."""
    with wave.open(str(sample_call)) as call, wave.open(str(tmp_path / "hello.wav"), "wb") as short:
        short.setparams(call.getparams())
        call.setpos(call.getframerate() * 6)
        short.writeframes(call.readframes(call.getframerate() * 8))
    (tmp_path / "manifest.json").write_text('[{"file": "hello.wav", "language": "en", "text": "Hello."}]')
    return tmp_path


@pytest.mark.models
@pytest.mark.usefixtures("base_model_dir", "tiny_en_model_dir", "ecapa_path")
@pytest.mark.parametrize("name", RUNS)
def test_a_script_runs(name: str, folder: Path, models_dir: Path, started: Started) -> None:
    # The quickstart keeps its jobs where the configuration says; the others have temporary directories of their own.
    places = {"WHISPER_DATA_DIR": str(folder / "data"), "WHISPER_TMP_FILES": str(folder / "uploads")}
    own = places if name == "quickstart.py" else {}
    arguments = [argument.format(folder=folder) for argument in RUNS[name]]
    done = started(name, *arguments, WHISPER_MODELS_DIR=str(models_dir), **own)
    told = done.stdout + done.stderr
    missing = [need for need in EXTRAS.get(name, ()) if need.missing()]
    if missing:
        assert done.returncode == 2, told
        assert all(need.reason in done.stderr for need in missing)
        assert not done.stdout
        return
    assert done.returncode == 0 or (done.returncode == 1 and "MISSED" in told), told
    assert "Traceback" not in told
    assert done.stdout


@pytest.mark.parametrize("name", sorted(SHELL))
def test_the_syntax_of_a_shell_script(name: str) -> None:
    shell = shutil.which("sh")
    if shell is None:
        pytest.skip("no sh")
    subprocess.run([shell, "-n", str(SCRIPTS / name)], check=True)


# --- what is missing is told before anything is measured ---


@pytest.mark.parametrize("name", sorted(name for name in RUNS if name.startswith(("bench_", "eval_"))))
def test_a_script_checks_its_requirements_before_it_begins(name: str) -> None:
    tree = ast.parse((SCRIPTS / name).read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    called = [ast.unparse(node.func) for node in ast.walk(main) if isinstance(node, ast.Call)]
    assert "needs.parsed" in called
    assert not [call for call in called if call.endswith("parse_args")]


@pytest.mark.parametrize("name", sorted(name for name in RUNS if name.startswith("bench_")))
def test_a_model_that_is_not_here_is_named_at_once(name: str, tmp_path: Path, started: Started) -> None:
    done = started(name, "--model", "base", WHISPER_MODELS_DIR=str(tmp_path))
    assert done.returncode == 2
    assert f"there is no model in {tmp_path / 'whisper' / 'base'}" in done.stderr
    assert "whisper-api models pull base" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("name", ["bench_latency.py", "bench_start.py", "bench_throughput.py", "bench_stages.py"])
def test_a_missing_ffmpeg_of_a_peer_is_reported_at_once(
    name: str, tmp_path: Path, tiny_en_model_dir: Path, started: Started
) -> None:
    done = started(name, *SMALL, PATH=str(tmp_path), WHISPER_MODELS_DIR=str(tiny_en_model_dir.parents[1]))
    assert done.returncode == 2
    assert needs.FFMPEG.reason in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("flag", "told"), [("--plot", "--plot needs matplotlib"), ("--audio", "there is no manifest.json in")]
)
def test_a_missing_requirement_of_an_argument_is_reported_at_once(
    flag: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(needs, "MATPLOTLIB", needs.Need("no_such_module", needs.MATPLOTLIB.reason))
    monkeypatch.setattr(sys, "argv", ["script", flag, str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        needs.parsed(arguments("what it does"))
    assert told in capsys.readouterr().err


def test_needs_of_peers_count_only_where_peers_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = needs.Need("no_such_program", "install no_such_program", program=True, peers=True)
    monkeypatch.setattr(sys, "argv", ["script", "--no-peers"])
    assert needs.parsed(arguments("what it does"), absent).no_peers
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit, match="2"):
        needs.parsed(arguments("what it does"), absent)
