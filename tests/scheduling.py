"""How the processes of a run share the tests, also when one of them dies."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

__all__ = ["SHARED", "Units", "unit_of"]

# Folders whose tests run one after the other in one process, since they share a browser or a cluster, which would start
# again for each file otherwise.
SHARED = ("tests/cluster", "tests/page")


def unit_of(nodeid: str) -> str:
    """The folder or file whose tests run one after the other in one process."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in SHARED if file.startswith(f"{folder}/")), file)


class Units(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each process one unit after the other.

    When a process dies, xdist itself hands out all units that the process ever had. Those that had ended are empty:
    the process that gets one waits for ever, and the run with it. It also begins with the test that ended the process.
    """

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def remove_node(self, node: Any) -> str | None:
        """Take back the tests that a dead process had not begun.

        Returns:
            The test that ran when the process died, which fails and is not run again.
        """
        fatal: str | None = None
        left: dict[str, dict[str, bool]] = {}
        for unit, tests in self.assigned_work.pop(node).items():
            waiting = [test for test, ended in tests.items() if not ended]
            if waiting and fatal is None:
                fatal = waiting.pop(0)
            if waiting:
                left[unit] = dict.fromkeys(waiting, False)
        rest = dict(self.workqueue)
        self.workqueue.clear()
        self.workqueue.update(left | rest)
        for other in self.nodes:
            self._reschedule(other)
        return fatal

    def _reschedule(self, node: Any) -> None:
        # A process that replaces another one gets its first unit once it has collected the tests.
        if node not in self.registered_collections:
            return
        super()._reschedule(node)
        # A process begins a test when it has the next one, or knows that none comes.
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)
