"""Which engine gets a job, and where engines belong."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from whisper_api.cluster.placement import LOAD_SECONDS, Load, Node, Seat, choose, parse_resources, posts


def seat(name: str, *lengths: float, capacity: int = 2, **values: object) -> Seat:
    found = Seat(name, capacity)
    for number, seconds in enumerate(lengths):
        found.loads[number] = Load(number, seconds)
    for key, value in values.items():
        setattr(found, key, value)
    return found


def chosen(seats: list[Seat], load: Load) -> str | None:
    found = choose(seats, load)
    return found.name if found is not None else None


def test_the_engine_with_the_least_audio_gets_the_job() -> None:
    seats = [seat("a", 3600.0), seat("b", 10.0), seat("c", 60.0)]
    assert chosen(seats, Load(9, 10.0)) == "b"
    seats[0].loads[0].fraction = 1.0
    assert chosen(seats, Load(9, 10.0)) == "a"


def test_a_short_job_does_not_queue_behind_a_long_one_when_another_engine_is_free() -> None:
    assert chosen([seat("a", 7200.0), seat("b")], Load(9, 5.0)) == "b"


def test_a_resident_model_is_worth_some_audio_but_not_any_amount() -> None:
    ready, cold = seat("ready", 30.0, resident=frozenset({"m"})), seat("cold")
    assert chosen([cold, ready], Load(9, 10.0, "m")) == "ready"
    ready.loads[0].audio_seconds = LOAD_SECONDS * 2
    assert chosen([cold, ready], Load(9, 10.0, "m")) == "cold"


def test_an_engine_that_lacks_a_model_comes_last() -> None:
    lacking = seat("lacking", lacks={"x": ("m",)})
    assert chosen([lacking, seat("busy", 500.0)], Load(9, 10.0, needs="x")) == "busy"
    assert chosen([lacking], Load(9, 10.0, needs="x")) == "lacking"


def test_full_and_closed_engines_get_nothing() -> None:
    assert chosen([seat("full", 1.0, 1.0), seat("closed", open=False)], Load(9, 1.0)) is None


def test_a_job_that_must_be_alone_reserves_an_engine_until_it_is_empty() -> None:
    a, b = seat("a", 100.0), seat("b", 10.0)
    alone = Load(7, 10.0, alone=True)
    assert choose([a, b], alone) is None
    assert (a.reserved, b.reserved) == (None, 7)
    assert chosen([a, b], Load(8, 10.0)) == "a"
    b.loads.clear()
    assert choose([a, b], alone) is b
    b.loads[7] = alone
    assert b.reserved is None
    assert chosen([b], Load(8, 10.0)) is None


@given(st.lists(st.floats(1, 7200), min_size=1, max_size=40), st.integers(1, 8))
def test_no_engine_gets_more_than_its_share_and_a_job(lengths: list[float], engines: int) -> None:
    """The bound of list scheduling (Graham, 1969)."""
    seats = [seat(str(number), capacity=100) for number in range(engines)]
    for number, seconds in enumerate(lengths):
        load = Load(number, seconds)
        found = choose(seats, load)
        assert found is not None
        found.loads[number] = load
    total = sum(each.queued for each in seats)
    assert max(each.queued for each in seats) <= total / engines + max(lengths) + 5.0 + 1e-6


MODEL, NEEDS = "base", "x"
lengths_of_jobs = st.lists(st.floats(1.0, 7200.0), max_size=3)


@st.composite
def seats_of_all_kinds(draw: st.DrawFn) -> list[Seat]:
    """Engines that are full or not, closed or not, with the model in memory, on disk, or neither."""
    found = []
    for number in range(draw(st.integers(1, 6))):
        where = draw(st.sampled_from(["memory", "disk", "nowhere", "out of reach"]))
        missing = where in ("nowhere", "out of reach")
        found.append(
            seat(
                str(number),
                *draw(lengths_of_jobs),
                open=draw(st.sampled_from([True, True, True, False])),
                resident=frozenset({MODEL} if where == "memory" else ()),
                lacks={NEEDS: (MODEL,)} if missing else {},
                unable={MODEL} if where == "out of reach" else set(),
            )
        )
    return found


def lacks(each: Seat) -> bool:
    return bool(each.lacks)


def to_load(each: Seat) -> float:
    return each.queued + (0.0 if MODEL in each.resident else LOAD_SECONDS)


@given(seats_of_all_kinds(), st.floats(1.0, 7200.0))
def test_a_job_goes_to_the_least_queued_audio_of_those_that_have_or_can_load_its_model(
    seats: list[Seat], seconds: float
) -> None:
    load = Load(99, seconds, MODEL, NEEDS)
    able = [each for each in seats if each.open and not each.unable] or [each for each in seats if each.open]
    room = [each for each in able if each.has_room(load)]
    found = choose(seats, load)
    assert (found is None) == (not room)
    if found is None:
        return
    assert found in room
    # A machine without the model's files is taken only while those with them are full.
    candidates = [each for each in room if not lacks(each)] or room
    assert found in candidates
    assert to_load(found) == min(map(to_load, candidates))


@given(seats_of_all_kinds(), st.floats(1.0, 60.0))
def test_no_job_queues_behind_a_long_one_while_another_engine_with_its_model_is_free(
    seats: list[Seat], seconds: float
) -> None:
    load = Load(99, seconds, MODEL, NEEDS)
    free = [each for each in seats if each.has_room(load) and not each.loads and not lacks(each)]
    found = choose(seats, load)
    if any(MODEL in each.resident for each in free):
        assert found is not None
        assert not found.loads
    elif free:
        # At most what loading the model is worth.
        assert found is not None
        assert found.queued <= LOAD_SECONDS


def test_a_job_waits_for_a_full_engine_rather_than_fail_where_its_model_cannot_be_had() -> None:
    full, unable = seat("full", 1.0, 1.0), seat("unable", lacks={NEEDS: (MODEL,)}, unable={MODEL})
    assert chosen([full, unable], Load(9, 1.0, MODEL, NEEDS)) is None
    assert chosen([full, unable], Load(9, 1.0, "other", "y")) == "unable"
    full.loads.popitem()
    assert chosen([full, unable], Load(9, 1.0, MODEL, NEEDS)) == "full"
    # Without any other engine, the job says itself what is missing.
    full.open = False
    assert chosen([full, unable], Load(9, 1.0, MODEL, NEEDS)) == "unable"


def nodes(*resources: dict[str, float]) -> list[Node]:
    return [Node(str(number), f"host{number}", each) for number, each in enumerate(resources)]


def test_each_gpu_gets_an_engine_and_machines_without_none() -> None:
    found = posts(nodes({"CPU": 16, "GPU": 2}, {"CPU": 8}, {"CPU": 8, "GPU": 1}), {})
    assert [(each.node.name, each.number) for each in found] == [("host0", 0), ("host2", 0), ("host0", 1)]
    assert found[0].needs == {"GPU": 1.0, "CPU": 8.0}
    assert len({each.name for each in found}) == 3


def test_each_machine_without_a_gpu_gets_an_engine_with_all_of_its_processors() -> None:
    found = posts(nodes({"CPU": 4}, {"CPU": 2}), {})
    assert [(each.node.name, dict(each.needs)) for each in found] == [("host0", {"CPU": 4.0}), ("host1", {"CPU": 2.0})]


def test_a_number_of_engines_is_spread_over_the_machines() -> None:
    found = posts(nodes({"CPU": 4}, {"CPU": 4}), {}, workers=3)
    assert sorted(each.node.name for each in found) == ["host0", "host0", "host1"]
    assert posts(nodes({"CPU": 4, "GPU": 4}), {}, workers=2)[1].needs == {"GPU": 1.0, "CPU": 1.0}
    assert posts([], {}, workers=3) == []


def test_own_resources_choose_machines_and_bound_engines() -> None:
    machines = nodes({"CPU": 8, "large": 2}, {"CPU": 8})
    assert [each.node.name for each in posts(machines, parse_resources("large=1"))] == ["host0", "host0"]
    assert [each.needs for each in posts(machines, parse_resources("large=2, CPU=3"))] == [{"large": 2.0, "CPU": 3.0}]
    assert len(posts(nodes({"CPU": 8, "GPU": 1}), parse_resources("GPU=0.5"))) == 2
    assert posts(nodes({"CPU": 8, "GPU": 1}), parse_resources("GPU=0"))[0].needs == {"CPU": 8.0}
