"""The doctor: what it finds on this machine, and that nothing it finds is a traceback."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from whisper_api.cli.doctor.check import Check, attempt
from whisper_api.cli.doctor.checks import Report
from whisper_api.cli.doctor.sound import SOUND_SECONDS
from whisper_api.cli.main import main
from whisper_api.engine.audio.sample import speech
from whisper_api.schema import SAMPLE_RATE

STAGES = (
    "decode",
    "voice activity",
    "transcription",
    "word times, attention",
    "word times, alignment",
    "speakers, open models",
    "speakers, community-1",
)


@pytest.fixture(autouse=True)
def _plain_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory, caches and an environment in which there is nothing."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    for name in [*os.environ]:
        if name.startswith(("WHISPER_", "RUST_LOG")):
            monkeypatch.delenv(name)


@pytest.fixture
def own_models(tiny_en_model_dir: Path, models_dir: Path, tmp_path: Path) -> Path:
    """A models directory with tiny.en in it and nothing else."""
    root = tmp_path / "models"
    shutil.copytree(tiny_en_model_dir, root / tiny_en_model_dir.relative_to(models_dir))
    return root


def examined(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, Report]:
    code = main(["doctor", "--json", "--device", "cpu", "--language", "en", *map(str, arguments)])
    return code, msgspec.json.decode(capsys.readouterr().out, type=Report)


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.mark.models
def test_every_stage_with_a_model_is_run(own_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = examined(capsys, "--model", "tiny.en", "--models-dir", own_models)
    stages = by_name(report.stages)
    assert code == 0
    assert report.can_transcribe
    assert tuple(stages) == STAGES
    for name in ("decode", "voice activity", "transcription", "word times, attention"):
        assert stages[name].state == "ok", stages[name]
    assert "tiny.en in int8 on cpu" in stages["transcription"].detail
    assert stages["word times, alignment"].state == "missing"
    assert stages["word times, alignment"].remedy == "whisper-api models pull align-en"
    assert stages["speakers, open models"].remedy == "whisper-api models pull segmentation-3.0 campplus"
    assert stages["speakers, community-1"].state == "missing"


@pytest.mark.models
def test_speakers_are_told_apart_by_the_open_models(
    ecapa_path: Path, models_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, report = examined(capsys, "--models-dir", models_dir)
    check = by_name(report.stages)["speakers, open models"]
    assert check.state == "ok", check
    assert "speaker" in check.detail


def test_transcription_fails_without_models_and_downloads_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "none"
    code, report = examined(capsys, "--model", "base", "--models-dir", nowhere)
    stages = by_name(report.stages)
    assert code == 1
    assert not report.can_transcribe
    assert stages["decode"].state == stages["voice activity"].state == "ok"
    assert stages["transcription"] == Check(
        "transcription", "missing", "not installed: base", "whisper-api models pull base"
    )
    assert not nowhere.exists()


@pytest.mark.models
def test_the_report_names_the_broken_stage(own_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = next(own_models.rglob("model.bin"))
    for manifest in own_models.rglob("manifest.json"):
        manifest.unlink()
    weights.write_bytes(weights.read_bytes()[:1000])
    code, report = examined(capsys, "--model", "tiny.en", "--models-dir", own_models)
    assert code == 1
    assert by_name(report.stages)["transcription"].state == "failed"
    assert by_name(report.stages)["voice activity"].state == "ok"


def test_a_device_that_is_not_there_fails_every_stage_that_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = examined(capsys, "--device", "cuda:99")
    assert code == 1
    assert tuple(by_name(report.stages)) == STAGES
    for name, check in by_name(report.stages).items():
        assert (check.state == "ok") == (name == "decode")
        assert name == "decode" or check.detail.startswith("DeviceUnavailable: ")


def test_an_installation_without_a_library_is_reported_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ctranslate2", "av", "torch", "whisper_api.cli.doctor.stages"):
        monkeypatch.setitem(sys.modules, name, None)
    code, report = examined(capsys)
    assert code == 1
    assert report.versions["ffmpeg libraries"] is None
    assert [check.state for check in report.devices] == ["failed", "failed", "failed"]
    assert [check.detail.partition(":")[0] for check in report.stages] == ["ModuleNotFoundError"]


def test_the_table_has_everything_the_report_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_notARealTokenButSecret")
    arguments = ("--model", "base", "--models-dir", tmp_path / "none")
    _, report = examined(capsys, *arguments)
    assert main(["doctor", *map(str, arguments)]) == 1
    table = capsys.readouterr().out
    assert "hf_notARealTokenButSecret" not in table
    for name, version in report.versions.items():
        assert any(line.split() == [name, version or "-"] for line in table.splitlines())
    for check in (*report.devices, *report.places, *report.stages):
        assert any(line.strip().startswith(check.name) for line in table.splitlines())
    assert "-> whisper-api models pull base" in table
    assert by_name(report.places)["Hugging Face token"].state == "ok"


def test_places_that_others_can_open_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(0o755)
    arguments = ("--models-dir", tmp_path / "none")
    os.environ["WHISPER_DATA_DIR"] = str(data)
    try:
        _, report = examined(capsys, *arguments)
        data.chmod(0o700)
        _, closed = examined(capsys, *arguments)
    finally:
        del os.environ["WHISPER_DATA_DIR"]
    assert by_name(report.places)["permissions"].state == "failed"
    assert f"chmod 700 {data}" in by_name(report.places)["permissions"].detail
    assert "permissions" not in by_name(closed.places)


def test_versions_are_those_of_the_distributions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, report = examined(capsys, "--models-dir", tmp_path / "none")
    for name in ("torch", "ctranslate2", "faster-whisper", "whisperx", "pyannote.audio"):
        assert report.versions[name] == importlib.metadata.version(name)
    assert report.versions["libavcodec"]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("Library libcublas.so.12 is not found or cannot be loaded", "nvidia-cublas-cu12"),
        ("Unable to load any of {libcudnn_ops.so.9.1.0, libcudnn_ops.so.9}", "nvidia-cudnn-cu12"),
        ("CUDA failed with error CUDA driver version is insufficient for CUDA runtime version", "newer NVIDIA driver"),
        ("No module named 'torch'", "pip"),
    ],
)
def test_a_library_that_is_missing_is_explained(text: str, remedy: str) -> None:
    def look() -> str:
        raise RuntimeError(text)

    check = attempt("a check", look)
    assert check.state == "failed"
    assert check.detail == f"RuntimeError: {text}"
    assert check.remedy is not None
    assert remedy in check.remedy


def test_the_sound_is_a_few_seconds_at_16_khz() -> None:
    sound = speech(SOUND_SECONDS)
    assert sound.dtype == np.float32
    assert sound.shape == (int(SOUND_SECONDS * SAMPLE_RATE),)
    assert 0.01 < np.abs(sound).max() <= 1.0


def test_a_gpu_whose_kernels_do_not_run_is_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from whisper_api.cli.doctor import checks

    device = type("Properties", (), {"name": "Old", "total_memory": 8e9})()
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    for problem, state in (("torch has no code for GPU 0", "failed"), (None, "ok")):
        monkeypatch.setattr(checks, "cuda_problem", lambda index, problem=problem: problem)
        check = attempt("cuda, for torch", checks._cuda_of_torch)  # noqa: SLF001
        assert check.state == state
        assert "Old (8 GB)" in check.detail
        assert (problem or "") in check.detail
