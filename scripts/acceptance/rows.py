"""The rows of the report: what was expected, what was found, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Findings", "Row", "read"]

Verdict = Literal["pass", "fail", "measured", "skipped"]
# The last line of a probe that has ended.
END = "end"


@dataclass(frozen=True)
class Row:
    """A line of the report.

    Attributes:
        what: what was looked at.
        expected: what had to be found; empty for a figure without a bound.
        found: what was found; for ``skipped``, the reason.
        verdict: ``measured`` for a figure that has no bound, or whose bound holds only on a GPU.
        value: the figure; None where there is none.
    """

    what: str
    expected: str
    found: str
    verdict: Verdict
    value: float | None = None


class Findings:
    """Writes each row of a probe to a file at once, so that a crash loses none.

    Args:
        path: the file.
        judges: False where bounds do not hold, since there is no GPU: figures are then only measured.
    """

    def __init__(self, path: Path, *, judges: bool) -> None:
        self._path = path
        self._judges = judges

    def figure(
        self,
        what: str,
        value: float,
        unit: str = "",
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        everywhere: bool = False,
        note: str = "",
    ) -> None:
        """Record a figure.

        Args:
            what: what was measured.
            value: the figure.
            unit: of the figure.
            at_least: lower bound of the figure; None for none.
            at_most: upper bound.
            everywhere: whether the bounds hold on a CPU too.
            note: words after the figure.
        """
        bounds = [f"at least {at_least:g}"] if at_least is not None else []
        bounds += [f"at most {at_most:g}"] if at_most is not None else []
        expected = " and ".join(bounds) + f" {unit}" * bool(bounds and unit)
        # A figure that is not a number is within no bounds.
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most) and value == value
        judged = bool(bounds) and (self._judges or everywhere)
        found = " ".join(filter(None, (f"{value:.4g}", unit, note)))
        self._write(Row(what, expected, found, ("pass" if met else "fail") if judged else "measured", value))

    def fact(self, what: str, expected: str, found: str, met: bool) -> None:
        """Record something that must be so on every device."""
        self._write(Row(what, expected, found, "pass" if met else "fail"))

    def note(self, what: str, found: str) -> None:
        """Record a description."""
        self._write(Row(what, "", found, "measured"))

    def skip(self, what: str, reason: str) -> None:
        """Record that something cannot be looked at here, and why."""
        self._write(Row(what, "", reason, "skipped"))

    def end(self) -> None:
        """Record that the probe has ended."""
        self._append(json.dumps(END))

    def _write(self, row: Row) -> None:
        self._append(json.dumps(asdict(row)))

    def _append(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def read(path: Path) -> tuple[list[Row], bool]:
    """The rows that a probe has recorded, and whether it has ended."""
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    # A process that was killed may have left half a line.
    whole = [json.loads(line) for line in lines if line.endswith(("}", '"'))]
    return [Row(**line) for line in whole if line != END], END in whole
