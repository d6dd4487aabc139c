"""Rate limits and quotas: as people write them (``60/minute; 1000/day``, ``600 minutes/day``), and as headers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

from whisper_api.errors import InvalidOption

Measure = Literal["minutes", "jobs"]
Period = Literal["day", "month"]

# The text that frees a key of limits, whatever the configuration's default is.
NO_LIMIT = "none"
MAX_AMOUNT = 10**9
# Memory holds the time of each request in a window.
MAX_REQUESTS = 100_000
MAX_WINDOW_SECONDS = 31 * 86400
MAX_LIMITS = 8
UNIT_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
RATE_HELP = "60/minute; 1000/day (the units are second, minute, hour and day), or none for no limit"
QUOTA_HELP = "600 minutes/day; 1000 jobs/month (minutes of audio or jobs, of a day or a month), or none for no limit"

_RATE = re.compile(r"(\d+)\s*/\s*(?:(\d+)\s*)?(second|minute|hour|day)s?", re.IGNORECASE | re.ASCII)
_QUOTA = re.compile(r"(\d+)\s*(minute|job)s?\s*/\s*(day|month)", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Rate:
    """A rate limit.

    Attributes:
        requests: requests that are allowed in each window.
        seconds: length of the sliding window.
    """

    requests: int
    seconds: int


@dataclass(frozen=True)
class Quota:
    """A quota.

    Attributes:
        measure: minutes of audio, or jobs.
        amount: amount that is allowed in each period.
        period: a calendar day or month, in UTC.
    """

    measure: Measure
    amount: int
    period: Period


def parse_rate(text: str) -> tuple[Rate, ...]:
    """The rate limits in a text.

    Args:
        text: limits with semicolons between, such as ``60/minute; 1000/day`` or ``10/15 seconds``. ``none``, or an
            empty text, is no limit.

    Raises:
        InvalidOption: the text is something else, or gives two limits for one window.
    """
    limits = []
    for item in _items(text):
        match = _RATE.fullmatch(item)
        if match is None:
            raise InvalidOption("rate", f"{item!r} is not a rate limit; expected something like {RATE_HELP}")
        seconds = _amount("rate", match[2] or "1") * UNIT_SECONDS[match[3].lower()]
        if seconds > MAX_WINDOW_SECONDS:
            raise InvalidOption("rate", f"the window of {item!r} is too long; expected at most 31 days, or a quota")
        limits.append(Rate(_amount("rate", match[1], MAX_REQUESTS), seconds))
    _check_distinct("rate", [limit.seconds for limit in limits], "window")
    return tuple(sorted(limits, key=lambda limit: limit.seconds))


def parse_quota(text: str) -> tuple[Quota, ...]:
    """The quotas in a text.

    Args:
        text: quotas with semicolons between, such as ``600 minutes/day; 1000 jobs/month``. ``none``, or an empty text,
            is no quota.

    Raises:
        InvalidOption: the text is something else, or gives two quotas for the same measure and period.
    """
    quotas = []
    for item in _items(text):
        match = _QUOTA.fullmatch(item)
        if match is None:
            raise InvalidOption("quota", f"{item!r} is not a quota; expected something like {QUOTA_HELP}")
        measure = next(each for each in get_args(Measure) if each.startswith(match[2].lower()))
        period = next(each for each in get_args(Period) if each == match[3].lower())
        quotas.append(Quota(measure, _amount("quota", match[1]), period))
    _check_distinct("quota", [(quota.measure, quota.period) for quota in quotas], "measure and period")
    return tuple(quotas)


def _items(text: str) -> list[str]:
    if text.strip().lower() == NO_LIMIT:
        return []
    return [item for each in text.split(";") if (item := each.strip())]


def _amount(field: str, digits: str, most: int = MAX_AMOUNT) -> int:
    amount = int(digits) if len(digits) <= len(str(most)) else most + 1
    if not 1 <= amount <= most:
        raise InvalidOption(field, f"expected amounts from 1 to {most}; to let a key do nothing, revoke it")
    return amount


def _check_distinct(field: str, subjects: Sequence[object], name: str) -> None:
    if len(set(subjects)) < len(subjects):
        raise InvalidOption(field, f"there are two limits for the same {name}: give each {name} once")
    if len(subjects) > MAX_LIMITS:
        raise InvalidOption(field, f"there are more than {MAX_LIMITS} limits")


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
