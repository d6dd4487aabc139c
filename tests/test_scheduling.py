"""No test is lost, run twice, or waited for without end, whichever processes of a run die, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from scheduling import SHARED, Units, unit_of

TESTS = [
    *(f"{SHARED[0]}/test_{name}.py::test_{number}" for name in "ab" for number in range(3)),
    *(f"tests/test_{name}.py::test_{number}" for name in "cdefgh" for number in range(1 + ord(name) % 3)),
]
PROCESSES = 3


class Process:
    """A process of xdist: it begins a test when it has the next one, or knows that none comes."""

    def __init__(self) -> None:
        self.queue: list[int] = []
        self.shutting_down = False
        self.gateway = SimpleNamespace(id="process")

    def send_runtest_some(self, indices: list[int]) -> None:
        assert not self.shutting_down
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def runs(self) -> bool:
        return len(self.queue) > (0 if self.shutting_down else 1)


class Run:
    """A run of the tests, whose processes run and die as an example says."""

    def __init__(self) -> None:
        config: Any = SimpleNamespace(
            getvalue=lambda name: [f"{PROCESSES}*popen"] if name == "tx" else None,
            option=SimpleNamespace(loadscopereorder=False),
        )
        self.units = Units(config)
        self.ended: list[str] = []
        self.processes = [Process() for _ in range(PROCESSES)]
        for process in self.processes:
            self.units.add_node(process)
        for process in self.processes:
            self.units.add_node_collection(process, TESTS)
        self.units.schedule()
        self.collecting: list[Process] = []

    def step(self, process: Process) -> None:
        index = process.queue.pop(0)
        self.ended.append(TESTS[index])
        self.units.mark_test_complete(process, index)

    def die(self, process: Process) -> None:
        self.processes.remove(process)
        running = TESTS[process.queue[0]] if process.queue else None
        assert self.units.remove_node(process) == running
        if running is not None:
            self.ended.append(running)
        new = Process()
        self.units.add_node(new)
        self.collecting.append(new)

    def collected(self) -> None:
        new = self.collecting.pop(0)
        self.processes.append(new)
        self.units.add_node_collection(new, TESTS)
        self.units.schedule()


@given(st.data())
def test_each_test_ends_once_whichever_processes_die(data: st.DataObject) -> None:
    run = Run()
    deaths = data.draw(st.integers(0, 4))
    while True:
        able = [process for process in run.processes if process.runs]
        moves: list[tuple[str, Process | None]] = [("step", each) for each in able]
        moves += [("die", each) for each in run.processes if deaths and (each.queue or not each.shutting_down)]
        moves += [("collected", None)] if run.collecting else []
        if not able and not run.collecting:
            break
        name, process = data.draw(st.sampled_from(moves))
        deaths -= name == "die"
        getattr(run, name)(*([process] if process else []))
    assert sorted(run.ended) == sorted(TESTS)
    assert all(process.shutting_down for process in run.processes)


def test_a_shared_folder_is_one_unit_and_each_other_file_one() -> None:
    assert {unit_of(test) for test in TESTS} == {SHARED[0], *(f"tests/test_{name}.py" for name in "cdefgh")}
