"""``/status``: the settings and the state of the server, in nested objects."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import msgspec
from starlette.requests import Request

from whisper_api.jobs.executor import EngineFacts
from whisper_api.key_values import Role
from whisper_api.permissions import exposed_files
from whisper_api.records import made_of
from whisper_api.server.operations import operation
from whisper_api.server.state import key_of, state_of, thread_count, version, viewer_of


class AboutServer(msgspec.Struct, frozen=True, kw_only=True):
    """The process and its settings.

    Attributes:
        host, port: address of the server, with the port that received the request.
        timeout: seconds that a request may take.
        keepalive: seconds that an idle connection stays open.
        worker_number: threads for the blocking work of requests.
        version: version of the program.
        uptime_seconds: seconds since the start.
        state: the state in one word; ``ready`` when the server runs jobs.
        reason: the reason of the state.
        loading: the models that are being loaded; empty when none are.
        warnings: what an operator should change: a sentence for each; empty for a user.
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
    warnings: tuple[str, ...]


class AboutProcessing(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of transcriptions.

    Attributes:
        concurrent_mode: whether several jobs run at a time.
        max_concurrent_jobs: number of jobs that run at a time in this mode.
        device: the device that runs the models.
        device_index: the configured index of the device.
        default_output_format: format of a transcript when the request names none.
        default_sync_mode: whether the response to a request without ``sync`` is the transcript.
        sync_timeout: seconds that a synchronous request waits for its job; 0 for no limit.
        model: name of the Whisper model.
        compute_type: number format of the model's weights.
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


class AboutDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that runs models.

    Attributes:
        device: name of the device, for example ``cuda:0``.
        free_bytes: free memory of a GPU; None for a processor, and for a user.
        encoder: what runs Whisper's encoder on a GPU, and why; empty for a processor, and while no model is loaded.
    """

    device: str
    free_bytes: int | None
    encoder: str


class AboutResources(msgspec.Struct, frozen=True, kw_only=True):
    """Limits, and the use of resources.

    Attributes:
        max_file_size: bytes that an upload may have.
        job_retention_hours: hours until a job and its result are removed.
        cleanup_interval_hours: hours between two removals of expired jobs.
        max_queued_jobs: number of jobs that may wait.
        memory_bytes: memory of the process; None when the system does not report it, and for a user.
        resident_models: number of models in memory.
        resident_model_bytes: size of the models in memory.
        uploads_disk_free_bytes, data_disk_free_bytes: free bytes on the disks of the uploads and of the job database;
            None when unknown, and for a user, because changes of the numbers reveal the work of other users.
        devices: the devices in use; empty until the first model is loaded.
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
    devices: tuple[AboutDevice, ...]


class AboutSecurity(msgspec.Struct, frozen=True, kw_only=True):
    """Access to the server.

    Attributes:
        authorization_enabled: whether callers need a key.
        role: role of the caller's key; None without authorization.
    """

    authorization_enabled: bool
    role: Role | None


class AboutQueue(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of jobs: a user's own jobs, or all jobs for an admin, for an operator and without authorization.

    Attributes:
        queued_jobs: number of waiting jobs.
        processing_jobs: number of running jobs.
        oldest_wait_seconds: seconds since the submission of the oldest job that waits; None when none waits.
    """

    queued_jobs: int
    processing_jobs: int
    oldest_wait_seconds: float | None


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The settings and the state of the server.

    Attributes:
        server: the process.
        processing: the settings of transcriptions.
        resources: limits and their use.
        security: access to the server.
        queue_state: the numbers of jobs.
        engines: the engines of a cluster; empty for an engine in the server's process, and for a user, because they
            reveal the work of other users.
    """

    server: AboutServer
    processing: AboutProcessing
    resources: AboutResources
    security: AboutSecurity
    queue_state: AboutQueue
    engines: tuple[EngineFacts, ...] = ()


@operation("The status", tag="Server", roles=("user", "admin", "operator"))
def server_status(request: Request) -> ServerStatus:
    """Get the settings and the state of the server. A user sees the numbers of its own jobs only."""
    state, viewer, key = state_of(request), viewer_of(request), key_of(request)
    # None on a Unix socket.
    server = request.scope.get("server")
    port = server[1] if server is not None else None
    # The old server's objects and names, and some more.
    config = state.config
    queued, processing = state.service.counts(viewer)
    health = state.service.health()
    facts = state.service.facts()
    oldest = state.service.oldest_wait(viewer)
    notes = (*exposed_files(config), *filter(None, [state.service.tracing.problem]))
    return ServerStatus(
        server=made_of(
            health,
            AboutServer,
            host=config.host,
            port=str(port or config.port),
            timeout=config.timeout_seconds,
            keepalive=config.keepalive_seconds,
            worker_number=thread_count(config.http_workers),
            version=version(),
            uptime_seconds=round(time.monotonic() - state.started, 1),
            warnings=notes if viewer is None else (),
        ),
        processing=made_of(
            facts,
            AboutProcessing,
            concurrent_mode=config.enable_concurrency,
            max_concurrent_jobs=config.max_concurrent_jobs,
            device_index=str(config.device_index),
            default_output_format=config.output_format,
            default_sync_mode=config.default_sync,
            sync_timeout=config.sync_timeout_seconds,
            default_language=config.language,
        ),
        resources=made_of(
            config,
            AboutResources,
            memory_bytes=_resident_bytes() if viewer is None else None,
            resident_models=facts.resident_models,
            resident_model_bytes=facts.resident_bytes,
            uploads_disk_free_bytes=_free_bytes(config.tmp_dir) if viewer is None else None,
            data_disk_free_bytes=_free_bytes(config.data_dir) if viewer is None else None,
            devices=tuple(
                made_of(each, AboutDevice, **({} if viewer is None else {"free_bytes": None})) for each in facts.devices
            ),
        ),
        security=AboutSecurity(authorization_enabled=config.enable_authorization, role=key.role if key else None),
        queue_state=AboutQueue(
            queued_jobs=queued,
            processing_jobs=processing,
            oldest_wait_seconds=None if oldest is None else round(oldest, 1),
        ),
        engines=facts.engines if viewer is None else (),
    )


def _resident_bytes() -> int | None:
    """The memory of this process; None when the system does not report it."""
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
