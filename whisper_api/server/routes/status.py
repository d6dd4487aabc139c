"""``/status``: the server's settings and how it is, in nested objects."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.operations import Answer, Operation
from whisper_api.server.resource import JsonResponse
from whisper_api.server.state import ServerState, blocking, state_of, thread_count, viewer_of
from whisper_api.server.version import version

__all__ = ["STATUS", "ServerStatus"]


class AboutServer(msgspec.Struct, frozen=True, kw_only=True):
    """The process and its settings.

    Attributes:
        host, port: where it listens; the port is that which the request came to.
        timeout: seconds that a request may take.
        keepalive: seconds that an idle connection stays open.
        worker_number: threads for blocking request work.
        version: of the program.
        uptime_seconds: since it was started.
        state: in one word; ``ready`` when jobs are worked on.
        reason: why it is in that state.
        loading: what is being loaded; empty when nothing is.
    """

    host: str
    port: str
    timeout: float
    keepalive: float
    worker_number: int
    version: str
    uptime_seconds: float
    state: str
    reason: str
    loading: str


class AboutProcessing(msgspec.Struct, frozen=True, kw_only=True):
    """How jobs are worked on.

    Attributes:
        concurrent_mode: whether several jobs are active at a time.
        max_concurrent_jobs: how many, if so.
        device: that the models run on.
        device_index: as it is configured.
        default_output_format: of a transcript, when a request names none.
        default_sync_mode: whether a request is answered with the transcript when it does not say.
        sync_timeout: seconds that such a request waits; 0 until the job ends.
        model: the Whisper model by name.
        compute_type: number format of its weights.
        default_language: code, or ``auto``.
    """

    concurrent_mode: bool
    max_concurrent_jobs: int
    device: str
    device_index: str
    default_output_format: str
    default_sync_mode: bool
    sync_timeout: float
    model: str
    compute_type: str
    default_language: str


class AboutResources(msgspec.Struct, frozen=True, kw_only=True):
    """What may be used, and what is.

    Attributes:
        max_file_size: bytes that an upload may have.
        job_retention_hours: until a job and its result are removed.
        cleanup_interval_hours: between two removals of what has expired.
        max_queued_jobs: that may wait.
        memory_bytes: of this process; None where the system does not tell, and for a user.
        resident_models: models in memory.
        resident_model_bytes: what they take.
        uploads_disk_free_bytes, data_disk_free_bytes: where uploads and the job database are; None when that cannot
            be told, and for a user: how they change says what others do.
    """

    max_file_size: int
    job_retention_hours: float
    cleanup_interval_hours: float
    max_queued_jobs: int
    memory_bytes: int | None
    resident_models: int
    resident_model_bytes: int
    uploads_disk_free_bytes: int | None
    data_disk_free_bytes: int | None


class AboutSecurity(msgspec.Struct, frozen=True, kw_only=True):
    """Who may call.

    Attributes:
        authorization_enabled: whether a key is asked for.
    """

    authorization_enabled: bool


class AboutQueue(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs there are: for a user its own, for an admin and without authorization all.

    Attributes:
        queued_jobs: that wait.
        processing_jobs: that run.
    """

    queued_jobs: int
    processing_jobs: int


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The server's settings, and how it is."""

    server: AboutServer
    processing: AboutProcessing
    resources: AboutResources
    security: AboutSecurity
    queue_state: AboutQueue


async def server_status(request: Request) -> Response:
    """The server's settings, and how it is. A user is told the numbers of its own jobs only."""
    state = state_of(request)
    return JsonResponse(await blocking(state.reads, _describe, state, viewer_of(request), _port(request)))


def _port(request: Request) -> int | None:
    """The port that a request came to; None where the server listens on no port."""
    server = request.scope.get("server")
    return None if server is None else server[1]


def _describe(state: ServerState, viewer: str | None, port: int | None) -> ServerStatus:
    """The status.

    Args:
        state: of the application.
        viewer: whose jobs the caller may see; None for all.
        port: that the request came to.
    """
    # The old server's objects and words, ours beside them.
    config = state.config
    queued, processing = state.service.counts(viewer)
    health = state.service.health()
    facts = state.service.facts()
    return ServerStatus(
        server=AboutServer(
            host=config.host,
            port=str(port or config.port),
            timeout=config.timeout_seconds,
            keepalive=config.keepalive_seconds,
            worker_number=thread_count(config.http_workers),
            version=version(),
            uptime_seconds=round(time.monotonic() - state.started, 1),
            state=health.state,
            reason=health.reason,
            loading=health.loading,
        ),
        processing=AboutProcessing(
            concurrent_mode=config.enable_concurrency,
            max_concurrent_jobs=config.max_concurrent_jobs,
            device=facts.device,
            device_index=str(config.device_index),
            default_output_format=config.output_format,
            default_sync_mode=config.default_sync,
            sync_timeout=config.sync_timeout_seconds,
            model=facts.model,
            compute_type=facts.compute_type,
            default_language=config.language,
        ),
        resources=AboutResources(
            max_file_size=config.max_file_size,
            job_retention_hours=config.job_retention_hours,
            cleanup_interval_hours=config.cleanup_interval_hours,
            max_queued_jobs=config.max_queued_jobs,
            memory_bytes=_resident_bytes() if viewer is None else None,
            resident_models=facts.resident_models,
            resident_model_bytes=facts.resident_bytes,
            uploads_disk_free_bytes=_free_bytes(config.tmp_dir) if viewer is None else None,
            data_disk_free_bytes=_free_bytes(config.data_dir) if viewer is None else None,
        ),
        security=AboutSecurity(authorization_enabled=config.enable_authorization),
        queue_state=AboutQueue(queued_jobs=queued, processing_jobs=processing),
    )


def _resident_bytes() -> int | None:
    """Memory of this process; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _free_bytes(directory: Path) -> int | None:
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return None


STATUS = Operation(server_status, "Server", (Answer(200, "How it is", {"application/json": ServerStatus}),))
