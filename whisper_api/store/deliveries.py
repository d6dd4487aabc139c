"""The table of webhook deliveries: an event of a job for each address that gets it.

The rows are written in the transaction that ends the job, so no end of a process loses an event or invents one.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from msgspec.structs import replace

from whisper_api.errors import DeliveryNotFound, InvalidOption
from whisper_api.job_values import JobState
from whisper_api.store.rows import Job
from whisper_api.store.tables import insert, is_revoked, marks, update, where
from whisper_api.store.texts import JobText, read, stored
from whisper_api.store.webhooks import Endpoint, WebhookTable, endpoint_of, endpoints_in, target_digest
from whisper_api.webhooks import TEST_EVENT, DeliveryState, WebhookEventType

EVENT_OF: dict[JobState, WebhookEventType] = {
    "Completed": "transcription.completed",
    "Failed": "transcription.failed",
    "Canceled": "transcription.canceled",
}


class Address(msgspec.Struct, frozen=True, omit_defaults=True):
    """The address that a job itself has for its event.

    Attributes:
        url: where the event is sent.
        include_result: whether the event carries the result.
    """

    url: str
    include_result: bool = False


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery, as the database keeps it.

    Attributes:
        seq: number of the delivery; rises.
        delivery_id: the header ``webhook-id``.
        owner: owner of the job.
        job_id: the job; None for a test. The job may be gone.
        endpoint_id: the endpoint; None for the job's own address.
        type: type of the event.
        created_at, next_attempt_at, last_attempt_at, ended_at: seconds since 1970.
        target: digest of the receiver's host and port.
        state: state of the delivery.
        attempts: all attempts so far.
        step: attempts since the event happened or was sent again.
        last_status, last_error: outcome of the last attempt.
        address: the job's own address; None for an endpoint, and once the texts of the job were deleted.
        endpoint: the endpoint as it is now; None for the job's own address.
    """

    seq: int
    delivery_id: str
    owner: str
    job_id: str | None
    endpoint_id: str | None
    type: str
    created_at: float
    target: str
    state: DeliveryState
    attempts: int
    step: int
    next_attempt_at: float | None
    last_attempt_at: float | None
    last_status: int | None
    last_error: str | None
    ended_at: float | None
    address: Address | None
    endpoint: Endpoint | None

    def __repr__(self) -> str:
        # The address must not get into a log.
        return f"{type(self).__name__}(delivery_id={self.delivery_id!r}, state={self.state!r})"

    @property
    def url(self) -> str | None:
        """Where it is sent; None once the job's own address was deleted."""
        if self.endpoint is not None:
            return self.endpoint.url
        return None if self.address is None else self.address.url

    @property
    def include_result(self) -> bool:
        """Whether it carries the result."""
        source = self.endpoint or self.address
        return source is not None and source.include_result


_COLUMNS = tuple(name for name in Delivery.__struct_fields__ if name not in ("address", "endpoint"))
_SELECT = f"""
    SELECT {", ".join(f"webhook_deliveries.{name}" for name in _COLUMNS)}, webhook_deliveries.content AS address,
        webhook_endpoints.content AS endpoint
    FROM webhook_deliveries LEFT JOIN webhook_endpoints USING (endpoint_id)
"""


class DeliveryFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which deliveries to find; a field that is None sets no condition.

    Attributes:
        state: state of the delivery.
        job_id: job of the event.
        endpoint_id: endpoint that gets the event.
    """

    state: DeliveryState | None = None
    job_id: str | None = None
    endpoint_id: str | None = None


class DeliveryTable(WebhookTable):
    """Deliveries.

    Attributes:
        on_deliveries: called after the transaction that has stored deliveries; None, and the ends of jobs store none.
    """

    on_deliveries: Callable[[], None] | None = None

    def announce(self, connection: sqlite3.Connection, job: Job, state: JobState, now: float) -> bool:
        """Store a delivery for each address that gets the event of a job's end, in the transaction that ends the job.

        Args:
            connection: a connection in a transaction.
            job: the job as it was before its end, with its texts.
            state: the end state.
            now: seconds since 1970.

        Returns:
            Whether a delivery was stored; call :meth:`announced` after the transaction then.
        """
        if self.on_deliveries is None:
            return False
        event = EVENT_OF[state]
        targets: list[Endpoint | Address] = [
            each for each in endpoints_in(connection, job.owner) if each.enabled and event in each.events
        ]
        if job.webhook_url is not None:
            targets.insert(0, Address(job.webhook_url, job.webhook_include_result))
        if not targets or is_revoked(connection, job.owner):
            return False
        for target in targets:
            _add(connection, job.owner, job.job_id, event, target, now)
        return True

    def announced(self) -> None:
        """Tell whoever sends deliveries that there are new ones."""
        if self.on_deliveries is not None:
            self.on_deliveries()

    def add_test(self, owner: str, endpoint_id: str, now: float) -> Delivery:
        """Store a test event for an endpoint.

        Args:
            owner: owner of the endpoint.
            endpoint_id: id of the endpoint.
            now: seconds since 1970.

        Raises:
            InvalidOption: the endpoint is disabled.
        """
        with self.database.write() as connection:
            endpoint = self._endpoint_in(connection, owner, endpoint_id)
            _check_enabled(endpoint)
            delivery = _find(connection, owner, _add(connection, owner, None, TEST_EVENT, endpoint, now))
        self.announced()
        return delivery

    def delivery(self, owner: str | None, delivery_id: str) -> Delivery:
        """A delivery of an owner, or of any owner for None. Raises DeliveryNotFound when there is none."""
        with self.database.read() as connection:
            return _find(connection, owner, delivery_id)

    def deliveries(
        self, owner: str | None, filter: DeliveryFilter, *, limit: int, before_seq: int | None = None
    ) -> list[Delivery]:
        """Deliveries, the newest first.

        Args:
            owner: owner of the deliveries; None for the deliveries of all owners.
            filter: further conditions.
            limit: most deliveries to return.
            before_seq: only deliveries before the one with this number; None to begin with the newest.
        """
        possible = {
            "webhook_deliveries.owner = ?": owner,
            "state = ?": filter.state,
            "job_id = ?": filter.job_id,
            "endpoint_id = ?": filter.endpoint_id,
            "webhook_deliveries.seq < ?": before_seq,
        }
        found, values = where(possible)
        query = f"{_SELECT} {found} ORDER BY webhook_deliveries.seq DESC LIMIT ?"
        return [_delivery(row) for row in self._rows(query, *values, limit)]

    def send_again(self, owner: str | None, delivery_id: str, now: float) -> Delivery:
        """Begin a delivery again, in any state.

        Args:
            owner: owner whose deliveries the caller may see; None for all.
            delivery_id: id of the delivery.
            now: seconds since 1970.

        Raises:
            DeliveryNotFound: there is no such delivery.
            InvalidOption: its address was deleted, or its endpoint is disabled.
        """
        with self.database.write() as connection:
            found = _find(connection, owner, delivery_id)
            if found.url is None:
                raise InvalidOption("delivery_id", "the address of this delivery was deleted with the texts of its job")
            if found.endpoint is not None:
                _check_enabled(found.endpoint)
            again: dict[str, Any] = {"state": "Pending", "step": 0, "next_attempt_at": now, "ended_at": None}
            update(connection, "webhook_deliveries", again, "seq", found.seq)
        self.announced()
        return replace(found, **again)

    def due_deliveries(
        self, now: float, *, limit: int, seqs: Collection[int], targets: Collection[str], owners: Collection[str]
    ) -> list[Delivery]:
        """Pending deliveries whose next attempt is due, the longest due first.

        Args:
            now: seconds since 1970.
            limit: most deliveries to return.
            seqs: numbers of deliveries to leave out.
            targets: receivers to leave out.
            owners: owners to leave out.
        """
        possible: dict[str, object] = {"state = 'Pending'": (), "next_attempt_at <= ?": now}
        for column, left_out in (("seq", seqs), ("target", targets), ("owner", owners)):
            possible[f"webhook_deliveries.{column} NOT IN ({marks(left_out)})"] = tuple(left_out) or None
        found, values = where(possible)
        query = f"{_SELECT} {found} ORDER BY next_attempt_at, webhook_deliveries.seq LIMIT ?"
        return [_delivery(row) for row in self._rows(query, *values, limit)]

    def next_due(self, after: float) -> float | None:
        """The time of the first attempt after a time; None when there is none."""
        query = "SELECT MIN(next_attempt_at) FROM webhook_deliveries WHERE state = 'Pending' AND next_attempt_at > ?"
        due: float | None = self._rows(query, after)[0][0]
        return due

    def pending_deliveries(self) -> int:
        """The number of pending deliveries."""
        return int(self._rows("SELECT COUNT(*) FROM webhook_deliveries WHERE state = 'Pending'")[0][0])

    def note_attempt(
        self, delivery: Delivery, now: float, *, status: int | None, error: str | None, next_at: float | None
    ) -> None:
        """Store the outcome of an attempt. It may be lost with the power, and the attempt is then made again.

        Args:
            delivery: the delivery as it was before the attempt.
            now: seconds since 1970.
            status: HTTP status of the response; None without one.
            error: why the attempt failed; None when it has succeeded.
            next_at: time of the next attempt; None when there is none.
        """
        state: DeliveryState = "Delivered" if error is None else "Failed" if next_at is None else "Pending"
        ended_at = None if state == "Pending" else now
        with self.database.write(synced=False) as connection:
            connection.execute(
                "UPDATE webhook_deliveries SET state = ?, attempts = attempts + 1, step = ?, next_attempt_at = ?,"
                " last_attempt_at = ?, last_status = ?, last_error = ?, ended_at = ?"
                " WHERE seq = ? AND state = 'Pending'",
                (state, delivery.step + 1, next_at, now, status, error, ended_at, delivery.seq),
            )
            if ended_at is not None and delivery.address is not None:
                row = connection.execute(
                    "SELECT content FROM job_texts JOIN jobs USING (seq) WHERE job_id = ?", (delivery.job_id,)
                ).fetchone()
                if row is None or read(row["content"], JobText, f"Job {delivery.job_id}").webhook_url is None:
                    forget_address(connection, delivery.job_id or "")

    def postpone(self, delivery: Delivery, until: float) -> None:
        """Put off the other deliveries of an owner to a receiver that has asked for time.

        Args:
            delivery: the delivery whose response has asked for it.
            until: no attempt comes before this time; seconds since 1970.
        """
        self._change(
            "UPDATE webhook_deliveries SET next_attempt_at = ? WHERE state = 'Pending' AND next_attempt_at < ?"
            " AND owner = ? AND target = ?",
            *(until, until, delivery.owner, delivery.target),
        )

    def delete_deliveries(self, before: float) -> int:
        """Delete the deliveries that ended before a time, and return their number."""
        if not self._rows("SELECT 1 FROM webhook_deliveries WHERE ended_at < ? LIMIT 1", before):
            return 0
        with self.database.write() as connection:
            return connection.execute("DELETE FROM webhook_deliveries WHERE ended_at < ?", (before,)).rowcount


def forget_address(connection: sqlite3.Connection, job_id: str) -> None:
    """Delete a job's own address from its deliveries that have ended; a pending one forgets it at its end.

    Args:
        connection: a connection in the transaction that deletes the texts of the job.
        job_id: id of the job.
    """
    connection.execute(
        "UPDATE webhook_deliveries SET content = NULL WHERE job_id = ? AND ended_at IS NOT NULL", (job_id,)
    )


def _add(
    connection: sqlite3.Connection, owner: str, job_id: str | None, event: str, to: Endpoint | Address, now: float
) -> str:
    """Store a delivery to an endpoint, or to a job's own address, and return its id."""
    delivery_id = f"msg_{uuid.uuid4().hex}"
    row: dict[str, object] = {
        "delivery_id": delivery_id,
        "owner": owner,
        "job_id": job_id,
        "type": event,
        "created_at": now,
    }
    row |= {"target": target_digest(to.url), "state": "Pending", "attempts": 0, "step": 0, "next_attempt_at": now}
    row |= {"endpoint_id": to.endpoint_id} if isinstance(to, Endpoint) else {"content": stored(to)}
    insert(connection, "webhook_deliveries", row)
    return delivery_id


def _find(connection: sqlite3.Connection, owner: str | None, delivery_id: str) -> Delivery:
    row = connection.execute(f"{_SELECT} WHERE delivery_id = ?", (delivery_id,)).fetchone()
    if row is None or (owner is not None and row["owner"] != owner):
        raise DeliveryNotFound(f"Webhook delivery not found: {delivery_id[:64]}")
    return _delivery(row)


def _delivery(row: Any) -> Delivery:
    values = {name: row[name] for name in _COLUMNS}
    content, endpoint = row["address"], row["endpoint"]
    address = None if content is None else read(content, Address, f"Webhook delivery {row['delivery_id']}")
    return Delivery(**values, address=address, endpoint=None if endpoint is None else endpoint_of(endpoint))


def _check_enabled(endpoint: Endpoint) -> None:
    if not endpoint.enabled:
        raise InvalidOption("enabled", "the endpoint is disabled: enable it first")
