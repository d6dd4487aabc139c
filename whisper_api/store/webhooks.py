"""The tables of webhook endpoints and of the keys' own secrets.

Addresses are texts of clients, and secrets must be readable to sign with them: both are stored and deleted as texts are
(``texts.py``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from whisper_api.errors import WebhookNotFound
from whisper_api.store.tables import Tables, insert, is_revoked, update
from whisper_api.store.texts import digest, read, stored
from whisper_api.webhooks import WebhookEventType


class SecretPair(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A secret, and the one before it, which signs too while receivers change to the new one.

    Attributes:
        secret: the secret.
        previous: the secret before; None when there was none.
        previous_until: until when it signs; seconds since 1970.
    """

    secret: str
    previous: str | None = None
    previous_until: float = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def valid(self, now: float) -> tuple[str, ...]:
        """The secrets that sign at a time, the new one first."""
        if self.previous is None or now >= self.previous_until:
            return (self.secret,)
        return (self.secret, self.previous)

    def rotated(self, secret: str, previous_until: float) -> SecretPair:
        """The pair with a new secret, and this one's secret as the previous one.

        Args:
            secret: the new secret.
            previous_until: until when the present secret signs, too.
        """
        return SecretPair(secret=secret, previous=self.secret, previous_until=previous_until)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint, as the database keeps it.

    Attributes:
        endpoint_id: a UUID.
        owner: id of the key whose jobs' events it gets; empty without authorization.
        url: where deliveries are sent.
        events: types of the events that are sent.
        include_result: whether the event of a Completed job carries the result.
        description: a note for people.
        secrets: what signs the deliveries.
        enabled: whether events are sent.
        disabled_reason: why the server has disabled it.
        created_at, updated_at: seconds since 1970, UTC.
    """

    endpoint_id: str
    owner: str
    url: str
    events: tuple[WebhookEventType, ...]
    include_result: bool = False
    description: str = ""
    secrets: SecretPair
    enabled: bool = True
    disabled_reason: str | None = None
    created_at: float
    updated_at: float

    def __repr__(self) -> str:
        # The address and the secrets must not get into a log.
        return f"{type(self).__name__}(endpoint_id={self.endpoint_id!r}, owner={self.owner!r})"


class WebhookTable(Tables):
    """Endpoints and secrets. A method with an ``endpoint_id`` raises WebhookNotFound when the owner has no such one."""

    def add_endpoint(self, endpoint: Endpoint, *, most: int) -> bool:
        """Add an endpoint.

        Args:
            endpoint: not in the store yet.
            most: endpoints that an owner may have.

        Returns:
            False, and nothing is stored, when the owner has as many.

        Raises:
            WebhookNotFound: the owner's key was revoked.
        """
        with self.database.write() as connection:
            (count,) = connection.execute(
                "SELECT COUNT(*) FROM webhook_endpoints WHERE owner = ?", (endpoint.owner,)
            ).fetchone()
            if count >= most:
                return False
            if is_revoked(connection, endpoint.owner):
                raise _not_found(endpoint.endpoint_id)
            row = {"endpoint_id": endpoint.endpoint_id, "owner": endpoint.owner, "content": stored(endpoint)}
            insert(connection, "webhook_endpoints", row)
        return True

    def endpoints(self, owner: str) -> list[Endpoint]:
        """The endpoints of an owner, the oldest first."""
        with self.database.read() as connection:
            return endpoints_in(connection, owner)

    def endpoint(self, owner: str, endpoint_id: str) -> Endpoint:
        """An endpoint of an owner."""
        with self.database.read() as connection:
            return self._endpoint_in(connection, owner, endpoint_id)

    def change_endpoint(self, owner: str, endpoint_id: str, change: Callable[[Endpoint], Endpoint]) -> Endpoint:
        """Replace an endpoint. When it is disabled, its pending deliveries are given up.

        Args:
            owner: owner of the endpoint.
            endpoint_id: id of the endpoint.
            change: makes the new endpoint from the stored one.
        """
        with self.database.write() as connection:
            before = self._endpoint_in(connection, owner, endpoint_id)
            after = change(before)
            update(connection, "webhook_endpoints", {"content": stored(after)}, "endpoint_id", endpoint_id)
            if after.url != before.url:
                target = {"target": target_digest(after.url)}
                update(connection, "webhook_deliveries", target, "endpoint_id", endpoint_id)
            if not after.enabled:
                connection.execute(
                    "UPDATE webhook_deliveries SET state = 'Failed', next_attempt_at = NULL, ended_at = ?,"
                    " last_error = 'the endpoint is disabled' WHERE endpoint_id = ? AND state = 'Pending'",
                    (after.updated_at, endpoint_id),
                )
        return after

    def delete_endpoint(self, owner: str, endpoint_id: str) -> None:
        """Delete an endpoint with its deliveries."""
        if not self._change("DELETE FROM webhook_endpoints WHERE owner = ? AND endpoint_id = ?", owner, endpoint_id):
            raise _not_found(endpoint_id)

    def signing_secrets(self, owner: str, change: Callable[[SecretPair | None], SecretPair]) -> SecretPair:
        """The owner's own secrets, which sign deliveries without an endpoint.

        Args:
            owner: id of the key; empty without authorization.
            change: gets the stored pair, or None when there is none, and returns the pair to store.

        Raises:
            WebhookNotFound: the owner's key was revoked.
        """
        with self.database.read() as connection:
            known = _secrets_in(connection, owner)
        if known is not None and change(known) == known:
            return known
        with self.database.write() as connection:
            if is_revoked(connection, owner):
                raise WebhookNotFound("The key was revoked, and its webhooks were deleted")
            pair = change(_secrets_in(connection, owner))
            insert(connection, "webhook_secrets", {"owner": owner, "content": stored(pair)}, replacing=True)
        return pair

    def _endpoint_in(self, connection: sqlite3.Connection, owner: str, endpoint_id: str) -> Endpoint:
        query = "SELECT content FROM webhook_endpoints WHERE owner = ? AND endpoint_id = ?"
        row = connection.execute(query, (owner, endpoint_id)).fetchone()
        if row is None:
            raise _not_found(endpoint_id)
        return endpoint_of(row["content"])


def endpoints_in(connection: sqlite3.Connection, owner: str) -> list[Endpoint]:
    """The endpoints of an owner, the oldest first."""
    rows = connection.execute("SELECT content FROM webhook_endpoints WHERE owner = ? ORDER BY seq", (owner,))
    return [endpoint_of(row["content"]) for row in rows.fetchall()]


def endpoint_of(content: bytes) -> Endpoint:
    """The endpoint of a row.

    Raises:
        StorageError: its content cannot be read.
    """
    return read(content, Endpoint, "A webhook endpoint")


def target_digest(url: str) -> str:
    """The digest of a URL's host and port, by which attempts at one receiver are counted."""
    return digest(urlsplit(url).netloc.lower())


def forget_webhooks(connection: sqlite3.Connection, owner: str) -> None:
    """Delete the endpoints, secrets and deliveries of a key that is revoked, in the same transaction.

    Args:
        connection: a connection in a transaction.
        owner: id of the key.
    """
    for table in ("webhook_deliveries", "webhook_endpoints", "webhook_secrets"):
        connection.execute(f"DELETE FROM {table} WHERE owner = ?", (owner,))


def _secrets_in(connection: sqlite3.Connection, owner: str) -> SecretPair | None:
    row = connection.execute("SELECT content FROM webhook_secrets WHERE owner = ?", (owner,)).fetchone()
    return None if row is None else read(row["content"], SecretPair, "A webhook secret")


def _not_found(endpoint_id: str) -> WebhookNotFound:
    return WebhookNotFound(f"Webhook endpoint not found: {endpoint_id[:64]}")
