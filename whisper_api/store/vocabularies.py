"""The table of vocabularies."""

from __future__ import annotations

from whisper_api.job_values import Vocabulary
from whisper_api.store.tables import Tables, insert
from whisper_api.store.texts import digest, read, stored


class VocabularyTable(Tables):
    """The vocabularies of each key. Their texts can be deleted from the file, as ``texts.py`` explains."""

    def put_vocabulary(self, owner: str, vocabulary: Vocabulary, *, most: int) -> bool:
        """Store a vocabulary instead of the owner's earlier one of the same name.

        Args:
            owner: id of the key.
            vocabulary: the new content.
            most: vocabularies that an owner may have.

        Returns:
            False, and nothing is stored, when the owner has as many other vocabularies.
        """
        name = digest(vocabulary.name)
        with self.database.write() as connection:
            (others,) = connection.execute(
                "SELECT COUNT(*) FROM vocabularies WHERE owner = ? AND name != ?", (owner, name)
            ).fetchone()
            if others >= most:
                return False
            row = {"owner": owner, "name": name, "content": stored(vocabulary)}
            insert(connection, "vocabularies", row, replacing=True)
        return True

    def vocabulary(self, owner: str, name: str) -> Vocabulary | None:
        """A vocabulary of an owner by its name."""
        rows = self._rows("SELECT content FROM vocabularies WHERE owner = ? AND name = ?", owner, digest(name))
        return read(rows[0]["content"], Vocabulary, "A vocabulary") if rows else None

    def vocabularies(self, owner: str) -> list[Vocabulary]:
        """All vocabularies of an owner, in the order of their names."""
        rows = self._column("SELECT content FROM vocabularies WHERE owner = ?", owner)
        found = (read(content, Vocabulary, "A vocabulary") for content in rows)
        return sorted(found, key=lambda vocabulary: vocabulary.name)

    def delete_vocabulary(self, owner: str, name: str) -> bool:
        """Delete a vocabulary; whether there was one."""
        return self._change("DELETE FROM vocabularies WHERE owner = ? AND name = ?", owner, digest(name))

    def delete_vocabularies_of_revoked_keys(self) -> None:
        """Delete the vocabularies whose keys were revoked. Writes only if there are any."""
        revoked = "owner IN (SELECT key_id FROM keys WHERE revoked_at IS NOT NULL)"
        if self._rows(f"SELECT 1 FROM vocabularies WHERE {revoked} LIMIT 1"):
            self._change(f"DELETE FROM vocabularies WHERE {revoked}")
