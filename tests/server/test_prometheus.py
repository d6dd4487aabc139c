"""Prometheus itself reads the metrics, and its rules fire (`apt-get install prometheus`)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from server.conftest import Start
from server.harness import PATIENCE_SECONDS, free_port

DEPLOY = Path(__file__).parents[2] / "deploy/prometheus"

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None, reason="Prometheus is not installed"
)


def promtool(*arguments: str, given: str | None = None) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=DEPLOY, input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_alert_fires_on_made_up_series() -> None:
    promtool("check", "rules", "alerts.yml")
    promtool("test", "rules", "alerts_test.yml")
    alerts = re.findall(r"- alert: (\w+)", (DEPLOY / "alerts.yml").read_text(encoding="utf-8"))
    fired = re.findall(r"alertname: (\w+)\n +exp_alerts", (DEPLOY / "alerts_test.yml").read_text(encoding="utf-8"))
    assert sorted(alerts) == sorted(fired)


def test_prometheus_scrapes_the_server(start_server: Start, tmp_path: Path) -> None:
    port, own_port = free_port(), free_port()
    start_server({"WHISPER_METRICS_PORT": port, "PRELOAD_MODELS": False})
    promtool("check", "metrics", given=httpx.get(f"http://127.0.0.1:{port}/metrics").text)
    scrape = {"job_name": "whisper-api", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    config = {"global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"}, "scrape_configs": [scrape]}
    # JSON is YAML.
    (tmp_path / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error"]
    command.append(f"--web.listen-address=127.0.0.1:{own_port}")
    with subprocess.Popen(command, cwd=tmp_path) as prometheus:
        try:
            assert queried(own_port, 'whisper_api_ready{job="whisper-api"}') in ("0", "1")
            assert queried(own_port, "http_server_request_duration_seconds_count") is not None
        finally:
            prometheus.terminate()


def queried(port: int, expression: str) -> str:
    """The value of the first series of an expression, once Prometheus has it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            response = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression})
            # Until it is ready, Prometheus answers 503 with a sentence.
            answer = response.json() if response.is_success else {}
        except httpx.TransportError:
            answer = {}
        found = answer.get("data", {}).get("result", [])
        if found:
            return str(found[0]["value"][1])
        time.sleep(0.1)
    raise AssertionError(f"Prometheus has no {expression}")
