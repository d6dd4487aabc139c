"""The table of known speakers: names and voices are personal data, and deleted as texts are (``texts.py``)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import msgspec

from whisper_api.errors import SpeakerExists, SpeakerLimit, SpeakerNotFound
from whisper_api.store.tables import Tables, insert, is_revoked, update, where
from whisper_api.store.texts import digest, read, stored
from whisper_api.voices import VoiceEmbedding


class KnownVoice(msgspec.Struct, frozen=True, kw_only=True):
    """A known speaker, as the database keeps it.

    Attributes:
        speaker_id: a UUID.
        owner: id of the key that has enrolled the voice; empty without authorization.
        name: unique among the speakers of one owner.
        voice: vectors of the recordings.
        created_at, updated_at: seconds since 1970, UTC.
    """

    speaker_id: str
    owner: str
    name: str
    voice: VoiceEmbedding
    created_at: float
    updated_at: float

    def __repr__(self) -> str:
        # The name and the voice must not get into a log.
        return f"{type(self).__name__}(speaker_id={self.speaker_id!r}, owner={self.owner!r})"


class SpeakerTable(Tables):
    """Known speakers. The column of names holds digests."""

    def add_speaker(self, speaker: KnownVoice, most: int) -> None:
        """Add a speaker.

        Args:
            speaker: not in the store yet.
            most: speakers that the owner may have; 0 for any number.

        Raises:
            SpeakerExists: the owner has a speaker of this name.
            SpeakerLimit: the owner has as many speakers as one may have.
            SpeakerNotFound: the owner's key was revoked.
        """
        with self.database.write() as connection:
            check_room(connection, speaker.owner, speaker.name, most)
            if is_revoked(connection, speaker.owner):
                raise SpeakerNotFound(speaker.speaker_id)
            insert(
                connection, "speakers", {"speaker_id": speaker.speaker_id, "owner": speaker.owner, **_columns(speaker)}
            )

    def check_speaker(self, owner: str, name: str, most: int) -> None:
        """Check early what :meth:`add_speaker` will check again; raises the same errors."""
        with self.database.read() as connection:
            check_room(connection, owner, name, most)

    def speakers(self, owner: str | None) -> list[KnownVoice]:
        """The speakers of an owner, or of all owners, the oldest first."""
        whose, values = where({"owner = ?": owner})
        return [_speaker(row) for row in self._rows(f"SELECT content FROM speakers {whose} ORDER BY seq", *values)]

    def speaker(self, speaker_id: str) -> KnownVoice | None:
        """A speaker by its id."""
        rows = self._rows("SELECT content FROM speakers WHERE speaker_id = ?", speaker_id)
        return _speaker(rows[0]) if rows else None

    def change_speaker(self, speaker_id: str, change: Callable[[KnownVoice], KnownVoice]) -> KnownVoice:
        """Replace a speaker.

        Args:
            speaker_id: id of the speaker.
            change: makes the new speaker from the stored one.

        Raises:
            SpeakerNotFound: there is no such speaker.
            SpeakerExists: the owner has another speaker of the new name.
        """
        with self.database.write() as connection:
            row = connection.execute("SELECT content FROM speakers WHERE speaker_id = ?", (speaker_id,)).fetchone()
            if row is None:
                raise SpeakerNotFound(speaker_id)
            before = _speaker(row)
            after = change(before)
            if after.name != before.name:
                check_room(connection, after.owner, after.name, 0)
            update(connection, "speakers", _columns(after), "speaker_id", speaker_id)
        return after

    def delete_speaker(self, speaker_id: str) -> bool:
        """Delete a speaker; whether there was one."""
        return self._change("DELETE FROM speakers WHERE speaker_id = ?", speaker_id)


def check_room(connection: sqlite3.Connection, owner: str, name: str, most: int) -> None:
    """Raise SpeakerExists or SpeakerLimit if the owner may not have a further speaker of this name.

    Args:
        connection: a connection to the database.
        owner: owner of the speakers.
        name: the new name.
        most: speakers that the owner may have; 0 for any number.
    """
    taken = "SELECT 1 FROM speakers WHERE owner = ? AND name = ?"
    if connection.execute(taken, (owner, digest(name))).fetchone() is not None:
        raise SpeakerExists("There is a speaker of this name already: add the recordings to it, or choose another name")
    (count,) = connection.execute("SELECT COUNT(*) FROM speakers WHERE owner = ?", (owner,)).fetchone()
    if most and count >= most:
        raise SpeakerLimit(f"There are {count} speakers, and more are not allowed: delete one first")


def _columns(speaker: KnownVoice) -> dict[str, object]:
    return {"name": digest(speaker.name), "content": stored(speaker)}


def _speaker(row: Any) -> KnownVoice:
    return read(row["content"], KnownVoice, "A speaker")
