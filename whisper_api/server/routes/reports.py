"""``/usage``, ``/admin/usage`` and ``/admin/audit``: what keys have used, and what they did."""

from __future__ import annotations

import functools
from datetime import date
from typing import Annotated, Literal

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from whisper_api.audit_records import AuditFilter, AuditPage
from whisper_api.records import seconds_of
from whisper_api.server.operations import MOMENT, Answer, Parameter, operation
from whisper_api.server.state import owner_of, service_of
from whisper_api.usage_records import Usage, usage_csv

SINCE = Parameter("since", date, "The first day, in UTC; the first of this month by default")
UNTIL = Parameter("until", date, "The last day; today by default")
FORMAT = Parameter("format", Literal["json", "csv"], "Respond in this format", "json")
KEY = Parameter("key", str, "Only the key with this id")


usage_call = functools.partial(
    operation, Answer(200, "The usage", {"application/json": Usage, "text/csv": str}), tag="Usage"
)


@usage_call(parameters=(SINCE, UNTIL, FORMAT))
def own(request: Request) -> Usage | Response:
    """Get what your key has used, by day and model, and what is left of its quotas.

    Days are in UTC; up to 366 of them may be asked for. Jobs that failed through no fault of their audio or options,
    and jobs that were canceled before they ran, are not counted. Usage stays when a job is deleted.
    """
    return _usage(request, owner_of(request))


@usage_call(parameters=(SINCE, UNTIL, FORMAT, KEY), roles=("admin", "operator"), scope="admin")
def all_keys(request: Request) -> Usage | Response:
    """Get what all keys have used, by day, key and model, as ``/usage`` gives it for one key."""
    return _usage(request, KEY.of(request))


def _usage(request: Request, owner: str | None) -> Usage | Response:
    usage: Usage = service_of(request).usage.report(owner, SINCE.of(request), UNTIL.of(request))
    return Response(usage_csv(usage.rows), media_type="text/csv") if FORMAT.of(request) == "csv" else usage


FROM_TIME = Parameter("since", MOMENT, "Only entries of this time or later (RFC 3339)")
BEFORE_TIME = Parameter("until", MOMENT, "Only entries before this time (RFC 3339)")
OF_KEY = Parameter("key", str, "Only entries of the key with this id or name")
ACTION = Parameter("action", str, "Only this action, as in job.read; or all of a kind, as in job")
LIMIT = Parameter("limit", Annotated[int, Meta(ge=1, le=1000)], "Entries on a page", 100)
AFTER = Parameter("after", str, "The cursor `next` of the page before")


@operation(
    "A page of entries",
    tag="Server",
    parameters=(FROM_TIME, BEFORE_TIME, OF_KEY, ACTION, LIMIT, AFTER),
    roles=("admin",),
    scope="admin",
    audit="audit.read",
)
def audit(request: Request) -> AuditPage:
    """Read the audit trail: who submitted, read, corrected and deleted what, from where, with which outcome.

    An entry has ids and names of keys, and no text of a client. The call is an entry too.
    """
    filter = AuditFilter(
        since=seconds_of(FROM_TIME.of(request)),
        until=seconds_of(BEFORE_TIME.of(request)),
        key=OF_KEY.of(request),
        action=ACTION.of(request),
    )
    page, cursor = service_of(request).audit.page(filter, limit=LIMIT.of(request), after=AFTER.of(request))
    return AuditPage(records=tuple(page), next=cursor)
