"""The methods of the clients that manage keys; they need a key with the role ``admin``."""

from __future__ import annotations

from whisper_api.client.calls import Methods, Steps, api_call, path_of
from whisper_api.key_values import DEFAULT_GRACE_SECONDS, AccessKey, KeyChange, KeyList, KeyWithSecret, NewKey, Rotation


class KeyMethods(Methods):
    """Manages the keys of a server. Every method raises RequestError when the server refuses or cannot be reached."""

    @api_call
    def keys(self) -> Steps[tuple[AccessKey, ...]]:
        """All keys, the oldest first, also those that have expired or were revoked."""
        return (yield from self._calls.value("GET", "/admin/keys", KeyList)).keys

    @api_call
    def key(self, key_id: str) -> Steps[AccessKey]:
        """A key.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound: no key has this id.
        """
        return self._calls.value("GET", path_of("admin", "keys", key_id), AccessKey)

    @api_call
    def create_key(self, new: NewKey) -> Steps[KeyWithSecret]:
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
        return self._calls.value("POST", "/admin/keys", KeyWithSecret, new)

    @api_call
    def change_key(self, key_id: str, change: KeyChange) -> Steps[AccessKey]:
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
        return self._calls.value("PATCH", path_of("admin", "keys", key_id), AccessKey, change)

    @api_call
    def rotate_key(self, key_id: str, grace_seconds: float = DEFAULT_GRACE_SECONDS) -> Steps[KeyWithSecret]:
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
        path, rotation = path_of("admin", "keys", key_id, "rotate"), Rotation(grace_seconds=grace_seconds)
        return self._calls.value("POST", path, KeyWithSecret, rotation)

    @api_call
    def revoke_key(self, key_id: str) -> Steps[AccessKey]:
        """Revoke a key for good: its jobs are canceled, its known speakers and vocabularies are deleted.

        Args:
            key_id: id of the key.

        Raises:
            KeyNotFound: no key has this id.
            LastAdminKey: no key could manage keys afterwards.
        """
        return self._calls.value("DELETE", path_of("admin", "keys", key_id), AccessKey)
