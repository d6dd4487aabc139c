"""The methods of the clients that report what keys have used and done: usage and the audit trail."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from whisper_api.audit_records import AuditPage, AuditRecord
from whisper_api.client.calls import Methods, Pages, Steps, api_call, api_list
from whisper_api.client.fields import texts
from whisper_api.usage_records import Usage

# Entries of the audit trail that one request asks for.
AUDIT_PAGE = 1000


class ReportMethods(Methods):
    """The methods of the clients for usage and the audit trail."""

    @api_call
    def server_status(self) -> Steps[dict[str, Any]]:
        """The settings and the state of the server, as ``GET /status`` returns them.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return self._calls.value("GET", "/status", dict[str, Any])

    @api_call
    def usage(self, since: date | None = None, until: date | None = None) -> Steps[Usage]:
        """What the caller's key has used, by day and model, and what is left of its quotas.

        Args:
            since: the first day in UTC, at most 365 days before the last; None for the first of this month.
            until: the last day; None for today.

        Raises:
            InvalidOption: the days are in the wrong order or too far apart.
            RequestError: the server refused, or cannot be reached.
        """
        params = texts({"since": since, "until": until})
        return self._calls.value("GET", "/usage", Usage, params=params)

    @api_call
    def all_usage(
        self, since: date | None = None, until: date | None = None, *, key_id: str | None = None
    ) -> Steps[Usage]:
        """What all keys have used; only for administrators.

        Args:
            since: as with :meth:`usage`.
            until: as with :meth:`usage`.
            key_id: id of the only key that counts; None for all keys.

        Raises:
            InvalidOption, RequestError: as with :meth:`usage`.
        """
        params = texts({"since": since, "until": until, "key": key_id})
        return self._calls.value("GET", "/admin/usage", Usage, params=params)

    @api_list
    def audit(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        key: str | None = None,
        action: str | None = None,
    ) -> Pages[AuditRecord]:
        """The server's audit trail, newest first: who did what. Only for administrators.

        Args:
            since: only entries of this time or later; local time when it has no zone.
            until: only earlier entries.
            key: only entries of the key with this id or name.
            action: only this action, as in ``job.read``; or all of a kind, as in ``job``.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        params = texts({"since": since, "until": until, "key": key, "action": action, "limit": AUDIT_PAGE})
        return self._calls.pages("/admin/audit", AuditPage, params, lambda page: page.records)
