"""How slowly a body may come, on a clock that runs at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.virtual_time import run_at_once
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.pace import WINDOW_SECONDS, Pace, PaceRules, pace_rules

RATE = 1000.0


def play(rules: PaceRules, script: Iterable[tuple[float, int]], pause: float = 0.0) -> float:
    """Receive so many bytes after so many seconds each; the server does something else for a pause after each.

    Returns:
        Seconds until the end of the body.
    """

    async def run() -> float:
        loop = asyncio.get_running_loop()
        pace = Pace(rules)
        for seconds, count in script:
            message: asyncio.Task[Any] = asyncio.create_task(asyncio.sleep(seconds))
            try:
                await pace.wait(message)
            finally:
                message.cancel()
            pace.came(count)
            await asyncio.sleep(pause)
        return loop.time()

    return run_at_once(run())


def refused(rules: PaceRules, script: Iterable[tuple[float, int]], pause: float = 0.0) -> str:
    with pytest.raises(Problem) as raised:
        play(rules, script, pause)
    assert (raised.value.status, raised.value.code) == (408, "slow_sender")
    assert raised.value.headers["Connection"] == "close"
    return raised.value.detail


SHIPPED = pace_rules(480.0, RATE, 14_400.0)


def test_three_bytes_a_second_are_too_slow() -> None:
    detail = refused(SHIPPED, [(1.0, 3)] * 100)
    assert "1000 bytes a second" in detail
    assert "60 seconds" in detail


def test_a_client_that_falls_silent_for_half_a_minute_goes_on() -> None:
    minute = [(1.0, 8_000)] * 30 + [(30.0, 8_000)]
    assert play(SHIPPED, minute * 10) == pytest.approx(600.0)


def test_twenty_thousand_bytes_a_second_in_any_pieces_are_fast_enough() -> None:
    assert play(SHIPPED, [(5.0, 100_000)] * 700) == pytest.approx(3_500.0)
    assert play(SHIPPED, [(0.001, 20)] * 3_000) == pytest.approx(3.0)


def test_silence_ends_the_wait_after_the_window() -> None:
    assert "60 seconds" in refused(SHIPPED, [(WINDOW_SECONDS + 1, 1_000_000)])
    assert "3 seconds" in refused(pace_rules(3.0, RATE), [(4.0, 1_000_000)])


def test_the_whole_body_has_a_deadline() -> None:
    assert "14400 seconds" in refused(SHIPPED, [(50.0, 1_000_000)] * 289)
    assert play(SHIPPED, [(50.0, 1_000_000)] * 288) == pytest.approx(14_400.0)


def test_without_a_least_rate_any_byte_ends_a_silence() -> None:
    rules = pace_rules(480.0, 0)
    play(rules, [(479.0, 1)] * 50)
    assert "No byte came for 480 seconds" in refused(rules, [(479.0, 1), (479.0, 0), (2.0, 1)])


def test_what_the_server_does_meanwhile_does_not_count() -> None:
    """Neither for the rate nor for the deadline."""
    rules = PaceRules(60.0, RATE, 100.0)
    assert play(rules, [(1.0, 1_000)] * 50, pause=1_000.0) > 50_000.0
    refused(rules, [(1.0, 3)] * 100, pause=1_000.0)


def test_a_pause_of_the_whole_process_is_not_the_senders() -> None:
    """As when the machine was asleep: the clock has moved on, and the data may be waiting in the socket."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        pace = Pace(PaceRules(60.0, RATE))
        message: asyncio.Task[Any] = asyncio.create_task(asyncio.sleep(9.0))
        loop.call_later(6.0, lambda: setattr(loop._clock, "now", loop.time() + 3_600.0))  # type: ignore[attr-defined]
        await pace.wait(message)

    run_at_once(run())


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 200_000)), max_size=40))
def test_whoever_is_let_through_has_kept_up_the_rate(script: list[tuple[float, int]]) -> None:
    """And whoever is cut off has not, over some stretch that ends there."""
    rules = PaceRules(60.0, RATE)
    waited, sent = [0.0], [0]
    for seconds, count in script:
        waited.append(waited[-1] + seconds)
        sent.append(sent[-1] + count)
    # What has come before each wait, and how long it then lasted.
    missing = [
        (waited[end] - waited[start]) - (sent[end - 1] - sent[start]) / RATE
        for end in range(1, len(waited))
        for start in range(end)
    ]
    most = max(missing, default=0.0)
    if math.isclose(most, rules.window_seconds, abs_tol=1e-6):
        return
    if most < rules.window_seconds:
        play(rules, script)
    else:
        refused(rules, script)
