"""The report of ``whisper-api doctor --server URL``: on a running server, and on the way to it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import msgspec
import numpy as np
import requests

from whisper_api import __version__
from whisper_api.cli.doctor.check import Check
from whisper_api.cli.doctor.sound import as_wav
from whisper_api.cli.doctor.way import Probe, Prober, certificate, clock, streams, uploads
from whisper_api.client import Client
from whisper_api.client.calls import Server
from whisper_api.client.responses import unreachable, untrusted
from whisper_api.engine.models.download import human_bytes
from whisper_api.errors import WhisperApiError
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import SAMPLE_RATE

CLIP_SECONDS = 2.0
# The longest time for the job of the clip, its wait included.
TRANSCRIPTION_SECONDS = 300.0
KEY_REMEDY = "whisper-api keys create NAME on the server makes one; WHISPER_API_KEY or --key-file gives it here"


class ServerReport(msgspec.Struct, frozen=True):
    """The report on a running server.

    Attributes:
        url: URL of the server.
        works: whether no check has failed.
        connection: the checks of the way to the server: certificate, clock, proxies.
        server: the checks of the server itself.
    """

    url: str
    works: bool
    connection: tuple[Check, ...]
    server: tuple[Check, ...]


def examine_server(url: str, api_key: str | None, *, transcribe: bool = False) -> ServerReport:
    """Run all checks. Changes nothing on the server, except that a transcription makes a job and removes it.

    Args:
        url: URL of the server.
        api_key: the caller's key; None for a server without keys.
        transcribe: whether a short clip is transcribed.

    Raises:
        InvalidOption: the URL or the key is malformed.
    """
    with requests.Session() as session, Client(url, api_key, retries=0, session=session) as client:
        prober = Prober(Server(url, api_key), session)
        alive = prober.get("/livez")
        reached = _reached(client.url, alive)
        connection, server = [reached], []
        if reached.state == "ok":
            status = prober.get("/status")
            facts = status.json if status.status == 200 else {}
            largest = facts.get("resources", {}).get("max_file_size")
            connection += [certificate(prober), clock(alive), streams(prober), uploads(prober, largest)]
            server += [_version(facts), _ready(prober.get("/readyz")), _key(status)]
            server += [look(facts) for look in (_queue, _disks, _models, _devices)] if facts else []
            server += [Check("warning", "failed", text) for text in facts.get("server", {}).get("warnings", ())]
            server.append(_metrics(prober.get("/metrics")))
            if transcribe:
                server.append(_transcription(client))
    works = all(check.state != "failed" for check in (*connection, *server))
    return ServerReport(client.url, works, tuple(connection), tuple(server))


def _reached(url: str, alive: Probe) -> Check:
    if alive.error is not None:
        if isinstance(alive.error, requests.exceptions.SSLError) and "CERTIFICATE" in str(alive.error):
            remedy = "renew it, or trust its authority: REQUESTS_CA_BUNDLE names a file with that certificate"
            return Check("reachable", "failed", str(untrusted(url)), remedy)
        remedy = "is the server running, and do name, port and firewall let this machine reach it?"
        return Check("reachable", "failed", str(unreachable(url, alive.error).reason), remedy)
    if alive.status != 200 or alive.json.get("status") != "ok":
        remedy = "give the address under which the server's page opens, with its path"
        return Check("reachable", "failed", f"/livez answers {alive.status} and not as a Whisper API server", remedy)
    return Check("reachable", "ok", f"/livez answers in {1000 * alive.seconds:.0f} ms")


def _version(facts: dict[str, Any]) -> Check:
    theirs = facts.get("server", {}).get("version")
    if theirs is None:
        return Check("version", "missing", "unknown")
    if theirs != __version__:
        return Check("version", "missing", f"{theirs}; this program is {__version__}", "use the same version for both")
    return Check("version", "ok", f"{theirs}, as this program")


def _ready(ready: Probe) -> Check:
    if ready.status == 200:
        loading = ready.json.get("loading")
        return Check("ready", "ok", f"jobs are run; loading {loading}" if loading else "jobs are run")
    return Check("ready", "failed", ready.problem)


def _key(status: Probe) -> Check:
    match status.status:
        case 200:
            about = status.json["security"]
            if not about["authorization_enabled"]:
                return Check("key", "missing", "the server needs none: whoever reaches it may use it")
            return Check("key", "ok", f"valid, with the role {about.get('role', 'unknown')}")
        case 401:
            return Check("key", "failed", status.problem, KEY_REMEDY)
        case 403:
            return Check("key", "missing", f"may not read /status: {status.problem}")
    return Check("key", "failed", status.problem)


def _queue(facts: dict[str, Any]) -> Check:
    queue, most = facts["queue_state"], facts["resources"]["max_queued_jobs"]
    text = f"{queue['queued_jobs']} of at most {most} wait, {queue['processing_jobs']} run"
    if (oldest := queue.get("oldest_wait_seconds")) is not None:
        text += f"; the oldest has waited for {oldest:.0f} s"
    if queue["queued_jobs"] >= most:
        return Check("queue", "failed", text, "new jobs are refused: wait, add a device, or raise MAX_QUEUED_JOBS")
    return Check("queue", "ok", text)


def _disks(facts: dict[str, Any]) -> Check:
    resources = facts["resources"]
    free = {name: resources.get(f"{name}_disk_free_bytes") for name in ("uploads", "data")}
    known = {name: count for name, count in free.items() if count is not None}
    if not known:
        return Check("disks", "missing", "the key of an admin or an operator shows what is free")
    text = ", ".join(f"{human_bytes(count)} free for {name}" for name, count in known.items())
    largest = resources["max_file_size"]
    if min(known.values()) < largest:
        remedy = f"an upload may have {human_bytes(largest)} (MAX_FILE_SIZE): make room"
        return Check("disks", "failed", text, remedy)
    return Check("disks", "ok", text)


def _models(facts: dict[str, Any]) -> Check:
    resources, processing = facts["resources"], facts["processing"]
    resident = f"{resources['resident_models']} in memory, {human_bytes(resources['resident_model_bytes'])}"
    return Check("models", "ok", f"{processing['model']} ({processing['compute_type']}); {resident}")


def _devices(facts: dict[str, Any]) -> Check:
    found = []
    for each in facts["resources"].get("devices", ()):
        free = each["free_bytes"]
        found.append(each["device"] if free is None else f"{each['device']} with {human_bytes(free)} free")
    return Check("devices", "ok", ", ".join(found) or facts["processing"]["device"])


def _metrics(metrics: Probe) -> Check:
    match metrics.status:
        case 200 if "whisper_api_ready" in metrics.text:
            return Check("metrics", "ok", f"/metrics answers in {1000 * metrics.seconds:.0f} ms")
        case 401 | 403:
            remedy = "whisper-api keys create NAME --role metrics"
            return Check("metrics", "missing", "this key may not read /metrics", remedy)
    return Check("metrics", "failed", metrics.problem)


def _transcription(client: Client) -> Check:
    """Transcribe a clip without speech, and remove the job. The text does not matter."""
    options = TranscriptionOptions(language="en", align=False, diarize=False)
    begun = time.monotonic()
    job_id = None
    try:
        job_id = client.submit(_clip(), options)
        status = client.wait(job_id, timeout=TRANSCRIPTION_SECONDS)
        if status.status != "Completed":
            return Check("transcription", "failed", f"the job is {status.status}: {status.error or 'see its status'}")
        model = client.result(job_id).model
        seconds = time.monotonic() - begun
        return Check("transcription", "ok", f"{CLIP_SECONDS:.0f} s of sound in {seconds:.1f} s, with {model}")
    except WhisperApiError as error:
        return Check("transcription", "failed", f"{type(error).__name__}: {error}")
    finally:
        if job_id is not None:
            # A job that cannot be removed expires by itself.
            with contextlib.suppress(WhisperApiError):
                client.cancel(job_id, force=True)


def _clip() -> bytes:
    """A tone in quiet noise, as a WAV file."""
    moments = np.arange(int(CLIP_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    sound = 0.2 * np.sin(2 * np.pi * 440 * moments) + 0.01 * np.random.default_rng(0).standard_normal(len(moments))
    return as_wav(sound)
