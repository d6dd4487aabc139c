"""The entries of the audit trail: who did what, when, from where, and with which outcome."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

import msgspec

from whisper_api.records import Row

Action = Literal[
    "job.submit",
    "job.read",
    "job.correct",
    "job.cancel",
    "job.delete",
    "speaker.create",
    "speaker.read",
    "speaker.change",
    "speaker.delete",
    "vocabulary.write",
    "vocabulary.read",
    "vocabulary.delete",
    "webhook.create",
    "webhook.read",
    "webhook.change",
    "webhook.rotate",
    "webhook.send",
    "webhook.delete",
    "key.create",
    "key.change",
    "key.rotate",
    "key.revoke",
    "authentication.fail",
    "audit.read",
    "audit.lose",
    "backup.create",
    "backup.restore",
]
"""An audited action: the kind of the object, a dot, and the operation on it."""

Actor = Literal["key", "anyone", "command line", "server"]

ACTIONS: tuple[Action, ...] = get_args(Action)
DURABLE = frozenset(
    action for action in ACTIONS if action.startswith("key.") or action.endswith((".delete", ".cancel"))
)
"""The actions whose entry is on the disk before the client has the answer."""


class AuditRecord(Row, frozen=True, kw_only=True):
    """An entry of the audit trail. It has no text of a client: no transcript, prompt, file name, metadata or secret.

    Attributes:
        seq: number of the entry; rises.
        time: when it happened.
        action: what was done, as ``kind.verb``; see :data:`Action`.
        actor: ``key`` for a caller with a key, ``anyone`` for one without, ``command line`` for a command on the
            server's machine, ``server`` for the server itself.
        key_id: id of the caller's key.
        name: name of the key at that time; for the command line, the user of the system.
        role: role of the key at that time.
        target: id of the job, speaker, key, webhook endpoint or delivery; of a vocabulary a digest of its name.
        address: address of the client; behind trusted proxies, the one that they forward.
        request_id: id of the request, as in the server's log; the client may have chosen it.
        status: the HTTP status of the answer; 499 when the client went away before it.
        error: the error as one word, as in the answer's ``code``; None when there was none.
        count: how many equal events the entry stands for.
    """

    seq: int = 0
    time: datetime
    action: str
    actor: Actor
    key_id: str | None = None
    name: str | None = None
    role: str | None = None
    target: str | None = None
    address: str | None = None
    request_id: str | None = None
    status: int | None = None
    error: str | None = None
    count: int = 1


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the audit trail.

    Attributes:
        records: the entries, newest first.
        next: the cursor ``after`` for the next page; None on the last page.
    """

    records: tuple[AuditRecord, ...]
    next: str | None


class AuditFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries to find; a field that is None sets no condition.

    Attributes:
        since: not before this time; seconds since 1970.
        until: before this time; seconds since 1970.
        key: id or name of the key.
        action: the action; or its part before the dot, for all actions of a kind.
    """

    since: float | None = None
    until: float | None = None
    key: str | None = None
    action: str | None = None


ALL_RECORDS = AuditFilter()
