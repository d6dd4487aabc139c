"""A progress line on a terminal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

BAR_CELLS = 24
# Least seconds between two updates of the terminal.
REDRAW_SECONDS = 0.1
# Before this fraction and time, the pace allows no estimate of the remaining time.
MIN_FRACTION = 0.02
MIN_SECONDS = 1.0


class ProgressLine:
    """A line that overwrites itself and disappears at the end, so that other output stays readable.

    Args:
        stream: a terminal; nothing is written to other streams.
        enabled: False to write nothing to a terminal either.
        clock: returns monotonic seconds.
    """

    def __init__(self, stream: TextIO, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._enabled = enabled and stream.isatty()
        self._clock = clock
        self._label: str | None = None
        self._begun = 0.0
        self._drawn_at: float | None = None
        self._note = ""

    def update(self, label: str, fraction: float, note: str = "") -> None:
        """Draw the line. Frequent updates with the same note are skipped.

        Args:
            label: the name of the task; a new label restarts the estimate of the remaining time.
            fraction: the progress of the task, from 0 to 1.
            note: the current step of the task.
        """
        if not self._enabled:
            return
        now = self._clock()
        if label != self._label:
            self._label, self._begun, self._drawn_at = label, now, None
        soon = self._drawn_at is not None and now - self._drawn_at < REDRAW_SECONDS
        if soon and note == self._note and fraction < 1:
            return
        self._drawn_at, self._note = now, note
        left, elapsed = "", now - self._begun
        if MIN_FRACTION <= fraction < 1 and elapsed >= MIN_SECONDS:
            left = f"  {clock_time(elapsed * (1 - fraction) / fraction)} left"
        cells = int(fraction * BAR_CELLS)
        tail = f" [{'#' * cells}{'.' * (BAR_CELLS - cells)}] {fraction:4.0%}{f'  {note}' if note else ''}{left}"
        columns = shutil.get_terminal_size().columns - 1
        label = _shortened(label, columns - len(tail))
        self._stream.write(f"\r{(label + tail)[:columns]:<{columns}}\r")
        self._stream.flush()

    def clear(self) -> None:
        """Remove the line; call this before other output."""
        if self._drawn_at is not None:
            self._stream.write(f"\r{' ' * (shutil.get_terminal_size().columns - 1)}\r")
            self._stream.flush()
        self._label = self._drawn_at = None

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *ignored: object) -> None:
        self.clear()


def clock_time(seconds: float) -> str:
    """Seconds as ``0:07``, ``12:30`` or ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _shortened(text: str, columns: int) -> str:
    if len(text) <= columns:
        return text
    return f"{text[: columns - 3]}..." if columns > 6 else ""
