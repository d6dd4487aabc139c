"""The table of keys."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from whisper_api.store.database import Database
from whisper_api.store.rows import KEY_COLUMNS, Key, OldSecret, key_of, key_values, old_secrets_of
from whisper_api.store.tables import Tables, insert, update
from whisper_api.store.webhooks import forget_webhooks

_SELECT_KEY = f"SELECT {', '.join(KEY_COLUMNS)}, digest, old_secrets FROM keys"
# A rotation keeps this many secrets from before it; of more, those that were replaced first end at once.
MOST_OLD_SECRETS = 8
# Keys in memory.
MOST_READ_KEYS = 10_000


class KeySecrets(NamedTuple):
    """A key and the hashes of its secrets.

    Attributes:
        key: the key.
        digest: hash of the current secret.
        old: the secrets that rotations have replaced, also those that are no longer valid.
    """

    key: Key
    digest: bytes
    old: tuple[OldSecret, ...]


class NewSecret(NamedTuple):
    """A secret that replaces that of a key.

    Attributes:
        digest: hash of the new secret.
        old_until: when the earlier secrets end at the latest; seconds since 1970.
    """

    digest: bytes
    old_until: float


class KeyTable(Tables):
    """Keys, and the hashes of their secrets. A key is read again when anything in the database has changed."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._keys_lock = threading.Lock()
        # Guarded by _keys_lock; key id to the number of the database's changes before the key was read, and the key:
        self._keys_read: dict[str, tuple[int, KeySecrets]] = {}

    def add_key(self, key: Key, digest: bytes) -> bool:
        """Add a key.

        Args:
            key: without its secret.
            digest: hash of its secret.

        Returns:
            False when another valid key has the same name, or any key the same id.
        """
        with self.database.write() as connection:
            _expire(connection, time.time())
            existing = connection.execute(
                "SELECT 1 FROM keys WHERE key_id = ? OR (name = ? AND revoked_at IS NULL)", (key.key_id, key.name)
            ).fetchone()
            if existing is None:
                insert(connection, "keys", {**key_values(key), "digest": digest})
        return existing is None

    def keys(self) -> list[Key]:
        """All keys, including revoked ones, the oldest first."""
        return [key_of(row) for row in self._rows(f"{_SELECT_KEY} ORDER BY created_at, rowid")]

    def key(self, key_id: str) -> tuple[Key, bytes] | None:
        """A key and the hash of its current secret."""
        found = self.key_secrets(key_id)
        return None if found is None else (found.key, found.digest)

    def key_secrets(self, key_id: str) -> KeySecrets | None:
        """A key and the hashes of all its secrets."""
        # Before the reading, so that a change between the two counts as a change after the reading.
        changes = self.database.changes()
        known = self._known_key(key_id, changes)
        if known is not None:
            return known
        rows = self._rows(f"{_SELECT_KEY} WHERE key_id = ?", key_id)
        if not rows:
            return None
        found = KeySecrets(key_of(rows[0]), bytes(rows[0]["digest"]), old_secrets_of(rows[0]))
        with self._keys_lock:
            if len(self._keys_read) >= MOST_READ_KEYS:
                self._keys_read.clear()
            self._keys_read[key_id] = changes, found
        return found

    def known_key(self, key_id: str) -> KeySecrets | None:
        """As :meth:`key_secrets`, but without a read of the disk: None when the key must be read again."""
        with self._keys_lock:
            if key_id not in self._keys_read:
                return None
        return self._known_key(key_id, self.database.changes())

    def _known_key(self, key_id: str, changes: int) -> KeySecrets | None:
        with self._keys_lock:
            before, found = self._keys_read.get(key_id, (None, None))
        return found if before == changes else None

    def change_key(
        self, key_id: str, change: Callable[[Key, Sequence[Key]], Key], secret: NewSecret | None = None
    ) -> Key | None:
        """Change a valid key, and its secret. A key that the change revokes loses its known speakers and webhooks.

        Args:
            key_id: id of the key.
            change: makes the changed key from the key and all valid keys, in the transaction of the change; an error
                that it raises leaves everything as it was.
            secret: the new secret; None keeps the secrets.

        Returns:
            The changed key; None when no valid key has this id.
        """
        with self.database.write() as connection:
            _expire(connection, time.time())
            rows = connection.execute(f"{_SELECT_KEY} WHERE revoked_at IS NULL ORDER BY created_at, rowid").fetchall()
            row = next((row for row in rows if row["key_id"] == key_id), None)
            if row is None:
                return None
            changed = change(key_of(row), [key_of(each) for each in rows])
            values: dict[str, object] = key_values(changed)
            if secret is not None:
                until = secret.old_until
                old = [OldSecret(each.digest, min(each.valid_until, until)) for each in old_secrets_of(row)]
                old = [*old, OldSecret(bytes(row["digest"]), until)][-MOST_OLD_SECRETS:]
                values |= {"digest": secret.digest, "old_secrets": msgspec.json.encode(old).decode()}
            update(connection, "keys", values, "key_id", key_id)
            if changed.revoked_at is not None:
                _delete_belongings(connection, key_id)
        found = self.key(key_id)
        return None if found is None else found[0]

    def expire_keys(self, now: float) -> None:
        """Revoke the keys that have expired, at the moment of their expiry. Writes only if there are any.

        So all that follows from a revocation follows from an expiry too.

        Args:
            now: seconds since 1970.
        """
        if self._rows("SELECT 1 FROM keys WHERE revoked_at IS NULL AND expires_at <= ? LIMIT 1", now):
            with self.database.write() as connection:
                _expire(connection, now)

    def note_uses(self, uses: Mapping[str, float]) -> None:
        """Note when keys were last used. A loss of power may undo it.

        Args:
            uses: id of a key to seconds since 1970.
        """
        with self.database.write(synced=False) as connection:
            connection.executemany(
                "UPDATE keys SET last_used_at = MAX(?, COALESCE(last_used_at, 0)) WHERE key_id = ?",
                [(at, key_id) for key_id, at in uses.items()],
            )

    def jobs_of_revoked_keys(self) -> list[tuple[str, bool]]:
        """The jobs that have not ended and whose key was revoked, in the order of the queue.

        Returns:
            Id of each job, and whether its key has expired.
        """
        rows = self._rows(
            "SELECT job_id, expires_at IS NOT NULL AND revoked_at >= expires_at AS expired FROM jobs"
            " JOIN keys ON key_id = owner WHERE finished_at IS NULL AND revoked_at IS NOT NULL ORDER BY place"
        )
        return [(row["job_id"], bool(row["expired"])) for row in rows]


def _expire(connection: sqlite3.Connection, now: float) -> None:
    """Revoke the keys that have expired."""
    expired = connection.execute("SELECT key_id FROM keys WHERE revoked_at IS NULL AND expires_at <= ?", (now,))
    for (key_id,) in expired.fetchall():
        connection.execute("UPDATE keys SET revoked_at = expires_at WHERE key_id = ?", (key_id,))
        _delete_belongings(connection, key_id)


def _delete_belongings(connection: sqlite3.Connection, key_id: str) -> None:
    """Delete what belongs to a key that has ended, and no other key may use: its known speakers and its webhooks."""
    connection.execute("DELETE FROM speakers WHERE owner = ?", (key_id,))
    forget_webhooks(connection, key_id)
