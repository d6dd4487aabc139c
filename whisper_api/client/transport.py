"""Requests that are sent until they are answered, and answers as values or as named errors."""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from whisper_api import errors
from whisper_api.client.upload import Form, SourceFailed
from whisper_api.errors import InvalidInput, InvalidOption, Portable, RequestError, WhisperApiError

if TYPE_CHECKING:
    import requests

__all__ = ["Answer", "NotNow", "Transport", "decoded", "pause_before"]

T = TypeVar("T")

RETRIED = frozenset({429, 502, 503, 504})
# Pauses between attempts double from the first to the longest, in seconds.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
# A server that asks for a longer pause than this is not waited for: that is for the caller to decide.
LONGEST_RETRY_AFTER = 300.0

# The server's words for what is wrong, and the errors they stand for.
OF_THE_REQUEST: dict[str, type[WhisperApiError]] = {
    "invalid_audio": errors.InvalidAudio,
    "invalid_input": errors.InvalidInput,
    "model_unavailable": errors.ModelUnavailable,
    "unknown_model": errors.UnknownModel,
    "device_unavailable": errors.DeviceUnavailable,
    "storage_unavailable": errors.StorageError,
    "storage_full": errors.StorageFull,
    "storage_locked": errors.StorageLocked,
}
OF_THE_JOB: dict[str, type[errors.JobError]] = {
    "job_not_finished": errors.JobNotFinished,
    "job_failed": errors.JobFailed,
    "job_canceled": errors.JobCanceled,
    "result_gone": errors.ResultGone,
    "idempotency_conflict": errors.IdempotencyConflict,
}
FOR_NOW: dict[str, type[errors.Busy]] = {
    "queue_full": errors.QueueFull,
    "draining": errors.Draining,
    "caller_limit": errors.CallerLimit,
}


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after(self) -> float:
        """Seconds that Retry-After asks to wait (RFC 9110, 10.2.3: a number or a date); 0 when it does not."""
        value = self.headers.get("Retry-After", "").strip()
        if value.isdecimal():
            return float(value)
        try:
            from email.utils import parsedate_to_datetime

            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return 0.0


class Transport:
    """One server and the connections to it.

    Args:
        url: without a slash at the end.
        api_key: empty for none.
        timeout: seconds to connect, and seconds without a byte until an attempt counts as failed.
        retries: how often a request is tried again.
        session: the caller's own, which is not closed; None to make one when it is needed.
    """

    def __init__(
        self, url: str, api_key: str, *, timeout: float, retries: int, session: requests.Session | None
    ) -> None:
        self._url = url
        self._api_key = api_key
        self._timeout = timeout
        self._retries = retries
        self._session = session
        self._owns_session = session is None
        self._process = os.getpid()

    def close(self) -> None:
        """Close the connections."""
        if self._owns_session and self._session is not None:
            self._session.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        job_id: str = "",
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        form: Form | bytes | None = None,
        held_seconds: float = 0.0,
        deadline: float = math.inf,
        patience_seconds: float = 0.0,
    ) -> Answer:
        """Send a request until it is answered with something else than "not now".

        Args:
            method, path, params, headers, form: of the request; the last one is its body.
            job_id: which job errors are about.
            held_seconds: how long the server was asked to hold the request.
            deadline: on the monotonic clock; nothing is tried again after it.
            patience_seconds: for so long it is tried again, however often that is.

        Raises:
            WhisperApiError: what the server said, by its name, or that it cannot be reached.
        """
        given_up = time.monotonic() + patience_seconds
        attempt = 0
        while True:
            error: WhisperApiError
            pause = 0.0
            try:
                answer = self._attempt(method, path, params or {}, headers or {}, form, held_seconds)
            except _Broken as broken:
                error = self._unreachable(broken)
            else:
                if 200 <= answer.status < 300:
                    return answer
                error = _error(answer, job_id)
                pause = answer.retry_after
                if answer.status not in RETRIED or pause > LONGEST_RETRY_AFTER:
                    raise error
            now = time.monotonic()
            if now >= deadline or (attempt >= self._retries and now >= given_up):
                raise error
            time.sleep(min(pause_before(attempt, pause), max(0.0, deadline - now)))
            attempt += 1

    def _attempt(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        form: Form | bytes | None,
        held_seconds: float,
    ) -> Answer:
        with self._opened(method, path, params, headers, form, self._timeout + held_seconds) as response:
            return Answer(response.status_code, response.headers, response.content)

    @contextlib.contextmanager
    def stream(
        self, path: str, *, job_id: str, media_type: str, headers: Mapping[str, str], silence_seconds: float
    ) -> Iterator[Iterator[bytes]]:
        """Open an answer that is read as it comes. Nothing is tried again.

        Args:
            path, headers: of the request.
            job_id: which job errors are about.
            media_type: what the answer has to be.
            silence_seconds: without a byte, after which it counts as failed.

        Yields:
            The pieces of its body.

        Raises:
            NotNow: the connection failed, while it was read too, or the server says that it is busy.
            WhisperApiError: what else the server said, by its name, or that it is another one.
        """
        headers = {**headers, "Accept": media_type, "Accept-Encoding": "identity"}
        try:
            with self._opened("GET", path, {}, headers, None, max(self._timeout, silence_seconds)) as response:
                if not 200 <= response.status_code < 300:
                    answer = Answer(response.status_code, response.headers, response.content)
                    error = _error(answer, job_id)
                    if answer.status in RETRIED and answer.retry_after <= LONGEST_RETRY_AFTER:
                        raise NotNow(error, answer.retry_after)
                    raise error
                given = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
                if given != media_type:
                    reason = f"it is {given or 'nothing'}, not {media_type}"
                    raise RequestError(
                        f"the answer is not that of a Whisper API server: {reason}", response.status_code
                    )
                # By chunks as they come; where the body has none, anything but single bytes would be waited for.
                chunked = getattr(response.raw, "chunked", False)
                yield response.iter_content(chunk_size=None if chunked else 1)
        except _Broken as broken:
            raise NotNow(self._unreachable(broken)) from broken

    def _unreachable(self, broken: _Broken) -> RequestError:
        error = RequestError(f"{self._url} cannot be reached: {broken}")
        error.__cause__ = broken.__cause__
        return error

    @contextlib.contextmanager
    def _opened(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        form: Form | bytes | None,
        read_seconds: float,
    ) -> Iterator[requests.Response]:
        import requests

        if self._process != os.getpid():
            # Forked: the parent's connections are open here too, and would give this process the parent's answers.
            # A session that is closed makes new ones when it is used again.
            self._process = os.getpid()
            if self._session is not None:
                self._session.close()
        if self._session is None:
            self._session = requests.Session()
        try:
            with self._session.request(
                method,
                f"{self._url}{path}",
                params=params,
                headers=headers,
                data=form,
                auth=self._authorize,
                timeout=(self._timeout, read_seconds),
                allow_redirects=False,
                stream=True,
            ) as response:
                # Before urllib3 2, an answer that is cut short would be taken for a whole one.
                response.raw.enforce_content_length = True
                yield response
        except SourceFailed as error:
            raise error.__cause__ or error from None
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE" in str(error):
                raise RequestError(f"{self._url} has no certificate that is trusted here") from error
            raise _Broken(_reason(error)) from error
        except requests.RequestException as error:
            raise RequestError(f"{self._url}: {error}") from error

    def _authorize(self, request: Any) -> Any:
        # As an auth, not as a header: requests would put what a .netrc file says in the header's place.
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        return request


class _Broken(Exception):
    """An attempt failed on the way; the message says how."""


class NotNow(Portable):
    """An answer could not be had or ended early; it may be asked for again.

    Args:
        reason: what to raise when it is not.
        retry_after: seconds that the server asked to wait.
    """

    def __init__(self, reason: WhisperApiError, retry_after: float = 0.0) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.retry_after = retry_after


class _Problem(msgspec.Struct):
    detail: str = ""
    code: str = ""


def pause_before(attempt: int, retry_after: float) -> float:
    """How long to wait before a request is tried again.

    Args:
        attempt: how often that was done before.
        retry_after: seconds that the server asked for.
    """
    longest = FIRST_PAUSE if retry_after else min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt, 16))
    return retry_after + random.uniform(0.5, 1.0) * longest


def decoded(answer: Answer, kind: type[T]) -> T:
    """The value that an answer's body is.

    Raises:
        RequestError: it is not JSON of this kind.
    """
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.MsgspecError as error:
        raise RequestError(f"the answer is not that of a Whisper API server: {error}", answer.status) from error


def _error(answer: Answer, job_id: str) -> WhisperApiError:
    """The named error that an answer stands for."""
    try:
        problem = msgspec.json.decode(answer.body, type=_Problem)
    except msgspec.MsgspecError:
        problem = _Problem()
    code, detail = problem.code, problem.detail
    if not detail:
        place = answer.headers.get("Location")
        detail = f"the server answered {answer.status}{f' and names {place}' if place else ''}"
    if code == "job_not_found":
        return errors.JobNotFound(job_id)
    if code == "job_processing":
        return errors.JobIsProcessing(job_id)
    if code == "invalid_field":
        field, colon, message = detail.partition(": ")
        return InvalidOption(field, message) if colon and field.isidentifier() else InvalidInput(detail)
    if code in OF_THE_JOB:
        return OF_THE_JOB[code](job_id, detail)
    if code in FOR_NOW:
        return FOR_NOW[code](detail, answer.retry_after)
    if code in OF_THE_REQUEST:
        return OF_THE_REQUEST[code](detail)
    return RequestError(detail, answer.status, code)


def _reason(error: BaseException) -> str:
    """What the operating system says went wrong, out of the wrappings of requests and urllib3."""
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
            return found.strerror
        waiting += [*found.args, getattr(found, "reason", None), found.__cause__, found.__context__]
    return "the connection was closed"
