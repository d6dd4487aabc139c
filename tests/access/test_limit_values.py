"""Rate limits and quotas as people write them."""

from __future__ import annotations

import pytest

from whisper_api.access.limit_values import (
    MAX_REQUESTS,
    Quota,
    Rate,
    parse_quota,
    parse_rate,
    quota_policy,
    rate_policy,
)
from whisper_api.errors import InvalidOption


@pytest.mark.parametrize(
    ("text", "rates", "names"),
    [
        ("60/minute", [(60, 60)], ["minute"]),
        (" 1000 / Day ;60/minutes; ", [(60, 60), (1000, 86400)], ["minute", "day"]),
        ("10/15 seconds; 5/2hours", [(10, 15), (5, 7200)], ["15-seconds", "2-hours"]),
        ("1/60 seconds", [(1, 60)], ["minute"]),
        ("none", [], []),
        (" ", [], []),
    ],
)
def test_rates_are_read(text: str, rates: list[tuple[int, int]], names: list[str]) -> None:
    assert [(rate.requests, rate.seconds) for rate in parse_rate(text)] == rates
    assert [rate_policy(rate) for rate in parse_rate(text)] == names


def test_quotas_are_read() -> None:
    quotas = parse_quota("600 minutes/day; 1000 jobs/month;1job/day")
    assert quotas == (Quota("minutes", 600, "day"), Quota("jobs", 1000, "month"), Quota("jobs", 1, "day"))
    assert [quota_policy(quota) for quota in quotas] == ["audio-day", "jobs-month", "jobs-day"]
    assert parse_quota("none") == parse_quota("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "60",
        "60/fortnight",
        "-1/minute",
        "1.5/minute",
        "60/minute, 5/day",
        "60/minute; none",
        "٣/minute",
        "0/minute",
        f"{MAX_REQUESTS + 1}/day",
        "9" * 5000 + "/day",
        "1/0 seconds",
        "1/32 days",
        "1/minute; 2/60 seconds",
        "; ".join(f"1/{number} seconds" for number in range(1, 10)),
    ],
)
def test_other_rates_are_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidOption, match=r"^rate: .*(expected|there are)") as refused:
        parse_rate(text)
    assert refused.value.field == "rate"


@pytest.mark.parametrize(
    "text", ["600/day", "600 minutes", "5 jobs/week", "0 jobs/day", "5 hours/day", "1 job/day; 2 jobs/day", "1/day"]
)
def test_other_quotas_are_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidOption, match=r"^quota: .*(expected|there are)") as refused:
        parse_quota(text)
    assert refused.value.field == "quota"


def test_a_rate_is_one_limit_of_one_window() -> None:
    assert parse_rate("2/minute") == (Rate(2, 60),)
