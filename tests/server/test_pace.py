"""The least speed of a request's body, on a clock that does not wait."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.virtual_time import VirtualLoop, run_at_once
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.pace import WINDOW_SECONDS, Pace, PaceRules, pace_rules

RATE = 1000.0


def play(rules: PaceRules, script: Iterable[tuple[float, int]], pause: float = 0.0) -> float:
    """Receive a body on the virtual clock.

    Args:
        rules: for the body.
        script: seconds until each message comes, and its bytes.
        pause: seconds that the server is busy after each message.

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


def test_a_client_may_be_silent_for_half_a_minute() -> None:
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


def test_any_byte_ends_a_silence_when_no_least_rate_is_set() -> None:
    rules = pace_rules(480.0, 0)
    play(rules, [(479.0, 1)] * 50)
    assert "No byte came for 480 seconds" in refused(rules, [(479.0, 1), (479.0, 0), (2.0, 1)])


def test_time_that_the_server_is_busy_counts_neither_for_the_rate_nor_for_the_deadline() -> None:
    rules = PaceRules(60.0, RATE, 100.0)
    assert play(rules, [(1.0, 1_000)] * 50, pause=1_000.0) > 50_000.0
    refused(rules, [(1.0, 3)] * 100, pause=1_000.0)


def test_a_pause_of_the_whole_process_does_not_count_as_silence_of_the_sender() -> None:
    """When the machine was asleep, the clock has moved on, and the data may be in the socket already."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        pace = Pace(PaceRules(60.0, RATE))
        message: asyncio.Task[Any] = asyncio.create_task(asyncio.sleep(9.0))
        loop.call_later(6.0, loop.skip, 3_600.0)
        await pace.wait(message)

    run_at_once(run())


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 200_000)), max_size=40))
def test_a_sender_is_refused_exactly_when_some_stretch_of_its_body_was_too_slow(
    script: list[tuple[float, int]],
) -> None:
    rules = PaceRules(60.0, RATE)
    waited, sent = [0.0], [0]
    for seconds, count in script:
        waited.append(waited[-1] + seconds)
        sent.append(sent[-1] + count)
    # For each stretch from one wait to another: the seconds of waiting that its bytes have not earned.
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
