"""Responses of a server: their values, their named errors, and when to retry. Sends nothing itself."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import msgspec

from whisper_api import errors
from whisper_api.errors import InvalidInput, InvalidOption, Portable, RequestError, WhisperApiError

T = TypeVar("T")

EVENT_STREAM = "text/event-stream"
RETRIED = frozenset({429, 502, 503, 504})
# Pauses between attempts double from the first to the longest, in seconds.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
# The client does not wait for a longer Retry-After: the caller gets the error and decides.
LONGEST_RETRY_AFTER = 300.0

# The server's error codes to the classes of errors; a code of several classes stands for one that says what to do.
KINDS: dict[str, type[WhisperApiError]] = {code: kind for kind, (_, code) in errors.RULES.items()} | {
    "device_unavailable": errors.DeviceUnavailable,
    "draining": errors.Draining,
    "model_unavailable": errors.ModelUnavailable,
}


class Response(NamedTuple):
    """A response with its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after(self) -> float:
        """Seconds of the header Retry-After (RFC 9110, 10.2.3: a number or a date); 0 without it."""
        value = self.headers.get("Retry-After", "").strip()
        if value.isdecimal():
            return float(value)
        try:
            from email.utils import parsedate_to_datetime

            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return 0.0


class RetryLater(Portable):
    """The request may succeed later.

    Args:
        reason: the error to raise when the client does not retry.
        retry_after: seconds that the server asked to wait.
    """

    def __init__(self, reason: WhisperApiError, retry_after: float = 0.0) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.retry_after = retry_after


def outcome(response: Response, job_id: str) -> Response:
    """The response itself when it is a success.

    Args:
        response: response of the server.
        job_id: the job that errors name.

    Raises:
        RetryLater: the server is busy, for no longer than ``LONGEST_RETRY_AFTER``.
        WhisperApiError: the server refused; the error's class follows from the response's code.
    """
    if 200 <= response.status < 300:
        return response
    error = _error(response, job_id)
    if response.status in RETRIED and response.retry_after <= LONGEST_RETRY_AFTER:
        raise RetryLater(error, response.retry_after)
    raise error


def check_stream(status: int, headers: Mapping[str, str]) -> None:
    """Check that a response is a stream of events.

    Args:
        status: HTTP status of the response.
        headers: headers of the response.

    Raises:
        RequestError: the media type is another one, so that the server is not a Whisper API server.
    """
    media_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != EVENT_STREAM:
        reason = f"it is {media_type or 'nothing'}, not {EVENT_STREAM}"
        raise RequestError(f"the answer is not that of a Whisper API server: {reason}", status)


def unreachable(url: str, cause: BaseException) -> RetryLater:
    """The error for a connection that failed; a retry may help.

    Args:
        url: URL of the server.
        cause: the error of the HTTP library.
    """
    error = RequestError(f"{url} cannot be reached: {_reason(cause)}")
    error.__cause__ = cause
    return RetryLater(error)


def untrusted(url: str) -> RequestError:
    """The error for a certificate that is not trusted; a retry does not help."""
    return RequestError(f"{url} has no certificate that is trusted here")


class _Problem(msgspec.Struct):
    detail: str = ""
    code: str = ""


def pause_before(attempt: int, retry_after: float) -> float:
    """Seconds to wait before a retry.

    Args:
        attempt: number of retries before this one.
        retry_after: seconds that the server asked to wait.
    """
    longest = FIRST_PAUSE if retry_after else min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt, 16))
    return retry_after + random.uniform(0.5, 1.0) * longest


def decoded(response: Response, kind: type[T]) -> T:
    """The value of a response's body.

    Args:
        response: response of the server.
        kind: type of the value.

    Raises:
        RequestError: the body is not JSON of this type.
    """
    try:
        return msgspec.json.decode(response.body, type=kind)
    except msgspec.MsgspecError as error:
        raise RequestError(f"the answer is not that of a Whisper API server: {error}", response.status) from error


def _error(response: Response, job_id: str) -> WhisperApiError:
    """The named error of a response."""
    try:
        problem = msgspec.json.decode(response.body, type=_Problem)
    except msgspec.MsgspecError:
        problem = _Problem()
    code, detail = problem.code, problem.detail
    if not detail:
        location = response.headers.get("Location")
        detail = f"the server answered {response.status}{f' and names {location}' if location else ''}"
    kind = KINDS.get(code, RequestError)
    if kind is RequestError:
        return RequestError(detail, response.status, code)
    if issubclass(kind, (errors.JobNotFound, errors.JobIsProcessing)):
        return kind(job_id)
    if issubclass(kind, errors.JobError):
        return kind(job_id, detail)
    if issubclass(kind, errors.Busy):
        return kind(detail, response.retry_after)
    if kind is InvalidOption:
        field, colon, message = detail.partition(": ")
        return InvalidOption(field, message) if colon and field.isidentifier() else InvalidInput(detail)
    return kind(detail.removeprefix("Speaker not found: ") if kind is errors.SpeakerNotFound else detail)


def _reason(error: BaseException) -> str:
    """The operating system's message for people; requests and httpx wrap it in errors of their own."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, TimeoutError) or type(found).__name__.endswith("Timeout"):
            return "no answer in time"
        if isinstance(found, OSError) and found.strerror:
            # asyncio replaces the system's message by a text of its own, but keeps the error number.
            if found.errno is None or isinstance(found, socket.gaierror):
                return found.strerror
            return os.strerror(found.errno)
        nested = getattr(found, "exceptions", ())
        waiting += [*found.args, *nested, getattr(found, "reason", None), found.__cause__, found.__context__]
    return "the connection was closed"
