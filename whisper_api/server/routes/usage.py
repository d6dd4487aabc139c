"""``/usage`` and ``/admin/usage``: what keys have used."""

from __future__ import annotations

from datetime import date
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.errors import InvalidOption, StorageError
from whisper_api.server.operations import Answer, Operation, Parameter
from whisper_api.server.resource import JsonResponse
from whisper_api.server.state import owner_of, reads, service_of
from whisper_api.usage_records import Usage, usage_csv

SINCE = Parameter("since", date, "The first day, in UTC; the first of this month by default")
UNTIL = Parameter("until", date, "The last day; today by default")
FORMAT = Parameter("format", Literal["json", "csv"], "Respond in this format", "json")
KEY = Parameter("key", str, "Only the key with this id")


async def own(request: Request) -> Response:
    """Get what your key has used, by day and model, and what is left of its quotas.

    Days are in UTC; up to 366 of them may be asked for. Jobs that failed through no fault of their audio or options,
    and jobs that were canceled before they ran, are not counted. Usage stays when a job is deleted.
    """
    return await _response(request, owner_of(request))


async def all_keys(request: Request) -> Response:
    """Get what all keys have used, by day, key and model, as ``/usage`` gives it for one key."""
    return await _response(request, KEY.of(request))


async def _response(request: Request, owner: str | None) -> Response:
    usage: Usage = await reads(request, service_of(request).usage.report, owner, SINCE.of(request), UNTIL.of(request))
    if FORMAT.of(request) == "csv":
        return Response(usage_csv(usage.rows), media_type="text/csv")
    return JsonResponse(usage)


FOUND = Answer(200, "The usage", {"application/json": Usage, "text/csv": str})

OWN = Operation(own, (FOUND,), tag="Usage", refusals=(InvalidOption, StorageError), parameters=(SINCE, UNTIL, FORMAT))
ALL = Operation(
    all_keys,
    (FOUND,),
    tag="Usage",
    refusals=(InvalidOption, StorageError),
    parameters=(SINCE, UNTIL, FORMAT, KEY),
    roles=("admin", "operator"),
    scope="admin",
)
