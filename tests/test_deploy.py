"""The files of deploy/: that they name settings, files and ports that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from whisper_api.config import settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SETTING = re.compile(r"\b(?:WHISPER|URL|MAX|ENABLE)_[A-Z_]+\b")


def test_settings_are_those_of_the_server() -> None:
    keys = {setting.key for setting in settings()} | {"WHISPER_TARGET"}
    for file in DEPLOY.rglob("*"):
        if file.is_file():
            assert set(SETTING.findall(file.read_text(encoding="utf-8"))) <= keys, file


def test_the_image_is_built_from_what_is_sent_to_the_builder() -> None:
    sent = {
        line.strip("!/") for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[0] == "!"
    }
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    names = [name for _, name in stages]
    assert all(base in names or base == "python:3.12-slim" for base, _ in stages)
    assert set(re.findall(r"--from=(\S+)", DOCKERFILE)) <= set(names)
    assert {"cpu", "cuda"} <= set(names)
    assert "\nUSER whisper\n" in DOCKERFILE


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_the_steps_of_an_image_can_be_run_without_a_container_engine(target: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "try_image.py"), str(tmp_path), "--target", target, "--plan"]
    steps = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    # Each stage before those that begin with it or copy from it, and every step of theirs once.
    begun = [line.split()[0] for line in steps if line.split()[1] == "FROM"]
    assert begun == ["runtime", "source", f"build-{target}", target]
    assert len(steps) == len(set(steps))
    written = re.sub(r"\\\n", " ", re.sub(r"^ *#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    for line in written.splitlines():
        foreign = ("build-cuda",) if target == "cpu" else ("build-cpu", "TORCH_INDEX")
        if line.startswith(("RUN", "COPY")) and not any(word in line for word in foreign):
            assert any(step.endswith(line.partition(" ")[2].strip()) for step in steps), line


def test_the_lock_as_constraints_has_versions_only() -> None:
    """The Dockerfile's sed, in Python."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    kept = [line.removesuffix("\\").rstrip() for line in lines if not line.lstrip().startswith("--hash")]
    named = [line for line in kept if line and not line.lstrip().startswith("#")]
    assert len(named) > 50
    assert all(re.fullmatch(r"[A-Za-z0-9._\[\],-]+==[^\s;]+( ; .+)?", line) for line in named)


def test_compose_mounts_files_that_there_are_and_scrapes_the_port_of_the_metrics() -> None:
    services = COMPOSE["services"]
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), volume
    server = services["whisper-api"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).exists()
    scraped = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    target = f"whisper-api:{server['environment']['WHISPER_METRICS_PORT']}"
    assert [config["static_configs"] for config in scraped] == [[{"targets": [target]}]]
    assert server["read_only"]
    assert server["cap_drop"] == ["ALL"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published)
