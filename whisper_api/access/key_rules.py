"""The rules of keys: which values they have, which rights they may give, and that the last admin key stays."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timezone
from typing import get_args

from whisper_api.access.limit_values import parse_quota, parse_rate
from whisper_api.errors import InvalidOption, LastAdminKey, ScopeMissing
from whisper_api.key_values import MAX_GRACE_SECONDS, Role, Scope
from whisper_api.store.rows import Key

MAX_NAME = 64
# The last admin key keeps its earlier secret at least this long, in case the response with the new one is lost.
LEAST_ADMIN_GRACE_SECONDS = 60.0
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d{1,9})\s*([smhdw])", re.ASCII)

# The scopes that a key of each role may have. The metrics and the status need no scope.
SCOPES_OF_ROLES: Mapping[Role, tuple[Scope, ...]] = {
    "user": tuple(scope for scope in get_args(Scope) if scope != "admin"),
    "admin": get_args(Scope),
    "operator": ("read",),
    "metrics": (),
}


def allows(key: Key, scope: Scope | None) -> bool:
    """Whether a key may do what needs a scope.

    Args:
        key: a key; without scopes, it may do all that its role may.
        scope: the scope; None for what needs none.
    """
    return scope is None or not key.scopes or scope in key.scopes


def check_name(name: str) -> None:
    """Check the name of a key.

    Raises:
        InvalidOption: the name cannot be used.
    """
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise InvalidOption("name", f"a key's name has 1 to {MAX_NAME} printable characters, no space at its ends")


def check_values(key: Key) -> None:
    """Check the role, the scopes and the limits of a key.

    Raises:
        InvalidOption: a value cannot be used.
    """
    if key.role not in SCOPES_OF_ROLES:
        raise InvalidOption("role", f"expected one of {', '.join(SCOPES_OF_ROLES)}")
    possible = SCOPES_OF_ROLES[key.role]
    for scope in key.scopes:
        if scope not in possible:
            expected = f"expected some of {', '.join(possible)}" if possible else "it takes none"
            raise InvalidOption("scopes", f"a key with the role {key.role} cannot have the scope {scope!r}; {expected}")
    parse_rate(key.rate or "")
    parse_quota(key.quota or "")


def check_powers(by: Key | None, key: Key) -> None:
    """Check that a request may make or change a key, or give it a new secret.

    Args:
        by: key of the request; None may do everything.
        key: the key to make or change.

    Raises:
        ScopeMissing: the key can do what ``by`` cannot do.
    """
    if by is None or not by.scopes:
        return
    if not key.scopes or not set(key.scopes) <= set(by.scopes):
        raise ScopeMissing(
            f"Your key has the scopes {', '.join(by.scopes)}, so it cannot make or change a key that may do more: "
            "name scopes among these, or use a key with more"
        )


def keeps_an_admin(live: Sequence[Key], changed: Key) -> None:
    """Check that a change leaves a key that can manage keys; and one that never expires, if there is one now.

    Args:
        live: all valid keys before the change.
        changed: one of them after the change.

    Raises:
        LastAdminKey: the change would leave none.
    """
    before = _longest_end(live)
    after = _longest_end([changed if key.key_id == changed.key_id else key for key in live])
    if before is not None and (after is None or (before == math.inf and after < math.inf)):
        raise LastAdminKey(
            "This is the last key that can manage keys without an end: make another key with the role admin first, or "
            "use the command whisper-api keys on the server"
        )


def check_grace(grace_seconds: float, key: Key, live: Sequence[Key] | None) -> None:
    """Check how long earlier secrets are accepted.

    Args:
        grace_seconds: seconds for which earlier secrets are accepted.
        key: the key that gets a new secret.
        live: all valid keys; None to allow the loss of the last admin key.

    Raises:
        InvalidOption: the time is out of bounds.
        LastAdminKey: the time is too short for the last key that can manage keys.
    """
    if not 0 <= grace_seconds <= MAX_GRACE_SECONDS:
        raise InvalidOption("grace_seconds", f"expected 0 to {MAX_GRACE_SECONDS:.0f} seconds, which are 30 days")
    if live is None or grace_seconds >= LEAST_ADMIN_GRACE_SECONDS or not _manages_keys(key):
        return
    if not any(_manages_keys(other) for other in live if other.key_id != key.key_id):
        raise LastAdminKey(
            "This is the last key that can manage keys, which would be lost together with the response: give at least "
            f"{LEAST_ADMIN_GRACE_SECONDS:.0f} seconds in grace_seconds, or make another key with the role admin first"
        )


def duration(text: str) -> float:
    """Seconds of a duration such as ``90d``, ``24h``, ``30m`` or ``0``.

    Raises:
        ValueError: the text is something else.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if match is not None:
        return float(int(match[1]) * UNIT_SECONDS[match[2]])
    if text.strip() == "0":
        return 0.0
    raise ValueError("expected a duration such as 90d, 24h or 30m")


def moment(text: str, now: datetime) -> datetime | None:
    """The time that a text names.

    Args:
        text: a duration from now such as ``90d``, a date, a time (RFC 3339), or ``never``. Without a time zone: UTC.
        now: the present, with a time zone.

    Returns:
        The time; None for never.

    Raises:
        ValueError: the text is something else.
    """
    text = text.strip()
    if text.lower() == "never":
        return None
    if _DURATION.fullmatch(text.lower()):
        return datetime.fromtimestamp(now.timestamp() + duration(text), timezone.utc)
    try:
        if len(text) == len("2027-01-31"):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, tzinfo=timezone.utc)
        # Python 3.10 cannot read the letter Z.
        found = datetime.fromisoformat(f"{text[:-1]}+00:00" if text[-1:] in "zZ" else text)
        return found if found.tzinfo is not None else found.replace(tzinfo=timezone.utc)
    except ValueError:
        raise ValueError("expected a duration (90d, 24h), a date (2027-01-31), a time in RFC 3339, or never") from None


def _manages_keys(key: Key) -> bool:
    return key.role == "admin" and key.revoked_at is None and allows(key, "admin")


def _longest_end(keys: Sequence[Key]) -> float | None:
    """The latest expiry of the keys that can manage keys; infinity for none, None without such a key."""
    ends = [math.inf if key.expires_at is None else key.expires_at for key in keys if _manages_keys(key)]
    return max(ends, default=None)
