"""Verifies the tokens of callers, and remembers when keys were used."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import time

from msgspec.structs import replace

from whisper_api.errors import KeyExpired, StorageError
from whisper_api.records import rfc3339
from whisper_api.store.jobs import JobStore
from whisper_api.store.keys import KeySecrets
from whisper_api.store.rows import Key

log = logging.getLogger("whisper_api.access")

_TOKEN = re.compile(r"wk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
# An unknown key is compared with this digest, so that the answer takes as long as for a known key.
_NO_DIGEST = bytes(hashlib.sha256().digest_size)


class KeyVerification:
    """Verifies tokens by the keys in a job database. Safe to use from any thread.

    Args:
        store: the store of the keys.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        # Guarded by _lock: key id to its last use, which is not in the database yet.
        self._uses: dict[str, float] = {}

    def verify(self, token: str) -> Key | None:
        """The key to which a caller's token belongs. The call counts as a use of the key.

        Returns:
            None when there is no such key, or it was revoked.

        Raises:
            KeyExpired: the key has expired, or a rotation has replaced this secret.
        """
        key_id, secret = _parts(token)
        found = self._store.key_secrets(key_id)
        if found is None:
            hmac.compare_digest(digest_of(secret), _NO_DIGEST)
            return None
        return self._verified(found, secret)

    def verify_at_once(self, token: str) -> tuple[bool, Key | None]:
        """As :meth:`verify`, if that needs no read of the disk: the key was read, and nothing has changed since then.

        Another process may revoke a key, so the database is asked whether anything has changed, which reads shared
        memory only.

        Returns:
            Whether this call could verify the token, and the key.

        Raises:
            KeyExpired: as :meth:`verify`.
        """
        key_id, secret = _parts(token)
        found = self._store.known_key(key_id)
        return (False, None) if found is None else (True, self._verified(found, secret))

    def _verified(self, found: KeySecrets, secret: str) -> Key | None:
        given = digest_of(secret)
        old = next((each for each in found.old if hmac.compare_digest(given, each.digest)), None)
        if not hmac.compare_digest(given, found.digest) and old is None:
            return None
        now = time.time()
        key = _not_expired(found.key, now)
        if key is not None:
            if old is not None and now >= old.valid_until:
                raise KeyExpired(
                    f"The secret of this key was replaced, and this one has expired on {rfc3339(old.valid_until)}: use "
                    "the new one"
                )
            with self._lock:
                self._uses[key.key_id] = now
        return key

    def recheck(self, key: Key) -> Key | None:
        """The present state of a key that was valid before; None when it was revoked.

        Raises:
            KeyExpired: the key has expired.
        """
        found = self._store.key(key.key_id)
        return None if found is None else _not_expired(found[0], time.time())

    def write_uses(self) -> None:
        """Write the last uses of keys to the database, in one transaction; call it from time to time."""
        with self._lock:
            uses, self._uses = self._uses, {}
        if not uses:
            return
        try:
            self._store.note_uses(uses)
        except StorageError as error:
            log.warning("the last uses of keys could not be written: %s", error)
            with self._lock:
                self._uses = uses | self._uses

    def _with_use(self, key: Key) -> Key:
        with self._lock:
            used = self._uses.get(key.key_id)
        return key if used is None else replace(key, last_used_at=used)


def _not_expired(key: Key, now: float) -> Key | None:
    match key.state(now):
        case "active":
            return key
        case "expired":
            assert key.expires_at is not None, "only a key with an expiry expires"
            raise KeyExpired(f"This key has expired on {rfc3339(key.expires_at)}: ask an administrator for a new key")
        case _:
            return None


def key_id_in(token: str) -> str:
    """The id of the key that a token names; empty when it names none."""
    return _parts(token)[0]


def _parts(token: str) -> tuple[str, str]:
    """The id and the secret in a token; both empty when it is none."""
    match = _TOKEN.fullmatch(token)
    return (match[1], match[2]) if match else ("", "")


def digest_of(secret: str) -> bytes:
    """The hash of a secret, as it is stored."""
    return hashlib.sha256(secret.encode()).digest()
