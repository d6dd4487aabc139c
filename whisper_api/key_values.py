"""The values of keys in the REST API and the client: roles, scopes, and keys without their secrets."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from whisper_api.records import Record

Role = Literal["user", "admin", "metrics", "operator"]
Scope = Literal["transcribe", "read", "correct", "delete", "speakers", "vocabularies", "webhooks", "admin"]
KeyState = Literal["active", "expired", "revoked"]

DEFAULT_GRACE_SECONDS = 86400.0
MAX_GRACE_SECONDS = 30 * 86400.0

Expiry = Annotated[Annotated[datetime, Meta(tz=True)] | None, Meta(examples=["2999-12-31T00:00:00Z"])]
Scopes = Annotated[tuple[Scope, ...], Meta(examples=[["read"]])]
RateText = Annotated[str | None, Meta(examples=["60/minute; 1000/day"])]
QuotaText = Annotated[str | None, Meta(examples=["600 minutes/day; 1000 jobs/month"])]


class AccessKey(Record, frozen=True, kw_only=True):
    """A key, without its secret.

    Attributes:
        key_id: the public part of the key, in hexadecimal digits.
        name: name of the key, for people.
        role: ``user`` sees its own jobs, ``admin`` all jobs, ``operator`` the states of all jobs and none of their
            texts, ``metrics`` the metrics and nothing else.
        state: whether the key is accepted.
        created_at: RFC 3339, UTC.
        expires_at: when the key expires; None for never.
        revoked_at: when the key was revoked; None for a key that is active or has expired.
        last_used_at: the last request with the key, to about a minute; None for never.
        old_secret_until: how long a secret from before a rotation is still accepted; None when none is.
        scopes: what the key may do of all that its role allows; empty for all of it.
        rate: rate limits of the key; None for those of the configuration.
        quota: quotas of the key; None for those of the configuration.
    """

    key_id: str
    name: str
    role: Role
    state: KeyState
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None
    last_used_at: str | None = None
    old_secret_until: str | None = None
    scopes: tuple[Scope, ...] = ()
    rate: str | None = None
    quota: str | None = None


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """All keys.

    Attributes:
        keys: the oldest first, also those that have expired or were revoked.
    """

    keys: tuple[AccessKey, ...]


class KeyWithSecret(msgspec.Struct, frozen=True, kw_only=True):
    """A key and what a caller sends, which cannot be had again.

    Attributes:
        key: the key.
        token: the text for the header ``Authorization: Bearer``.
    """

    key: AccessKey
    token: str

    def __repr__(self) -> str:
        # The token must not get into a log.
        return f"{type(self).__name__}(key={self.key!r})"


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to create. An unknown field is an error, since a key would have no limit where one was meant.

    Attributes:
        name: name for people, different from the names of all other valid keys.
        role: role of the key.
        expires_at: when the key expires; None for never.
        scopes: what the key may do of all that its role allows; empty for all of it.
        rate: rate limits, with semicolons between; ``none`` for no limit, None for those of the configuration.
        quota: quotas of audio and jobs, with semicolons between; ``none`` for no quota, None for those of the
            configuration.
    """

    name: Annotated[str, Meta(examples=["app"])]
    role: Role = "user"
    expires_at: Expiry = None
    scopes: Scopes = ()
    rate: RateText = None
    quota: QuotaText = None


class KeyChange(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Changes of a key; what is absent stays as it is.

    Attributes:
        name, role, expires_at, scopes, rate, quota: as of a new key.
    """

    name: Annotated[str, Meta(examples=["web"])] | UnsetType = UNSET
    role: Annotated[Role, Meta(examples=["user"])] | UnsetType = UNSET
    expires_at: Expiry | UnsetType = UNSET
    scopes: Scopes | UnsetType = UNSET
    rate: RateText | UnsetType = UNSET
    quota: QuotaText | UnsetType = UNSET


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rotation of a key's secret.

    Attributes:
        grace_seconds: how long the secrets before the new one are still accepted.
    """

    grace_seconds: Annotated[float, Meta(ge=0, le=MAX_GRACE_SECONDS)] = DEFAULT_GRACE_SECONDS
