"""``/livez``, ``/readyz``, ``/health``: for whatever watches the server. No key is asked for."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.problems import Problem
from whisper_api.server.resource import JsonResponse
from whisper_api.server.state import blocking, state_of

__all__ = ["livez", "readyz"]

RETRY_SECONDS = 5


async def livez(request: Request) -> Response:
    """The process answers: nothing more is said, so that a server that only loads its models is not restarted."""
    return JsonResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Whether jobs can be worked on now; and what is still being loaded, as long as something is.

    Raises:
        Problem: 503 with the state as its code: starting, stalled, draining or failed.
    """
    state = state_of(request)
    health = await blocking(state.reads, state.service.health)
    if not health.ready:
        raise Problem(503, health.state, health.reason, {"Retry-After": str(RETRY_SECONDS)})
    return JsonResponse({"status": health.state, **({"loading": health.loading} if health.loading else {})})
