"""The methods of the blocking client that manage keys; they need a key with the role ``admin``."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from whisper_api.key_values import (
    DEFAULT_GRACE_SECONDS,
    AccessKey,
    KeyChange,
    KeyWithSecret,
    NewKey,
    Rotation,
)

if TYPE_CHECKING:
    from whisper_api.client.calls import Calls
    from whisper_api.client.transport import Transport

__all__ = ["PATH", "KeyList", "KeyMethods", "key_path"]

PATH = "/admin/keys"


class KeyList(msgspec.Struct):
    """All keys of a server."""

    keys: tuple[AccessKey, ...]


class KeyMethods:
    """Manages the keys of a server. Every method raises RequestError when the server refuses or cannot be reached."""

    _calls: Calls
    _transport: Transport

    def keys(self) -> tuple[AccessKey, ...]:
        """All keys, the oldest first, also those that have expired or were revoked."""
        return self._transport.run(self._calls.value("GET", PATH, KeyList)).keys

    def key(self, key_id: str) -> AccessKey:
        """A key.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound: no key has this id.
        """
        return self._transport.run(self._calls.value("GET", key_path(key_id), AccessKey))

    def create_key(self, new: NewKey) -> KeyWithSecret:
        """Create a key.

        Args:
            new: name, role, expiry, scopes and limits.

        Returns:
            The key and its token, which cannot be had again. If the response was lost, another attempt says that the
            name is taken: :meth:`rotate_key` gives a new token.

        Raises:
            InvalidOption: a value cannot be used, or the name is taken.
            ScopeMissing: the key would be able to do more than the caller's.
        """
        return self._transport.run(self._calls.value("POST", PATH, KeyWithSecret, new))

    def change_key(self, key_id: str, change: KeyChange) -> AccessKey:
        """Change a valid key.

        Args:
            key_id: id of the key.
            change: the changes; what is not set stays as it is.

        Raises:
            KeyNotFound: no valid key has this id.
            InvalidOption: a value cannot be used.
            LastAdminKey: no key could manage keys afterwards.
            ScopeMissing: the key can do more than the caller's, or would be able to.
        """
        return self._transport.run(self._calls.value("PATCH", key_path(key_id), AccessKey, change))

    def rotate_key(self, key_id: str, grace_seconds: float = DEFAULT_GRACE_SECONDS) -> KeyWithSecret:
        """Give a valid key a new secret.

        Args:
            key_id: id of the key.
            grace_seconds: seconds for which earlier secrets are still accepted; up to 30 days.

        Returns:
            The key and its new token, which cannot be had again.

        Raises:
            KeyNotFound: no valid key has this id.
            LastAdminKey: the grace is too short for the last key that can manage keys.
            ScopeMissing: the key can do more than the caller's.
        """
        rotation = Rotation(grace_seconds=grace_seconds)
        return self._transport.run(self._calls.value("POST", key_path(key_id, "/rotate"), KeyWithSecret, rotation))

    def revoke_key(self, key_id: str) -> AccessKey:
        """Revoke a key for good: its jobs are canceled, its known speakers and vocabularies are deleted.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound: no key has this id.
            LastAdminKey: no key could manage keys afterwards.
        """
        return self._transport.run(self._calls.value("DELETE", key_path(key_id), AccessKey))


def key_path(key_id: str, rest: str = "") -> str:
    """The path of a key, and of what is under it."""
    return f"{PATH}/{quote(key_id, safe='')}{rest}"
