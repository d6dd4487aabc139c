"""``/status``: the server's settings and how it is, in nested objects."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.operations import Answer, Operation
from whisper_api.server.resource import JsonResponse
from whisper_api.server.state import ServerState, blocking, state_of, thread_count

__all__ = ["STATUS"]


async def server_status(request: Request) -> Response:
    """The old server's objects and words, ours beside them."""
    state = state_of(request)
    return JsonResponse(await blocking(state.reads, _describe, state))


def _describe(state: ServerState) -> dict[str, Any]:
    config = state.config
    queued, processing = state.service.counts()
    health = state.service.health()
    facts = state.service.executor.facts()
    return {
        "server": {
            "host": config.host,
            "port": str(config.port),
            "timeout": config.timeout_seconds,
            "keepalive": config.keepalive_seconds,
            "worker_number": thread_count(config.http_workers),
            "version": _version(),
            "uptime_seconds": round(time.monotonic() - state.started, 1),
            "state": health.state,
            "reason": health.reason,
            "loading": health.loading,
        },
        "processing": {
            "concurrent_mode": config.enable_concurrency,
            "max_concurrent_jobs": config.max_concurrent_jobs,
            "device": facts.device,
            "device_index": str(config.device_index),
            "default_output_format": config.output_format,
            "default_sync_mode": config.default_sync,
            "sync_timeout": config.sync_timeout_seconds,
            "model": facts.model,
            "compute_type": facts.compute_type,
            "default_language": config.language,
        },
        "resources": {
            "max_file_size": config.max_file_size,
            "job_retention_hours": config.job_retention_hours,
            "cleanup_interval_hours": config.cleanup_interval_hours,
            "max_queued_jobs": config.max_queued_jobs,
            "memory_bytes": _resident_bytes(),
            "resident_models": facts.resident_models,
            "resident_model_bytes": facts.resident_bytes,
            "uploads_disk_free_bytes": _free_bytes(config.tmp_dir),
            "data_disk_free_bytes": _free_bytes(config.data_dir),
        },
        "security": {"authorization_enabled": config.enable_authorization},
        "queue_state": {"queued_jobs": queued, "processing_jobs": processing},
    }


def _version() -> str:
    try:
        return importlib.metadata.version("whisper-api")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


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


STATUS = Operation(server_status, "Server", (Answer(200, "How it is", {"application/json": dict[str, Any]}),))
