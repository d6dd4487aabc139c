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
    # A command replaces all of the image's, the directory of the data as well.
    prometheus = services["prometheus"]
    (directory,) = (word for word in prometheus["command"] if word.startswith("--storage.tsdb.path="))
    assert f"prometheus:{directory.partition('=')[2]}" in prometheus["volumes"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published)


# --- deploy/cluster ---

CLUSTER: dict[str, Any] = yaml.safe_load((DEPLOY / "cluster/compose.yaml").read_text(encoding="utf-8"))
MANIFESTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((DEPLOY / "cluster/raycluster.yaml").read_text(encoding="utf-8"))
)


def test_the_machines_of_the_compose_file_make_one_cluster() -> None:
    services = CLUSTER["services"]
    head, front, worker = services["head"], services["front"], services["worker"]
    address = head["networks"]["cluster"]["ipv4_address"]
    assert head["command"] == ["worker", "--head", "--node-address", address]
    assert worker["command"] == ["worker", "--address", f"{address}:6379"]
    assert front["environment"]["RAY_ADDRESS"] == f"{address}:6379"
    assert front["environment"]["WHISPER_EXECUTOR"] == "ray"
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{service['secrets'][0]}"
        assert (DEPLOY / "cluster" / service["build"]["context"] / service["build"]["dockerfile"]).exists()
        assert service["build"]["args"]["EXTRAS"] == "[cluster]"
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            assert volume.partition(":")[0] in CLUSTER["volumes"]
        # A tmpfs belongs to root and has the mode of the image's directory: only /tmp is open to the image's user.
        assert set(service.get("tmpfs", ())) <= {"/tmp"}
        # The image's health check asks a server.
        assert service.get("healthcheck", {}).get("disable", False) == (service is not front)
    # A driver needs the sockets of its machine's part of Ray.
    assert front["network_mode"] == "service:head"
    assert "ray:/tmp" in head["volumes"]
    assert "ray:/tmp" in front["volumes"]
    assert worker["deploy"]["replicas"] == 2
    assert 'ARG EXTRAS=""' in DOCKERFILE
    assert '".${EXTRAS}"' in DOCKERFILE


def test_the_commands_of_the_compose_file_are_those_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    from whisper_api.cli.main import main

    for service in CLUSTER["services"].values():
        assert main([*service["command"], "--help"]) == 0
        assert capsys.readouterr().out


def test_the_pods_of_the_manifest_work_with_what_the_image_has_and_kuberay_adds() -> None:
    (spec,) = (each["spec"] for each in MANIFESTS if each["kind"] == "RayCluster")
    head = spec["headGroupSpec"]["template"]["spec"]
    worker = spec["workerGroupSpecs"][0]["template"]["spec"]
    for pod in (head, worker):
        # Kubernetes refuses an image whose user is a name, and gives claims to root.
        user = int(re.findall(r"useradd --uid (\d+)", DOCKERFILE)[0])
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": user, "fsGroup": user}
        # KubeRay's probes run wget in the first container of a pod, unless it has probes.
        assert all("httpGet" in pod["containers"][0][probe] for probe in ("livenessProbe", "readinessProbe"))
    # The autoscaler's container knows nothing of the token by itself.
    tokens = [each for each in spec["autoscalerOptions"]["env"] if each["name"].startswith("RAY_AUTH")]
    assert tokens == [each for each in head["containers"][0]["env"] if each["name"].startswith("RAY_AUTH")]
    # With an autoscaler, KubeRay mounts the volume "ray-logs" at /tmp/ray of the head; the front must see the same.
    assert {"name": "ray-logs", "emptyDir": {}} in head["volumes"]
    for container in head["containers"]:
        assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in container["volumeMounts"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_the_manifest_is_a_ray_cluster_with_the_front_in_its_head() -> None:
    (cluster,) = (each for each in MANIFESTS if each["kind"] == "RayCluster")
    spec = cluster["spec"]
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    containers = {each["name"]: each for each in head["template"]["spec"]["containers"]}
    front = containers["front"]
    names = {each["name"] for each in front["env"]}
    assert {"WHISPER_EXECUTOR", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} <= names
    assert front["readinessProbe"]["httpGet"]["path"] == "/readyz"
    (workers,) = spec["workerGroupSpecs"]
    wanted = next(each["value"] for each in front["env"] if each["name"] == "WHISPER_CLUSTER_WORKERS")
    assert workers["minReplicas"] <= int(wanted) <= workers["maxReplicas"]
    pods = [head["template"]["spec"], workers["template"]["spec"]]
    claims = {each["metadata"]["name"] for each in MANIFESTS if each["kind"] == "PersistentVolumeClaim"}
    for pod in pods:
        volumes = {each["name"] for each in pod["volumes"]}
        used = {
            each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each
        }
        assert used <= claims
        for container in pod["containers"]:
            assert {each["name"] for each in container["volumeMounts"]} <= volumes
            assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]
    (service,) = (each for each in MANIFESTS if each["kind"] == "Service")
    assert service["spec"]["selector"]["ray.io/cluster"] == cluster["metadata"]["name"]
