"""The methods of both clients that manage keys; they need a key with the role ``admin``."""

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
    from whisper_api.client.async_transport import AsyncTransport
    from whisper_api.client.calls import Calls
    from whisper_api.client.transport import Transport

__all__ = ["AsyncKeyMethods", "KeyMethods"]

PATH = "/admin/keys"


class _Keys(msgspec.Struct):
    keys: tuple[AccessKey, ...]


class KeyMethods:
    """Manages the keys of a server. Every method raises RequestError when the server refuses or cannot be reached."""

    _calls: Calls
    _transport: Transport

    def keys(self) -> tuple[AccessKey, ...]:
        """All keys, the oldest first, also those that have expired or were revoked."""
        return self._transport.run(self._calls.value("GET", PATH, _Keys)).keys

    def key(self, key_id: str) -> AccessKey:
        """A key.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound: no key has this id.
        """
        return self._transport.run(self._calls.value("GET", _path(key_id), AccessKey))

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
        return self._transport.run(self._calls.value("PATCH", _path(key_id), AccessKey, change))

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
        return self._transport.run(self._calls.value("POST", _path(key_id, "/rotate"), KeyWithSecret, rotation))

    def revoke_key(self, key_id: str) -> AccessKey:
        """Revoke a key for good: its jobs are canceled, its known speakers and vocabularies are deleted.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound: no key has this id.
            LastAdminKey: no key could manage keys afterwards.
        """
        return self._transport.run(self._calls.value("DELETE", _path(key_id), AccessKey))


class AsyncKeyMethods:
    """The same as :class:`KeyMethods`, as coroutines."""

    _calls: Calls
    _transport: AsyncTransport

    async def keys(self) -> tuple[AccessKey, ...]:
        """All keys, as with :meth:`whisper_api.Client.keys`."""
        return (await self._transport.run(self._calls.value("GET", PATH, _Keys))).keys

    async def key(self, key_id: str) -> AccessKey:
        """A key, as with :meth:`whisper_api.Client.key`.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound: no key has this id.
        """
        return await self._transport.run(self._calls.value("GET", _path(key_id), AccessKey))

    async def create_key(self, new: NewKey) -> KeyWithSecret:
        """Create a key, as with :meth:`whisper_api.Client.create_key`.

        Args:
            new: name, role, expiry, scopes and limits.

        Raises:
            InvalidOption, ScopeMissing: as there.
        """
        return await self._transport.run(self._calls.value("POST", PATH, KeyWithSecret, new))

    async def change_key(self, key_id: str, change: KeyChange) -> AccessKey:
        """Change a valid key, as with :meth:`whisper_api.Client.change_key`.

        Args:
            key_id: id of the key.
            change: the changes; what is not set stays as it is.

        Raises:
            KeyNotFound, InvalidOption, LastAdminKey, ScopeMissing: as there.
        """
        return await self._transport.run(self._calls.value("PATCH", _path(key_id), AccessKey, change))

    async def rotate_key(self, key_id: str, grace_seconds: float = DEFAULT_GRACE_SECONDS) -> KeyWithSecret:
        """Give a valid key a new secret, as with :meth:`whisper_api.Client.rotate_key`.

        Args:
            key_id: id of the key.
            grace_seconds: seconds for which earlier secrets are still accepted; up to 30 days.

        Raises:
            KeyNotFound, LastAdminKey, ScopeMissing: as there.
        """
        rotation = Rotation(grace_seconds=grace_seconds)
        return await self._transport.run(self._calls.value("POST", _path(key_id, "/rotate"), KeyWithSecret, rotation))

    async def revoke_key(self, key_id: str) -> AccessKey:
        """Revoke a key for good, as with :meth:`whisper_api.Client.revoke_key`.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound, LastAdminKey: as there.
        """
        return await self._transport.run(self._calls.value("DELETE", _path(key_id), AccessKey))


def _path(key_id: str, rest: str = "") -> str:
    return f"{PATH}/{quote(key_id, safe='')}{rest}"
