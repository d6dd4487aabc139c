"""``/livez``, ``/readyz``, ``/health``: health checks, which need no key; and ``/metrics``, which needs one."""

from __future__ import annotations

import functools
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.operations import Answer, operation
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import service_of

RETRY_SECONDS = 5


class Alive(msgspec.Struct, frozen=True):
    """The process responds.

    Attributes:
        status: always ``ok``.
    """

    status: Literal["ok"] = "ok"


class Ready(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The server runs jobs.

    Attributes:
        status: the state in one word: ``ready``, or ``degraded`` when fewer engines run than are wanted.
        loading: the models that are being loaded; absent when none are.
        reason: how many engines run, and why not more; absent unless degraded.
    """

    status: str
    loading: str = ""
    reason: str = ""


health_call = functools.partial(operation, tag="Health", open=True)


@health_call("The process responds")
async def livez(request: Request) -> Alive:
    """Check that the process responds. A server that is still loading models passes, so that nothing restarts it."""
    return Alive()


@health_call(
    "The server runs jobs",
    refusals=(
        Problem(503, "starting", "The server starts and loads models"),
        Problem(503, "stalled", "A running job makes no progress"),
        Problem(503, "disk_full", "The disk that holds the job database is full"),
        Problem(503, "device_lost", "The GPU has failed: the process ends, and its supervisor starts it anew"),
        Problem(503, "degraded", "No engine of the cluster runs: jobs wait until one does"),
        Problem(503, "failed", "Models cannot be loaded, or results cannot be written"),
    ),
)
def readyz(request: Request) -> Ready:
    """Check that the server runs jobs, and list the models that are still being loaded.

    Raises:
        Problem: 503 with the state as its code: starting, stalled, draining, disk_full, device_lost, degraded
        or failed.
    """
    health = service_of(request).health()
    if not health.ready:
        raise Problem(503, health.state, health.reason, {"Retry-After": str(RETRY_SECONDS)})
    return Ready(status=health.state, loading=health.loading, reason=health.reason)


@operation(Answer(200, "The metrics", {"text/plain": str}), tag="Server", roles=("metrics", "admin", "operator"))
def metrics(request: Request) -> Response:
    """Get the metrics of the server for Prometheus, as text or in the format of OpenMetrics.

    ``WHISPER_METRICS_PORT`` opens another port, which has only this path and needs no key.
    """
    body, content_type = service_of(request).metrics.render(request.headers.get("accept", ""))
    # Not as the argument media_type, to which Starlette would add a second charset.
    return Response(body, headers={"Content-Type": content_type})
