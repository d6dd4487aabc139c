"""The bounds on connections: quotas, progress deadlines, turns, and the buffer of a stream."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import pytest
from hypercorn.protocol.h2 import BufferCompleteError
from hypothesis import given
from hypothesis import strategies as st

from whisper_api import Config
from whisper_api.server.connections.http2 import StreamBuffer
from whisper_api.server.connections.limits import (
    LEAST_BYTES_PER_SECOND,
    FrameTurns,
    ProgressDeadline,
    Quota,
    StreamSlots,
)
from whisper_api.server.connections.settings import bounds_of, raise_open_files
from whisper_api.server.sockets import network_of

T = TypeVar("T")


# --- shares ---


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_no_holder_exceeds_its_share_and_all_together_do_not_exceed_the_total(steps: list[tuple[str, bool]]) -> None:
    quota = Quota(total=5, each=3)
    used = dict.fromkeys("abc", 0)
    for holder, gives_back in steps:
        if gives_back and used[holder]:
            quota.give_back(holder)
            used[holder] -= 1
        elif not gives_back:
            allowed = used[holder] < 3 and sum(used.values()) < 5
            assert quota.take(holder) == allowed
            used[holder] += allowed
        assert quota.used == sum(used.values())


def test_an_amount_above_a_bound_is_allowed_while_nothing_else_is_in_use() -> None:
    quota = Quota(total=5, each=3)
    assert quota.take("a", 4), "more than a share"
    assert not quota.take("a")
    assert quota.take("b")
    quota.give_back("a", 4)
    assert not quota.take("c", 6), "more than the total, beside another holder"
    quota.give_back("b")
    assert quota.take("c", 6)
    assert quota.used == 6


def test_the_first_request_of_a_connection_needs_no_share_and_all_shares_come_back() -> None:
    quota = Quota(total=3, each=3)
    slots = [StreamSlots(quota, "a", most=3) for _ in range(5)]
    assert all(each.begin() for each in slots)
    assert quota.used == 0
    assert [slots[0].begin() for _ in range(3)] == [True, True, False], "one connection has its own bound"
    assert [slots[1].begin() for _ in range(2)] == [True, False], "and all share one"
    slots[0].end()
    assert slots[1].begin()
    for each in slots:
        each.close()
    assert quota.used == 0


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("somewhere", "somewhere"),
    ],
)
def test_addresses_of_one_client_are_one_network(host: str, network: str) -> None:
    assert network_of(host) == network


@pytest.mark.parametrize("files", [1, 64, 256, 1024, 4096, 1 << 20])
def test_connections_and_their_uploads_fit_the_files_that_may_be_open(tmp_path: Path, files: int) -> None:
    bounds = bounds_of(Config(data_dir=tmp_path, max_connections=2000), files)
    assert 1 <= bounds.connections_per_address <= bounds.connections <= 2000
    assert bounds.reserved >= 1
    if files >= 256:
        assert 2 * (bounds.connections + bounds.reserved) < files
    if files >= 1 << 20:
        assert bounds == bounds_of(Config(max_connections=2000), None)


def test_open_files_are_raised_to_the_hard_limit() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        raise_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- deadline ---


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(1, 100)), min_size=1, max_size=50))
def test_a_client_that_takes_enough_is_never_cut_off(steps: list[tuple[float, float]]) -> None:
    """This holds for responses of any size and duration."""
    deadline, now, taken = ProgressDeadline(10, 0.0), 0.0, 0
    for seconds, times in steps:
        now += seconds
        taken += int(LEAST_BYTES_PER_SECOND * seconds * times) + 1
        assert not deadline.is_over(now, taken, True)


@given(st.floats(1, 100), st.integers(0, LEAST_BYTES_PER_SECOND // 8))
def test_a_client_that_takes_too_little_is_cut_off_soon(seconds: float, bytes_per_second: int) -> None:
    """A fast beginning gains no time."""
    deadline = ProgressDeadline(seconds, 0.0)
    assert not deadline.is_over(1.0, 1 << 30, True)
    half_seconds = 0
    while not deadline.is_over(1.0 + half_seconds / 2, (1 << 30) + half_seconds * bytes_per_second // 2, True):
        half_seconds += 1
    assert seconds <= half_seconds / 2 <= seconds * 1.2 + 1


def test_the_deadline_stands_still_while_no_bytes_wait() -> None:
    deadline = ProgressDeadline(10, 0.0)
    assert not deadline.is_over(9.0, 0, True)
    assert not deadline.is_over(1000.0, 0, False)
    assert not deadline.is_over(1009.0, 0, True)
    assert deadline.is_over(1010.0, 0, True)


# --- turns ---


def test_the_connection_with_the_fewest_turns_is_next() -> None:
    async def run() -> list[str]:
        turns = FrameTurns()
        order: list[str] = []
        half = asyncio.Event()

        async def work(name: str, pieces: int) -> None:
            for had in range(pieces):
                await turns.wait(had)
                order.append(name)
                if len(order) == 50:
                    half.set()

        flood = [asyncio.create_task(work(f"flood {number}", 20)) for number in range(5)]
        await half.wait()
        newcomer = asyncio.create_task(work("newcomer", 3))
        await asyncio.gather(newcomer, *flood)
        return order

    order = run_soon(run())
    assert len(order) == 103
    after = order[50:]
    assert [at for at, name in enumerate(after) if name == "newcomer"][-1] < 8, "it does not wait behind the flood"


def test_a_canceled_connection_passes_its_turn_on() -> None:
    async def run() -> None:
        turns = FrameTurns()
        tasks = [asyncio.create_task(turns.wait(had)) for had in range(4)]
        await asyncio.sleep(0)
        assert [task.done() for task in tasks] == [True, False, False, False], "one turn in each round"
        tasks[1].cancel()
        # The third task has been given the turn by now, but has not run yet.
        await asyncio.sleep(0)
        tasks[2].cancel()
        await tasks[3]

    run_soon(run())


def run_soon(work: Coroutine[object, object, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


# --- what a stream holds ---


def test_a_body_is_not_copied_and_its_application_waits_until_it_is_sent() -> None:
    async def run() -> None:
        body = bytes(range(256)) * 4096
        buffers = [StreamBuffer(ProgressDeadline(60, 0.0)) for _ in range(3)]
        tracemalloc.start()
        pushes = [asyncio.create_task(buffer.push(body)) for buffer in buffers]
        await asyncio.sleep(0)
        assert all(buffer.waiting for buffer in buffers)
        assert tracemalloc.get_traced_memory()[1] < len(body) // 10, "no buffer copies the body"
        tracemalloc.stop()
        received = bytearray()
        while buffers[0].waiting:
            await asyncio.sleep(0)
            assert not pushes[0].done()
            received += buffers[0].pop(10_000)
        await pushes[0]
        assert received == body
        assert buffers[0].taken == len(body)
        buffers[0].set_complete()
        assert buffers[0].complete
        # A stream that ends otherwise releases the body and the application.
        buffers[1].close()
        await pushes[1]
        with pytest.raises(BufferCompleteError):
            await buffers[1].push(b"more")
        await buffers[1].drain()
        assert not pushes[2].done()
        buffers[2].close()
        await pushes[2]

    run_soon(run())
