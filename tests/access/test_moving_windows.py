"""Moving windows against a model that keeps every request, in virtual time."""

from __future__ import annotations

import hypothesis
from hypothesis import strategies as st

from whisper_api.access.limit_values import Rate
from whisper_api.access.request_limits import MOST_NAMES, MovingWindows


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


# Eighths of a second are exact in floating point, so that the model and the windows cannot differ by rounding.
PAUSES = st.integers(0, 40).map(lambda eighths: eighths / 8)
RATES = st.lists(
    st.builds(Rate, st.integers(1, 5), st.integers(1, 12)), min_size=1, max_size=3, unique_by=lambda rate: rate.seconds
)


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(rates=RATES, requests=st.lists(st.tuples(PAUSES, st.sampled_from("ab")), max_size=80))
def test_windows_allow_what_the_model_allows(rates: list[Rate], requests: list[tuple[float, str]]) -> None:
    clock = Clock()
    windows = MovingWindows(clock)
    allowed: dict[str, list[float]] = {"a": [], "b": []}

    def room(name: str, rate: Rate, now: float) -> int:
        return rate.requests - sum(now - time < rate.seconds for time in allowed[name])

    for pause, name in requests:
        clock.now += pause
        expected = all(room(name, rate, clock.now) > 0 for rate in rates)
        wait = windows.hit(name, rates)
        assert (wait == 0) == expected
        if expected:
            allowed[name].append(clock.now)
        else:
            # A request is allowed exactly then, and no earlier.
            assert all(room(name, rate, clock.now + wait) > 0 for rate in rates)
            assert not all(room(name, rate, clock.now + wait - 1 / 16) > 0 for rate in rates)
        for rate in rates:
            left, more = windows.left(name, rate)
            assert left == room(name, rate, clock.now)
            assert room(name, rate, clock.now + more) >= min(left + 1, rate.requests)
    for name, times in allowed.items():
        for rate in rates:
            most = max((sum(0 <= time - first < rate.seconds for time in times) for first in times), default=0)
            assert most <= rate.requests, name


def test_a_changed_limit_keeps_the_requests_before() -> None:
    windows = MovingWindows(Clock())
    for _ in range(5):
        assert windows.hit("a", [Rate(5, 60)]) == 0
    assert windows.hit("a", [Rate(3, 60)]) == 60
    assert windows.left("a", Rate(3, 60))[0] == 0
    assert windows.hit("a", [Rate(6, 60)]) == 0


def test_the_memory_of_names_has_a_bound_and_forgets_no_full_window_before_it() -> None:
    clock = Clock()
    windows = MovingWindows(clock)
    rates = [Rate(1, 10)]
    for number in range(5000):
        clock.now += 0.01
        assert windows.hit(f"stranger {number}", rates) == 0
    assert len(windows) <= 2 * 1000
    assert all(windows.hit(f"stranger {number}", rates) > 0 for number in range(4002, 5000))
    for number in range(MOST_NAMES + 100):
        windows.hit(f"other {number}", rates)
    assert len(windows) <= MOST_NAMES
