"""The methods of the asynchronous client that report what keys have used and done: usage and the audit trail."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import date, datetime
from typing import Any

from whisper_api.audit_records import AuditRecord
from whisper_api.client.async_transport import AsyncMethods
from whisper_api.client.fields import texts
from whisper_api.client.reports import AuditPage, audit_search
from whisper_api.usage_records import Usage

__all__ = ["AsyncReportMethods"]


class AsyncReportMethods(AsyncMethods):
    """The methods of :class:`~whisper_api.AsyncClient` for usage and the audit trail."""

    async def server_status(self) -> dict[str, Any]:
        """The settings and the state of the server, as ``GET /status`` returns them.

        Raises:
            WhisperApiError: as in :meth:`Client.server_status <whisper_api.Client.server_status>`.
        """
        return await self._transport.run(self._calls.value("GET", "/status", dict[str, Any]))

    async def usage(self, since: date | None = None, until: date | None = None) -> Usage:
        """What the caller's key has used.

        Args:
            since: as in :meth:`Client.usage <whisper_api.Client.usage>`.
            until: as in :meth:`Client.usage <whisper_api.Client.usage>`.

        Raises:
            WhisperApiError: as in :meth:`Client.usage <whisper_api.Client.usage>`.
        """
        params = texts({"since": since, "until": until})
        return await self._transport.run(self._calls.value("GET", "/usage", Usage, params=params))

    async def all_usage(
        self, since: date | None = None, until: date | None = None, *, key_id: str | None = None
    ) -> Usage:
        """What all keys have used; only for administrators.

        Args:
            since: as in :meth:`Client.all_usage <whisper_api.Client.all_usage>`.
            until: as in :meth:`Client.all_usage <whisper_api.Client.all_usage>`.
            key_id: as in :meth:`Client.all_usage <whisper_api.Client.all_usage>`.

        Raises:
            WhisperApiError: as in :meth:`Client.all_usage <whisper_api.Client.all_usage>`.
        """
        params = texts({"since": since, "until": until, "key": key_id})
        return await self._transport.run(self._calls.value("GET", "/admin/usage", Usage, params=params))

    async def audit(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        key: str | None = None,
        action: str | None = None,
    ) -> AsyncGenerator[AuditRecord, None]:
        """The server's audit trail, newest first. Only for administrators.

        Args:
            since: as in :meth:`Client.audit <whisper_api.Client.audit>`.
            until: as in :meth:`Client.audit <whisper_api.Client.audit>`.
            key: as in :meth:`Client.audit <whisper_api.Client.audit>`.
            action: as in :meth:`Client.audit <whisper_api.Client.audit>`.

        Raises:
            RequestError: as in :meth:`Client.audit <whisper_api.Client.audit>`.
        """
        params = audit_search(since, until, key, action)
        async for page in self._pages("/admin/audit", AuditPage, params):
            for record in page.records:
                yield record
