"""``/metrics``: the metrics for Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.operations import Answer, Operation
from whisper_api.server.state import reads, service_of

__all__ = ["METRICS"]


async def metrics(request: Request) -> Response:
    """Get the metrics of the server for Prometheus, as text or in the format of OpenMetrics.

    ``WHISPER_METRICS_PORT`` opens another port, which has only this path and needs no key.
    """
    accept = request.headers.get("accept", "")
    body, content_type = await reads(request, service_of(request).metrics.render, accept)
    # Not as the argument media_type, to which Starlette would add a second charset.
    return Response(body, headers={"Content-Type": content_type})


METRICS = Operation(
    metrics, (Answer(200, "The metrics", {"text/plain": str}),), tag="Server", roles=("metrics", "admin", "operator")
)
