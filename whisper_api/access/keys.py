"""The keys of callers: 256 random bits, of which only a hash is stored.

A secret of this length needs no slow password hash, which exists for secrets that can be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Sequence
from typing import get_args

from whisper_api.errors import InvalidOption
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Key, Role

__all__ = ["ROLES", "Key", "KeyRing", "Role", "key_id_in"]

ROLES: tuple[Role, ...] = get_args(Role)

MAX_NAME = 64
ID_BYTES = 4
SECRET_BYTES = 32

_TOKEN = re.compile(r"wk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
# An unknown key is compared with this digest, so that the answer takes as long as for a known key.
_NO_DIGEST = bytes(hashlib.sha256().digest_size)


class KeyRing:
    """The keys in a job database.

    Args:
        store: the store of the keys.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def create(self, name: str, role: Role = "user") -> tuple[Key, str]:
        """Make a key.

        Args:
            name: name for people: 1 to 64 printable characters, different from the names of all other valid keys.
            role: role of the key.

        Returns:
            The key, and the token that a caller sends. The token cannot be had again.

        Raises:
            InvalidOption: the name or the role cannot be used.
        """
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
            raise InvalidOption("name", f"a key's name has 1 to {MAX_NAME} printable characters, no space at its ends")
        if role not in ROLES:
            raise InvalidOption("role", f"expected one of {', '.join(ROLES)}")
        secret = secrets.token_urlsafe(SECRET_BYTES)
        while True:
            key = Key(key_id=secrets.token_hex(ID_BYTES), name=name, role=role, created_at=time.time())
            if self._store.add_key(key, _digest(secret)):
                return key, f"wk_{key.key_id}_{secret}"
            if any(other.name == name for other in self._live()):
                raise InvalidOption("name", f"there is a key {name!r} already: revoke it, or choose another name")

    def verify(self, token: str) -> Key | None:
        """The key of a token; None when there is none, or it was revoked."""
        match = _TOKEN.fullmatch(token)
        key_id, secret = match.groups() if match else ("", "")
        key, digest = self._store.key(key_id) or (None, _NO_DIGEST)
        if not hmac.compare_digest(_digest(secret), digest) or key is None or key.revoked_at is not None:
            return None
        return key

    def still_good(self, key: Key) -> bool:
        """Whether a key that was valid before is still valid."""
        found = self._store.key(key.key_id)
        return found is not None and found[0].revoked_at is None

    def list(self) -> list[Key]:
        """All keys, including revoked ones, the oldest first."""
        return self._store.keys()

    def any(self) -> bool:
        """Whether there is a key that is not revoked."""
        return bool(self._live())

    def revoke(self, name_or_id: str) -> Key:
        """Revoke a key, also for running servers.

        Args:
            name_or_id: name or id of a valid key.

        Returns:
            The revoked key.

        Raises:
            InvalidOption: there is no such key, or this is the name of one key and the id of another.
        """
        live = self._live()
        found = [key for key in live if name_or_id in (key.key_id, key.name)]
        if len(found) > 1:
            raise InvalidOption("key", f"{name_or_id!r} is the name of one key and the id of another: give the other's")
        if not found or not self._store.revoke_key(found[0].key_id, time.time()):
            names = ", ".join(repr(key.name) for key in live) or "none"
            raise InvalidOption("key", f"there is no key {name_or_id!r} that could be revoked; there are: {names}")
        revoked = self._store.key(found[0].key_id)
        assert revoked is not None, "keys are never deleted"
        return revoked[0]

    def _live(self) -> Sequence[Key]:
        return [key for key in self.list() if key.revoked_at is None]


def key_id_in(token: str) -> str:
    """The id of the key that a token names; empty when it names none."""
    match = _TOKEN.fullmatch(token)
    return match[1] if match else ""


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
