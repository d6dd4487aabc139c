"""Turns: each caller has so many, and no caller waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import weakref

import pytest

from server.inside import on_a_loop
from server.virtual_time import run_at_once
from whisper_api.server.uploads.turns import Amounts, Turns, client_network


def test_more_of_one_caller_wait_and_others_do_not() -> None:
    async def run() -> None:
        turns = Turns(2)
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(turns.taken("a", 30.0))
            with pytest.raises(asyncio.TimeoutError):
                async with turns.taken("a", 30.0):
                    pytest.fail("a third turn was given")
            assert loop.time() == pytest.approx(30.0)
            for _ in range(2):
                await stack.enter_async_context(turns.taken("b", 30.0))
            assert loop.time() == pytest.approx(30.0)
        assert len(turns) == 0

    run_at_once(run())


def test_a_turn_that_ends_goes_to_the_next() -> None:
    async def run() -> list[int]:
        turns = Turns(1)
        order = []

        async def work(number: int) -> None:
            async with turns.taken("a", 1_000.0):
                await asyncio.sleep(10.0)
                order.append(number)

        await asyncio.gather(*(work(number) for number in range(5)))
        assert asyncio.get_running_loop().time() == pytest.approx(50.0)
        assert len(turns) == 0
        return order

    assert run_at_once(run()) == [0, 1, 2, 3, 4]


@on_a_loop
async def test_a_caller_that_is_canceled_while_waiting_takes_no_turn() -> None:
    turns = Turns(1)
    async with turns.taken("a", 60.0):
        waiting = asyncio.create_task(turns.taken("a", 60.0).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with turns.taken("a", 60.0):
        pass
    assert len(turns) == 0


@on_a_loop
async def test_callers_without_a_name_or_a_limit_never_wait() -> None:
    for turns, caller in ((Turns(1), ""), (Turns(0), "a")):
        async with turns.taken(caller, 0.0), turns.taken(caller, 0.0), turns.taken(caller, 0.0):
            assert len(turns) == 0


def test_amounts_are_counted_over_all_requests_of_a_caller() -> None:
    amounts = Amounts(10)
    with amounts.using("a") as first, amounts.using("b") as other:
        assert first(6)
        with amounts.using("a") as second:
            assert second(4)
            assert not second(1)
            assert not first(1)
            assert other(10)
        assert first(4)
        assert not first(1)
    with amounts.using("a") as again, amounts.using("") as nobody:
        assert again(10)
        assert nobody(1_000)
    with Amounts(0).using("a") as unbounded:
        assert unbounded(1_000)


class Caller(str):
    """A name that can be weakly referenced."""


def test_callers_without_requests_are_forgotten() -> None:
    amounts = Amounts(10)
    caller = Caller("a")
    remembered = weakref.ref(caller)
    with amounts.using(caller) as take:
        assert take(5)
    del caller, take
    assert remembered() is None


@pytest.mark.parametrize(
    ("client", "network"),
    [
        (None, ""),
        (("192.0.2.7", 1234), "192.0.2.7"),
        (("::ffff:192.0.2.7", 1234), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1234), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 1234), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 1234), "fe80::/64"),
        (("testclient", 1234), "testclient"),
    ],
)
def test_the_network_of_a_client(client: tuple[str, int] | None, network: str) -> None:
    assert client_network({"type": "http", "client": client}) == network
