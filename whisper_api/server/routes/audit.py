"""``/admin/audit``: the audit trail, for administrators."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from starlette.requests import Request

from whisper_api.audit_records import AuditFilter, AuditPage
from whisper_api.server.operations import Parameter, operation
from whisper_api.server.query import MOMENT, seconds_of
from whisper_api.server.state import service_of

SINCE = Parameter("since", MOMENT, "Only entries of this time or later (RFC 3339)")
UNTIL = Parameter("until", MOMENT, "Only entries before this time (RFC 3339)")
KEY = Parameter("key", str, "Only entries of the key with this id or name")
ACTION = Parameter("action", str, "Only this action, as in job.read; or all of a kind, as in job")
LIMIT = Parameter("limit", Annotated[int, Meta(ge=1, le=1000)], "Entries on a page", 100)
AFTER = Parameter("after", str, "The cursor `next` of the page before")


@operation(
    "A page of entries",
    tag="Server",
    parameters=(SINCE, UNTIL, KEY, ACTION, LIMIT, AFTER),
    roles=("admin",),
    scope="admin",
    audit="audit.read",
)
def audit(request: Request) -> AuditPage:
    """Read the audit trail: who submitted, read, corrected and deleted what, from where, with which outcome.

    An entry has ids and names of keys, and no text of a client. The call is an entry too.
    """
    filter = AuditFilter(
        since=seconds_of(SINCE.of(request)),
        until=seconds_of(UNTIL.of(request)),
        key=KEY.of(request),
        action=ACTION.of(request),
    )
    page, cursor = service_of(request).audit.page(filter, limit=LIMIT.of(request), after=AFTER.of(request))
    return AuditPage(records=tuple(page), next=cursor)
