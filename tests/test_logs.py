"""Log lines: each record is one line, for any content."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.config import Config
from whisper_api.logs import MAX_KINDS, Repeats, current_request, set_up

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+ .*")
FORMATS: tuple[Literal["text", "json"], ...] = ("text", "json")
# Half a surrogate pair too: file names on disk may hold them.
ANYTHING = st.text(st.characters(codec=None, categories=None), max_size=40)


def lines(
    log: Callable[[logging.Logger], None], log_format: Literal["text", "json"] = "text", level: Any = "info"
) -> list[str]:
    """The lines that are written while a function logs."""
    stream = io.StringIO()
    set_up(Config(log_format=log_format, log_level=level), stream)
    log(logging.getLogger("whisper_api.jobs"))
    text = stream.getvalue()
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


def test_a_line_of_text_has_time_level_logger_message_and_what_came_with_it() -> None:
    extra = {"job_id": "4d1c", "seconds": 1.23456789, "audio_seconds": 30}
    (line,) = lines(lambda log: log.info("job %s", "completed", extra=extra))
    assert LINE.fullmatch(line)
    assert line.endswith(" INFO whisper_api.jobs job completed job_id=4d1c seconds=1.23457 audio_seconds=30")


def test_a_line_of_json_has_the_same() -> None:
    # A library's own value stands under a name with an underscore.
    extra = {"job_id": "4d1c", "seconds": 1.25, "ok": True, "nothing": None, "_private": 1}
    (line,) = lines(lambda log: log.warning("job %s", "failed", extra=extra), "json")
    fields = json.loads(line)
    time = fields.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert fields == {
        "level": "warning",
        "logger": "whisper_api.jobs",
        "message": "job failed",
        "job_id": "4d1c",
        "seconds": 1.25,
        "ok": True,
    }


@pytest.mark.parametrize("log_format", FORMATS)
@given(message=ANYTHING, value=ANYTHING)
def test_every_record_is_one_line(log_format: Literal["text", "json"], message: str, value: str) -> None:
    (line,) = lines(lambda log: log.info("%s", message, extra={"path": value}), log_format)
    assert line.isprintable()
    if log_format == "json":
        assert json.loads(line)["message"] == message
        assert json.loads(line)["path"] == value
    else:
        assert LINE.fullmatch(line)


@pytest.mark.parametrize("value", ["a b", 'a" level=ERROR', "a=b", "", "back\\slash"])
def test_a_value_that_is_not_one_word_is_quoted(value: str) -> None:
    (line,) = lines(lambda log: log.info("x", extra={"path": value}))
    quoted = line.split("path=", 1)[1]
    assert json.loads(quoted) == value


@pytest.mark.parametrize("log_format", FORMATS)
def test_a_traceback_cannot_look_like_another_line(log_format: Literal["text", "json"]) -> None:
    def fail(log: logging.Logger) -> None:
        try:
            raise ValueError("first\n2025-01-01T00:00:00.000Z INFO whisper_api.jobs forged\rsecond")
        except ValueError:
            log.exception("it failed")

    first, *rest = lines(fail, log_format)
    assert "it failed" in first
    if log_format == "json":
        assert not rest
        assert "ValueError: first\n" in json.loads(first)["exception"]
    else:
        assert any("ValueError: first" in line for line in rest)
        assert all(line.startswith("    ") and line.isprintable() for line in rest)


@pytest.mark.parametrize("log_format", FORMATS)
def test_the_id_of_the_request_comes_along(log_format: Literal["text", "json"]) -> None:
    def log_within(log: logging.Logger) -> None:
        token = current_request.set("abc")
        log.info("inside")
        log.info("its own", extra={"request_id": "other"})
        current_request.reset(token)
        log.info("outside")

    inside, own, outside = lines(log_within, log_format)
    assert "abc" in inside
    assert "other" in own
    assert "abc" not in own
    assert "request_id" not in outside


def test_libraries_are_heard_from_warnings_on() -> None:
    def log_all(log: logging.Logger) -> None:
        log.debug("ours, too much")
        log.info("ours")
        other = logging.getLogger("some.library")
        other.info("theirs, too much")
        other.warning("theirs")
        warnings.warn("to its callers", UserWarning, stacklevel=1)

    assert [line.split(" ", 3)[3] for line in lines(log_all)] == ["ours", "theirs"]


def test_the_level_is_that_of_the_configuration() -> None:
    def log_all(log: logging.Logger) -> None:
        log.debug("debug")
        log.warning("warning")
        log.error("error")

    assert len(lines(log_all, level="debug")) == 3
    assert len(lines(log_all, level="error")) == 1


def test_setting_up_again_replaces_what_was() -> None:
    first = io.StringIO()
    set_up(Config(), first)
    (line,) = lines(lambda log: log.info("once"))
    assert "once" in line
    assert not first.getvalue()


def test_a_thread_that_fails_is_in_the_log() -> None:
    def fail() -> None:
        raise ValueError("unheard")

    def run(log: logging.Logger) -> None:
        thread = threading.Thread(target=fail, name="worker-7")
        thread.start()
        thread.join()

    first, *trace = lines(run)
    assert "CRITICAL" in first
    assert "worker-7" in first
    assert "unheard" in trace[-1]


# --- lines that come too often ---


class Lines(logging.Handler):
    """Keeps what is logged to a logger of its own, through a filter."""

    def __init__(self, repeats: Repeats) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.logger = logging.Logger(f"test.{id(self)}", logging.DEBUG)  # noqa: LOG001 - outside of the hierarchy
        # As the filter finds it again, by its name.
        logging.getLogger(self.logger.name).addHandler(self)
        self.logger.addHandler(self)
        self.logger.addFilter(repeats)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.records) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_lines_that_come_too_often_are_counted_and_none_is_lost() -> None:
    lines = Lines(Repeats(lines=3, seconds=0.5))
    for number in range(100_000):
        lines.logger.warning("connection %d was lost", number, extra={"number": number})
    lines.wait_for(4)
    written = len(lines.records)
    assert written < 1000, "a few in each period, however many come"
    while sum(getattr(record, "repeats", 1) for record in lines.records) < 100_000:
        lines.wait_for(written + 1)
        written = len(lines.records)
    assert sum(getattr(record, "repeats", 1) for record in lines.records) == 100_000
    last = lines.records[-1]
    assert last.getMessage() == "connection 99999 was lost", "the last one stands for those before it"


def test_lines_of_another_kind_or_level_are_written() -> None:
    lines = Lines(Repeats(lines=1, seconds=3600))
    for _ in range(5):
        lines.logger.warning("one %s", "x")
        lines.logger.error("one %s", "x")
        lines.logger.warning("two")
    assert [(record.levelname, record.msg) for record in lines.records] == [
        ("WARNING", "one %s"),
        ("ERROR", "one %s"),
        ("WARNING", "two"),
    ]


def test_a_kind_of_ones_own_and_lines_that_are_always_written() -> None:
    lines = Lines(Repeats(lines=1, seconds=3600, kind=lambda record: getattr(record, "status", None)))
    for status in (401, 401, None, None, 404):
        lines.logger.info("request", extra={} if status is None else {"status": status})
    assert [getattr(record, "status", None) for record in lines.records] == [401, None, None, 404]


def test_a_period_ends() -> None:
    lines = Lines(Repeats(lines=1, seconds=0.05))
    for _ in range(3):
        lines.logger.info("now and then")
        time.sleep(0.1)
    assert len(lines.records) == 3


def test_kinds_of_lines_are_forgotten_when_their_period_has_ended() -> None:
    repeats = Repeats(lines=1, seconds=0.0)
    in_memory: weakref.WeakSet[logging.LogRecord] = weakref.WeakSet()
    for number in range(5 * MAX_KINDS):
        record = logging.makeLogRecord({"msg": f"message {number}"})
        in_memory.add(record)
        assert repeats.filter(record)
    assert len(in_memory) <= MAX_KINDS + 1
