"""The server's log on standard error, as text for people or as JSON for machines.

The fields of a record (``extra``) follow its message. A client cannot forge a log line: characters that do not print
are escaped, and the lines of a traceback are indented.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO

from whisper_api.config import Config

# The id of the current request. Every log record of the request carries the id.
current_request: ContextVar[str] = ContextVar("current_request", default="")
# The ids of the current trace and span as hexadecimal digits; None while traces are off. Every log record carries them.
current_trace: ContextVar[tuple[str, str] | None] = ContextVar("current_trace", default=None)

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


# In each period, at most this many lines of a kind are written, when clients can cause the lines.
REPEATED_LINES = 50
REPEATED_SECONDS = 60.0
MAX_KINDS = 1000


def _by_message(record: logging.LogRecord) -> Hashable:
    return record.levelno, record.msg


class Repeats(logging.Filter):
    """Limits repeated log lines. Add this filter to loggers whose lines clients can cause.

    The first lines of a kind are written, and later lines are counted. A period begins with the first line. At its end,
    the last line is written with ``repeats``, the number of lines that were left out.

    Args:
        lines: number of lines of a kind that are written in a period.
        seconds: length of the period.
        kind: returns the kind of a line, or None to always write the line. By default, the kind is the level and the
            message without its arguments.
    """

    def __init__(
        self,
        lines: int = REPEATED_LINES,
        seconds: float = REPEATED_SECONDS,
        kind: Callable[[logging.LogRecord], Hashable | None] = _by_message,
    ) -> None:
        super().__init__()
        self._lines = lines
        self._seconds = seconds
        self._kind = kind
        self._lock = threading.Lock()
        self._seen: dict[Hashable, _Seen] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written now."""
        kind = None if hasattr(record, "repeats") else self._kind(record)
        if kind is None:
            return True
        now = time.monotonic()
        with self._lock:
            seen = self._seen.get(kind)
            if seen is None or now >= seen.until:
                if len(self._seen) >= MAX_KINDS:
                    self._seen = {kind: each for kind, each in self._seen.items() if now < each.until}
                seen = self._seen[kind] = _Seen(until=now + self._seconds, last=record)
            seen.lines += 1
            seen.last = record
            if seen.lines == self._lines + 1:
                timer = threading.Timer(seen.until - now, self._tell, (seen,))
                timer.daemon = True
                timer.start()
            return seen.lines <= self._lines

    def _tell(self, seen: _Seen) -> None:
        with self._lock:
            record = seen.last
            record.repeats = seen.lines - self._lines
        logging.getLogger(record.name).handle(record)


@dataclass
class _Seen:
    """The lines of a kind in a period: the end of the period, the number of lines, and the last line."""

    until: float
    last: logging.LogRecord
    lines: int = 0


def set_up(config: Config, stream: TextIO | None = None) -> None:
    """Configure the log of the whole process.

    Args:
        config: ``log_level`` applies to this package; libraries log warnings and errors only.
        stream: the destination; None for standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines() if config.log_format == "json" else _TextLines())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(config)
    logging.captureWarnings(True)
    if config.log_level != "debug":
        # Libraries address these warnings to programmers; operators of the server cannot act on them.
        warnings.simplefilter("ignore")
    threading.excepthook = _log_uncaught


def set_level(config: Config) -> None:
    """Change the level of the log.

    Args:
        config: ``log_level`` applies to this package; libraries log warnings and errors only.
    """
    level = logging.getLevelName(config.log_level.upper())
    logging.getLogger().setLevel(max(level, logging.WARNING))
    logging.getLogger("whisper_api").setLevel(level)


def _log_uncaught(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_value is not None and not isinstance(uncaught.exc_value, SystemExit):
        thread = uncaught.thread.name if uncaught.thread else "?"
        logging.getLogger(__name__).critical(
            "a thread has ended", exc_info=uncaught.exc_value, extra={"thread_name": thread}
        )


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    # Libraries keep values of their own under names with an underscore: Ray does, once it is imported.
    found = {
        name: value
        for name, value in record.__dict__.items()
        if name not in _STANDARD and not name.startswith("_") and value is not None
    }
    request = current_request.get()
    if request:
        found.setdefault("request_id", request)
    trace = current_trace.get()
    if trace is not None:
        found["trace_id"], found["span_id"] = trace
    return found


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _trace(record: logging.LogRecord) -> str:
    parts = traceback.format_exception(*record.exc_info) if record.exc_info else []
    return "".join(parts) + (record.stack_info or "")


class _TextLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), record.levelname, record.name, _printable(record.getMessage())]
        words += [f"{_printable(name)}={_as_word(value)}" for name, value in _extras(record).items()]
        lines = [f"    {_printable(line)}" for line in _trace(record).splitlines()]
        return "\n".join([" ".join(words), *lines])


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in _extras(record).items() if name not in ("time", "level", "logger")},
        }
        if trace := _trace(record):
            fields["exception"] = trace
        # json.dumps escapes all but ASCII, so line separators and lone surrogates cannot appear.
        return json.dumps(fields, default=str)


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _as_word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and text.isprintable() and not any(c in ' "=\\' for c in text):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_printable(quoted)}"'
