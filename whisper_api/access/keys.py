"""The keys of callers: 256 random bits, of which only a hash is stored.

Slow password hashes protect secrets that can be guessed. A secret of this length cannot be guessed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, get_args

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from whisper_api.access import key_rules
from whisper_api.errors import InvalidOption, KeyExpired, KeyNotFound, StorageError
from whisper_api.key_values import DEFAULT_GRACE_SECONDS, AccessKey, KeyChange, NewKey, Role, Scope
from whisper_api.records import made_of, rfc3339, rfc3339_or_none, seconds_of
from whisper_api.store.jobs import JobStore
from whisper_api.store.keys import KeySecrets, NewSecret
from whisper_api.store.rows import Key

log = logging.getLogger("whisper_api.access")

ROLES: tuple[Role, ...] = get_args(Role)
SCOPES: tuple[Scope, ...] = get_args(Scope)

ID_BYTES = 4
SECRET_BYTES = 32
_TOKEN = re.compile(r"wk_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
# An unknown key is compared with this digest, so that the answer takes as long as for a known key.
_NO_DIGEST = bytes(hashlib.sha256().digest_size)


class KeyRing:
    """The keys in a job database: verifies tokens, and makes, changes and ends keys. Safe to use from any thread.

    In each method ``by`` is the key of the request. Such a request cannot give a key more rights than ``by`` has, and
    cannot remove the last key that can manage keys. None stands for the command line, which may do everything.

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

    def create(self, name: str, role: Role = "user", **limits: Any) -> tuple[Key, str]:
        """Make a key.

        Args:
            name: name for people: 1 to 64 printable characters, different from the names of all other valid keys.
            role: role of the key.
            limits: the other members of :class:`~whisper_api.key_values.NewKey`.

        Returns:
            The key, and the token that a caller sends. The token cannot be had again.

        Raises:
            InvalidOption: a value cannot be used.
        """
        return self.add(NewKey(name=name, role=role, **limits))

    def add(self, new: NewKey, by: Key | None = None) -> tuple[Key, str]:
        """Make a key.

        Args:
            new: the key to make.
            by: key of the request.

        Returns:
            The key, and the token that a caller sends. The token cannot be had again.

        Raises:
            InvalidOption: a value cannot be used.
            ScopeMissing: the key would be able to do more than ``by``.
        """
        secret = secrets.token_urlsafe(SECRET_BYTES)
        while True:
            now = time.time()
            key = Key(
                key_id=secrets.token_hex(ID_BYTES),
                name=new.name,
                role=new.role,
                created_at=now,
                expires_at=seconds_of(new.expires_at),
                scopes=tuple(dict.fromkeys(new.scopes)),
                rate=new.rate,
                quota=new.quota,
            )
            key_rules.check_name(key.name)
            key_rules.check_values(key)
            _check_future(key.expires_at, now)
            key_rules.check_powers(by, key)
            if self._store.add_key(key, digest_of(secret)):
                return key, f"wk_{key.key_id}_{secret}"
            _check_free(key.name, self._live())

    def change(self, key_id: str, change: KeyChange, by: Key | None = None) -> Key:
        """Change a valid key. Requests that come later see the change, also in running servers.

        Args:
            key_id: id of the key.
            change: the changes.
            by: key of the request.

        Raises:
            KeyNotFound: no valid key has this id.
            InvalidOption: a value cannot be used.
            ScopeMissing: the key can do more than ``by``, or would be able to.
            LastAdminKey: no key could manage keys afterwards.
        """

        def changed(key: Key, live: Sequence[Key]) -> Key:
            key_rules.check_powers(by, key)
            now = time.time()
            new = replace(
                key,
                name=_given(change.name, key.name),
                role=_given(change.role, key.role),
                expires_at=key.expires_at if change.expires_at is UNSET else seconds_of(change.expires_at),
                scopes=tuple(dict.fromkeys(_given(change.scopes, key.scopes))),
                rate=_given(change.rate, key.rate),
                quota=_given(change.quota, key.quota),
            )
            if new.name != key.name:
                key_rules.check_name(new.name)
                _check_free(new.name, live)
            key_rules.check_values(new)
            if change.expires_at is not UNSET:
                _check_future(new.expires_at, now)
            key_rules.check_powers(by, new)
            if by is not None:
                key_rules.keeps_an_admin(live, new)
            return new

        return self._changed(key_id, changed)

    def rotate(
        self, key_id: str, grace_seconds: float = DEFAULT_GRACE_SECONDS, by: Key | None = None
    ) -> tuple[Key, str]:
        """Give a valid key a new secret. Every earlier secret ends after the grace at the latest.

        Args:
            key_id: id of the key.
            grace_seconds: seconds for which earlier secrets are still accepted; up to 30 days.
            by: key of the request.

        Returns:
            The key, and the new token. The token cannot be had again.

        Raises:
            KeyNotFound: no valid key has this id.
            InvalidOption: the grace is out of bounds.
            ScopeMissing: the key can do more than ``by``.
            LastAdminKey: a lost response would lose the last key that can manage keys.
        """
        secret = secrets.token_urlsafe(SECRET_BYTES)

        def rotated(key: Key, live: Sequence[Key]) -> Key:
            key_rules.check_powers(by, key)
            key_rules.check_grace(grace_seconds, key, live if by is not None else None)
            return key

        new = NewSecret(digest_of(secret), time.time() + grace_seconds)
        return self._changed(key_id, rotated, new), f"wk_{key_id}_{secret}"

    def revoke(self, name_or_id: str) -> Key:
        """Revoke a key, also for running servers.

        Args:
            name_or_id: name or id of a valid key.

        Returns:
            The revoked key.

        Raises:
            InvalidOption: there is no such key, or this is the name of one key and the id of another.
        """
        return self.end(self.find(name_or_id).key_id)

    def end(self, key_id: str, by: Key | None = None) -> Key:
        """Revoke a key by its id. A key that has ended already stays as it is.

        Args:
            key_id: id of the key.
            by: key of the request.

        Raises:
            KeyNotFound: no key has this id.
            LastAdminKey: no key could manage keys afterwards.
        """

        def ended(key: Key, live: Sequence[Key]) -> Key:
            new = replace(key, revoked_at=time.time())
            if by is not None:
                key_rules.keeps_an_admin(live, new)
            return new

        return self._store.change_key(key_id, ended) or self.get(key_id)

    def list(self) -> list[Key]:
        """All keys, including those that have expired or were revoked, the oldest first."""
        stored = self._store.keys()
        return [self._with_use(key) for key in stored]

    def get(self, key_id: str) -> Key:
        """A key by its id, also one that has expired or was revoked.

        Raises:
            KeyNotFound: no key has this id.
        """
        found = self._store.key(key_id)
        if found is None:
            raise KeyNotFound(f"Key not found: {key_id[:64]}")
        return self._with_use(found[0])

    def find(self, name_or_id: str) -> Key:
        """A valid key by its name or id.

        Raises:
            InvalidOption: there is no such key, or this is the name of one key and the id of another.
        """
        live = self._live()
        found = [key for key in live if name_or_id in (key.key_id, key.name)]
        if len(found) > 1:
            raise InvalidOption("key", f"{name_or_id!r} is the name of one key and the id of another: give the other's")
        if not found:
            names = ", ".join(repr(key.name) for key in live) or "none"
            raise InvalidOption("key", f"there is no valid key {name_or_id!r}; there are: {names}")
        return found[0]

    def any(self) -> bool:
        """Whether there is a valid key."""
        return bool(self._live())

    def _changed(
        self, key_id: str, change: Callable[[Key, Sequence[Key]], Key], secret: NewSecret | None = None
    ) -> Key:
        changed = self._store.change_key(key_id, change, secret)
        if changed is None:
            state = self.get(key_id).state(time.time())
            raise KeyNotFound(f"Key {key_id} is {state}: make a new key")
        return self._with_use(changed)

    def _with_use(self, key: Key) -> Key:
        with self._lock:
            used = self._uses.get(key.key_id)
        return key if used is None else replace(key, last_used_at=used)

    def _live(self) -> Sequence[Key]:
        now = time.time()
        return [key for key in self.list() if key.state(now) == "active"]


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


def access_key(key: Key) -> AccessKey:
    """A key as callers of the REST API see it."""
    now = time.time()
    state = key.state(now)
    until = key.old_secret_until
    return made_of(
        key,
        AccessKey,
        state=state,
        revoked_at=rfc3339_or_none(key.revoked_at) if state == "revoked" else None,
        old_secret_until=rfc3339_or_none(until) if until is not None and state == "active" and now < until else None,
    )


def _given(value: Any, present: Any) -> Any:
    return present if isinstance(value, UnsetType) else value


def _check_free(name: str, live: Sequence[Key]) -> None:
    if any(key.name == name for key in live):
        raise InvalidOption("name", f"there is a key {name!r} already: revoke it, or choose another name")


def _check_future(expires_at: float | None, now: float) -> None:
    if expires_at is not None and expires_at <= now:
        raise InvalidOption("expires_at", "expected a time in the future; to end a key now, revoke it")
