"""Log lines of the server: as text for people, or as JSON for machines; on standard error.

What comes with a record (``extra``) is printed after its message. Nothing that a client sends can make a second line or
look like one: characters that do not print are escaped, and the lines of a traceback are indented.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
import warnings
from contextvars import ContextVar
from typing import Any, TextIO

from whisper_api.config import Config

__all__ = ["current_request", "set_up"]

# The id of the request that the running code works for; every record made meanwhile carries it.
current_request: ContextVar[str] = ContextVar("current_request", default="")

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


def set_up(config: Config, stream: TextIO | None = None) -> None:
    """Log as configured, from now on and in the whole process.

    Args:
        config: ``log_level`` counts for this package; libraries are heard from warnings on.
        stream: where to write; None for standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonLines() if config.log_format == "json" else _TextLines())
    level = logging.getLevelName(config.log_level.upper())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("whisper_api").setLevel(level)
    logging.captureWarnings(True)
    if level > logging.DEBUG:
        # What libraries warn their callers of is nothing that those who run the server can act on.
        warnings.simplefilter("ignore")
    threading.excepthook = _log_uncaught


def _log_uncaught(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_value is not None and not isinstance(uncaught.exc_value, SystemExit):
        thread = uncaught.thread.name if uncaught.thread else "?"
        logging.getLogger(__name__).critical(
            "a thread has ended", exc_info=uncaught.exc_value, extra={"thread_name": thread}
        )


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    found = {name: value for name, value in record.__dict__.items() if name not in _STANDARD and value is not None}
    request = current_request.get()
    if request:
        found.setdefault("request_id", request)
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
        # As ASCII: neither a line separator nor half a surrogate pair can come through.
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
