"""The response fields that tell a caller its limits: ``RateLimit-Policy`` and ``RateLimit``.

They are written as draft-ietf-httpapi-ratelimit-headers (version 10) says: lists of structured fields (RFC 9651).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from whisper_api.access.limit_values import UNIT_SECONDS, Measure, Quota, Rate

__all__ = ["Standing", "fields_of", "quota_policy", "rate_policy"]

# The units in the draft's parameter qu. A limit without this parameter counts requests.
QUOTA_UNITS: dict[Measure, str] = {"minutes": "audio-seconds", "jobs": "jobs"}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A limit of a caller, and what is left of it.

    Attributes:
        policy: name of the limit, as in the response fields ``RateLimit-Policy`` and ``RateLimit``.
        unit: the counted unit: ``requests``, ``jobs`` or ``audio-seconds``.
        limit: units in each window.
        window_seconds: length of the window; of a quota, that of the current day or month.
        remaining: units that are left.
        reset_seconds: seconds until more are left.
    """

    policy: str
    unit: str = "requests"
    limit: int
    window_seconds: int
    remaining: int
    reset_seconds: int


def rate_policy(rate: Rate) -> str:
    """The name of a rate limit: ``minute``, or for a window of several units ``15-seconds``."""
    name, length = max(
        ((name, length) for name, length in UNIT_SECONDS.items() if rate.seconds % length == 0),
        key=lambda unit: unit[1],
    )
    return name if rate.seconds == length else f"{rate.seconds // length}-{name}s"


def quota_policy(quota: Quota) -> str:
    """The name of a quota: ``audio-day``, ``audio-month``, ``jobs-day`` or ``jobs-month``."""
    return f"{'audio' if quota.measure == 'minutes' else quota.measure}-{quota.period}"


def fields_of(standings: Sequence[Standing]) -> dict[str, str]:
    """The two response fields of limits.

    Args:
        standings: at least one limit.
    """
    return {
        "RateLimit-Policy": ", ".join(
            f'"{each.policy}";q={each.limit};w={each.window_seconds}'
            + (f';qu="{each.unit}"' if each.unit != "requests" else "")
            for each in standings
        ),
        "RateLimit": ", ".join(f'"{each.policy}";r={each.remaining};t={each.reset_seconds}' for each in standings),
    }
