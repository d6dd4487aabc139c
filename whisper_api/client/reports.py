"""The methods of the blocking client that report what keys have used and done: usage and the audit trail."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from whisper_api.audit_records import AuditRecord
from whisper_api.client.calls import Page
from whisper_api.client.fields import texts
from whisper_api.client.transport import Methods
from whisper_api.usage_records import Usage

__all__ = ["AuditPage", "ReportMethods", "audit_search"]

# Entries of the audit trail that one request asks for.
AUDIT_PAGE = 1000


class AuditPage(Page):
    """A page of the audit trail."""

    records: tuple[AuditRecord, ...]


class ReportMethods(Methods):
    """The methods of :class:`~whisper_api.Client` for usage and the audit trail."""

    def server_status(self) -> dict[str, Any]:
        """The settings and the state of the server, as ``GET /status`` returns them.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return self._transport.run(self._calls.value("GET", "/status", dict[str, Any]))

    def usage(self, since: date | None = None, until: date | None = None) -> Usage:
        """What the caller's key has used, by day and model, and what is left of its quotas.

        Args:
            since: the first day in UTC, at most 365 days before the last; None for the first of this month.
            until: the last day; None for today.

        Raises:
            InvalidOption: the days are in the wrong order or too far apart.
            RequestError: the server refused, or cannot be reached.
        """
        params = texts({"since": since, "until": until})
        return self._transport.run(self._calls.value("GET", "/usage", Usage, params=params))

    def all_usage(self, since: date | None = None, until: date | None = None, *, key_id: str | None = None) -> Usage:
        """What all keys have used; only for administrators.

        Args:
            since: as with :meth:`usage`.
            until: as with :meth:`usage`.
            key_id: id of the only key that counts; None for all keys.

        Raises:
            InvalidOption, RequestError: as with :meth:`usage`.
        """
        params = texts({"since": since, "until": until, "key": key_id})
        return self._transport.run(self._calls.value("GET", "/admin/usage", Usage, params=params))

    def audit(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        key: str | None = None,
        action: str | None = None,
    ) -> Iterator[AuditRecord]:
        """The server's audit trail, newest first: who did what. Only for administrators.

        Args:
            since: only entries of this time or later; local time when it has no zone.
            until: only earlier entries.
            key: only entries of the key with this id or name.
            action: only this action, as in ``job.read``; or all of a kind, as in ``job``.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        params = audit_search(since, until, key, action)
        for page in self._pages("/admin/audit", AuditPage, params):
            yield from page.records


def audit_search(since: datetime | None, until: datetime | None, key: str | None, action: str | None) -> dict[str, str]:
    """The query of a search in the audit trail.

    Args:
        since: only entries of this time or later.
        until: only earlier entries.
        key: only entries of the key with this id or name.
        action: only entries of this action or kind of action.
    """
    return texts({"since": since, "until": until, "key": key, "action": action, "limit": AUDIT_PAGE})
