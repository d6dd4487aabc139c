"""The methods of the asynchronous client that manage keys; they need a key with the role ``admin``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whisper_api.client.keys import PATH, KeyList, key_path
from whisper_api.key_values import DEFAULT_GRACE_SECONDS, AccessKey, KeyChange, KeyWithSecret, NewKey, Rotation

if TYPE_CHECKING:
    from whisper_api.client.async_transport import AsyncTransport
    from whisper_api.client.calls import Calls

__all__ = ["AsyncKeyMethods"]


class AsyncKeyMethods:
    """The same as :class:`~whisper_api.client.keys.KeyMethods`, as coroutines."""

    _calls: Calls
    _transport: AsyncTransport

    async def keys(self) -> tuple[AccessKey, ...]:
        """All keys, as with :meth:`whisper_api.Client.keys`."""
        return (await self._transport.run(self._calls.value("GET", PATH, KeyList))).keys

    async def key(self, key_id: str) -> AccessKey:
        """A key, as with :meth:`whisper_api.Client.key`.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound: no key has this id.
        """
        return await self._transport.run(self._calls.value("GET", key_path(key_id), AccessKey))

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
        return await self._transport.run(self._calls.value("PATCH", key_path(key_id), AccessKey, change))

    async def rotate_key(self, key_id: str, grace_seconds: float = DEFAULT_GRACE_SECONDS) -> KeyWithSecret:
        """Give a valid key a new secret, as with :meth:`whisper_api.Client.rotate_key`.

        Args:
            key_id: id of the key.
            grace_seconds: seconds for which earlier secrets are still accepted; up to 30 days.

        Raises:
            KeyNotFound, LastAdminKey, ScopeMissing: as there.
        """
        rotation = Rotation(grace_seconds=grace_seconds)
        return await self._transport.run(
            self._calls.value("POST", key_path(key_id, "/rotate"), KeyWithSecret, rotation)
        )

    async def revoke_key(self, key_id: str) -> AccessKey:
        """Revoke a key for good, as with :meth:`whisper_api.Client.revoke_key`.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound, LastAdminKey: as there.
        """
        return await self._transport.run(self._calls.value("DELETE", key_path(key_id), AccessKey))
