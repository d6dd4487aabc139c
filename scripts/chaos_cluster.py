#!/usr/bin/env python3
"""Jobs on a cluster while its parts are killed: none may be lost, doubled or wrong.

    scripts/chaos_cluster.py [--jobs 30] [--clients 8] [--model base] [--actors 3] [--nodes 2] [--fronts 2] [--heads 1]

Starts a cluster of two machines on loopback and a server in front of it. Clients submit pieces of a recording and wait
for their results, while engines, machines, the server and the head are killed with SIGKILL one after the other; what
was killed is started again, as a supervisor would. In the end, every job must be Completed with the text that an engine
without a cluster gives, and nothing may be left on the disks of the front and the machines. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import wave
from pathlib import Path
from typing import Any
from unittest import mock

from free_ports import free_port
from loopback_cluster import Loopback, environment
from with_parent import with_parent

DEADLINE = 900.0
PIECES = 4


class Front:
    """The server, as a process that can be killed."""

    def __init__(self, folder: Path, address: str, model: str, models_dir: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.folder = folder
        # A front that outlives the script would look for the cluster for ever.
        serve = "-m", "whisper_api", "serve", "--port", self.url.rpartition(":")[2]
        self._command = with_parent(sys.executable, *serve)
        self._environment = {
            **os.environ,
            **environment(),
            "WHISPER_API_CONFIG": "",
            "WHISPER_DATA_DIR": str(folder / "data"),
            "WHISPER_TMP_FILES": str(folder / "uploads"),
            "WHISPER_MODELS_DIR": str(models_dir),
            "WHISPER_MODEL": model,
            "WHISPER_LANGUAGE": "en",
            "WHISPER_DEVICE": "cpu",
            "WHISPER_EXECUTOR": "ray",
            "RAY_ADDRESS": address,
            "ENABLE_AUTHORIZATION": "false",
            "PRELOAD_MODELS": "false",
            "MAX_JOB_ATTEMPTS": "12",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        log = (self.folder / "front.log").open("ab")
        self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log, cwd=self.folder)
        log.close()

    def kill(self, how: int = signal.SIGKILL) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait()


class Client(threading.Thread):
    """Submits jobs one after the other, and waits for each, through restarts of the server."""

    def __init__(self, url: str, work: list[tuple[int, bytes]], results: dict[int, dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._work = work
        self._results = results

    def run(self) -> None:
        import httpx

        with httpx.Client(base_url=self._url, timeout=60) as client:
            while self._work:
                number, audio = self._work.pop()
                while number not in self._results:
                    with contextlib.suppress(httpx.HTTPError, KeyError, json.JSONDecodeError):
                        self._results[number] = self._one(client, number, audio)
                        continue
                    time.sleep(0.3)

    def _one(self, client: Any, number: int, audio: bytes) -> dict[str, Any]:
        headers = {"Idempotency-Key": f"chaos-{number}"}
        form = {"language": "en", "diarize": "false", "keep_result": "true"}
        answer = client.post("/transcribe", files={"file": (f"{number}.wav", audio)}, data=form, headers=headers)
        job_id = answer.json()["job_id"]
        while True:
            status = client.get(f"/transcription/{job_id}", params={"wait": 20}).json()
            if status["status"] in ("Completed", "Failed", "Canceled"):
                result = client.get(f"/transcription/{job_id}/result", params={"format": "txt"}).text
                return {"job_id": job_id, "status": status["status"], "text": result, "error": status.get("error")}
            time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--model", default="base")
    parser.add_argument("--models-dir", type=Path, default=os.environ.get("WHISPER_MODELS_DIR", "models_cache"))
    parser.add_argument("--seconds", type=float, default=8.0, help="of each recording")
    parser.add_argument("--pause", type=float, default=1.0, help="most seconds that a death waits for its moment")
    parser.add_argument("--seed", type=int, default=1)
    for name, number in (("actors", 3), ("nodes", 2), ("fronts", 2), ("heads", 1)):
        parser.add_argument(f"--{name}", type=int, default=number, help="how many are killed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, environment()):
        return chaos(Path(name), arguments)


def chaos(folder: Path, arguments: argparse.Namespace) -> int:
    chance = random.Random(arguments.seed)
    recordings = [piece(number * 5.0, arguments.seconds) for number in range(min(PIECES, -(-arguments.jobs // 4)))]
    expected = [local_text(folder, arguments, audio) for audio in recordings]
    deaths = [kind for kind in ("actors", "nodes", "fronts", "heads") for _ in range(getattr(arguments, kind))]
    chance.shuffle(deaths)
    loopback = Loopback(folder / "machines")
    front: Front | None = None
    began = time.monotonic()
    try:
        for _ in range(2):
            loopback.add()
        front = Front(folder, loopback.address, arguments.model, arguments.models_dir.absolute())
        work = [(number, recordings[number % len(recordings)]) for number in range(arguments.jobs)]
        results: dict[int, dict[str, Any]] = {}
        clients = [Client(front.url, work, results) for _ in range(arguments.clients)]
        for client in clients:
            client.start()
        for number, kind in enumerate(deaths, start=1):
            # One death after the other while jobs run, whatever the machine's speed.
            while len(results) < arguments.jobs * number // (len(deaths) + 2) and time.monotonic() - began < DEADLINE:
                time.sleep(0.1)
            wait_for_engine(front.url)
            time.sleep(chance.uniform(0.0, 1.0) * arguments.pause)
            print(f"{time.monotonic() - began:6.1f} s  {len(results):3} done, kill one of {kind}", flush=True)
            kill(kind, loopback, front, chance)
        for client in clients:
            client.join(max(0.0, DEADLINE - (time.monotonic() - began)))
        print(f"{time.monotonic() - began:6.1f} s  {len(results):3} done")
        return judge(folder, loopback, front, arguments, results, expected)
    finally:
        if front is not None:
            front.kill(signal.SIGTERM)
        loopback.close()


def kill(kind: str, loopback: Loopback, front: Front, chance: random.Random) -> None:
    """Kill a part, and start it again after a moment."""
    match kind:
        case "actors":
            engines = actors()
            if engines:
                os.kill(chance.choice(engines), signal.SIGKILL)
        case "nodes":
            loopback.kill(chance.choice(loopback.nodes))
            time.sleep(1.0)
            loopback.add()
        case "fronts":
            front.kill()
            time.sleep(1.0)
            front.start()
        case "heads":
            loopback.kill_head()
            time.sleep(2.0)
            loopback.start_head()
            for _ in range(2):
                loopback.add()


def actors() -> list[int]:
    """The processes of the engines, which Ray names by their class, below this process."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::EngineActor"):
                found.append(process.pid)
    return found


def wait_for_engine(url: str) -> None:
    import httpx

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/readyz", timeout=10).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)


def judge(
    folder: Path,
    loopback: Loopback,
    front: Front,
    arguments: argparse.Namespace,
    results: dict[int, dict[str, Any]],
    expected: list[str],
) -> int:
    import httpx

    wrong = {
        number: result
        for number, result in results.items()
        if result["status"] != "Completed" or result["text"].split() != expected[number % len(expected)].split()
    }
    jobs = httpx.get(f"{front.url}/transcriptions", params={"limit": 1000}, timeout=60).json()["jobs"]
    time.sleep(2.0)
    left = [str(path.relative_to(folder)) for path in (folder / "uploads").rglob("audio*")]
    left += loopback.left_over()
    figures = {
        "jobs": arguments.jobs,
        "completed": sum(result["status"] == "Completed" for result in results.values()),
        "rows": len(jobs),
        "wrong": wrong,
        "left over": left,
        "bytes in the object stores": stored_bytes(loopback.address),
    }
    print(json.dumps(figures, indent=2))
    good = figures["completed"] == figures["rows"] == arguments.jobs and not wrong and not left
    return int(not (good and figures["bytes in the object stores"] == 0))


def stored_bytes(address: str) -> int:
    """Bytes that the object stores of all machines hold."""
    code = (
        "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)\n"
        "from ray._private.internal_api import node_stats\n"
        "alive = [node for node in ray.nodes() if node['Alive']]\n"
        "places = [(node['NodeManagerAddress'], node['NodeManagerPort']) for node in alive]\n"
        "total = 0\n"
        "for place in places:\n"
        "    try:\n"
        "        total += node_stats(*place, include_memory_info=False).store_stats.object_store_bytes_used\n"
        "    except Exception:\n"
        "        print(place, 'was killed, which Ray has not noticed yet')\n"
        "print('bytes', total)"
    )
    environment_of_driver = {**os.environ, **environment(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, address], env=environment_of_driver, capture_output=True, text=True, timeout=60
    )
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("bytes ")]
    if not found:
        print(done.stderr[-2000:], file=sys.stderr)
        return -1
    return int(found[-1])


def piece(begin: float, seconds: float) -> bytes:
    """A piece of the recording that pyannote.audio brings along."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    call = Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"
    file = io.BytesIO()
    with wave.open(str(call)) as source, wave.open(file, "wb") as out:
        out.setparams(source.getparams())
        source.setpos(int(begin * source.getframerate()))
        out.writeframes(source.readframes(int(seconds * source.getframerate())))
    return file.getvalue()


def local_text(folder: Path, arguments: argparse.Namespace, audio: bytes) -> str:
    """The text that an engine without a cluster gives."""
    path = folder / "expected.wav"
    path.write_bytes(audio)
    command = [sys.executable, "-m", "whisper_api", "transcribe", str(path), "--language", "en", "--no-diarize"]
    command += [
        "--model",
        arguments.model,
        "--device",
        "cpu",
        "--models-dir",
        str(arguments.models_dir),
        "--format",
        "txt",
    ]
    done = subprocess.run(
        [*command, "--output-dir", str(folder / "expected")],
        env={**os.environ, **environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return next((folder / "expected").glob("*.txt")).read_text(encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
