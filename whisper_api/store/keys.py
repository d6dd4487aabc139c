"""The table of keys."""

from __future__ import annotations

from whisper_api.store.rows import KEY_COLUMNS, Key, key_of
from whisper_api.store.tables import Tables
from whisper_api.store.webhooks import forget_webhooks

__all__ = ["KeyTable"]

_SELECT_KEY = f"SELECT {', '.join(KEY_COLUMNS)}, digest FROM keys"


class KeyTable(Tables):
    """Keys, and the hashes of their secrets."""

    def add_key(self, key: Key, digest: bytes) -> bool:
        """Add a key.

        Args:
            key: without its secret.
            digest: hash of its secret.

        Returns:
            False when another valid key has the same name, or any key the same id.
        """
        with self.database.write() as connection:
            existing = connection.execute(
                "SELECT 1 FROM keys WHERE key_id = ? OR (name = ? AND revoked_at IS NULL)", (key.key_id, key.name)
            ).fetchone()
            if existing is None:
                connection.execute(
                    "INSERT INTO keys (key_id, name, role, created_at, revoked_at, digest) VALUES (?, ?, ?, ?, ?, ?)",
                    (*(getattr(key, name) for name in KEY_COLUMNS), digest),
                )
        return existing is None

    def keys(self) -> list[Key]:
        """All keys, including revoked ones, the oldest first."""
        return [key_of(row) for row in self._rows(f"{_SELECT_KEY} ORDER BY created_at, rowid")]

    def key(self, key_id: str) -> tuple[Key, bytes] | None:
        """A key and the hash of its secret."""
        rows = self._rows(f"{_SELECT_KEY} WHERE key_id = ?", key_id)
        return (key_of(rows[0]), bytes(rows[0]["digest"])) if rows else None

    def jobs_of_revoked_keys(self) -> list[str]:
        """Ids of the jobs that have not ended and whose key was revoked, in the order of the queue."""
        return self._column(
            "SELECT job_id FROM jobs JOIN keys ON key_id = owner"
            " WHERE finished_at IS NULL AND revoked_at IS NOT NULL ORDER BY place"
        )

    def revoke_key(self, key_id: str, now: float) -> bool:
        """Revoke a key, and delete its known speakers, whose voices no other key may use, and its webhooks.

        Args:
            key_id: id of the key.
            now: seconds since 1970.

        Returns:
            False when there is no such key, or it was revoked before.
        """
        revoke = "UPDATE keys SET revoked_at = ? WHERE key_id = ? AND revoked_at IS NULL"
        with self.database.write() as connection:
            revoked = connection.execute(revoke, (now, key_id)).rowcount > 0
            if revoked:
                connection.execute("DELETE FROM speakers WHERE owner = ?", (key_id,))
                forget_webhooks(connection, key_id)
        return revoked
