"""What an operation may refuse with, by status, as the description of the API says it."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

from whisper_api.errors import Busy, Draining, JobNotFinished, StorageError
from whisper_api.server.openai.errors import RETRY_HEADER, error_body, status_of
from whisper_api.server.openapi.docstrings import described
from whisper_api.server.operations import Cause, Operation
from whisper_api.server.responses.problems import RULES, TOO_MANY_CONNECTIONS, Problem

__all__ = ["Refusal", "refusals_of"]

# Where there is no more to say than HTTP does.
MEANINGS = {
    400: "The request is malformed, or a value in it cannot be used",
    401: "There is no key, or none that is known here and was not revoked",
    403: "Authorization is off, and the request comes from a page of another origin, or from another machine",
    404: "There is nothing of this name",
    500: "The server failed; its log has the reason under the request's id",
}
# Where there is but one.
CODES = {401: "unauthorized", 403: "forbidden_origin", 500: "internal_error"}
# Whatever is asked: the request may be malformed, and the last two are the server's own state.
EVERYWHERE: tuple[Cause, ...] = (400, 500, Draining, StorageError)
# Health checks are answered however many connections are open.
HEALTH = "Health"
ENCODED = Problem(415, "content_encoding", "The body is compressed; it is taken as it is only")
# What comes with the time after which to try again.
RETRIED = (Busy, StorageError, JobNotFinished)


class Refusal(NamedTuple):
    """One status that is an error.

    Attributes:
        status: of HTTP.
        meanings: one sentence each, as CommonMark, with the code where it is known.
        headers: that may come with it, name to description.
    """

    status: int
    meanings: tuple[str, ...]
    headers: dict[str, str]


def refusals_of(operation: Operation, *, authorization: bool, openai: bool) -> list[Refusal]:
    """All that an operation may refuse with, by rising status.

    Args:
        operation: which.
        authorization: whether the server asks for keys.
        openai: whether it is one of OpenAI's, which say some things otherwise.
    """
    causes = [*operation.refusals, *EVERYWHERE]
    if operation.tag != HEALTH:
        causes.append(TOO_MANY_CONNECTIONS)
    if operation.body is not None:
        causes.append(ENCODED)
    if not operation.open:
        causes.append(401 if authorization else 403)
    meanings: dict[int, dict[str, None]] = {}
    retried = set()
    for cause in causes:
        status, meaning = _told(cause, openai=openai)
        meanings.setdefault(status, {})[meaning] = None
        if isinstance(cause, type) and issubclass(cause, RETRIED):
            retried.add(status)
    for status, told in meanings.items():
        if len(told) > 1:
            # The general sentence says nothing beside those that are to the point.
            told.pop(MEANINGS.get(status, ""), None)
    return [
        Refusal(status, tuple(meanings[status]), _headers(status, retried=status in retried, openai=openai))
        for status in sorted(meanings)
    ]


def _told(cause: Cause, *, openai: bool) -> tuple[int, str]:
    """The status of a cause, and what it means."""
    if isinstance(cause, int):
        code, sentence = CODES.get(cause, ""), MEANINGS.get(cause, HTTPStatus(cause).phrase)
        problem = Problem(cause, code, sentence)
    elif isinstance(cause, Problem):
        problem = cause
    else:
        rule = next(RULES[kind] for kind in cause.__mro__ if kind in RULES)
        problem = Problem(rule.status, rule.code, described(cause).summary)
    status = status_of(problem) if openai else problem.status
    code = (error_body(problem).error.code or "") if openai else problem.code
    return status, f"`{code}`: {problem.detail[:1].lower()}{problem.detail[1:]}" if code else problem.detail


def _headers(status: int, *, retried: bool, openai: bool) -> dict[str, str]:
    told = {RETRY_HEADER: "`true` or `false`: whether to try again"} if openai else {}
    if retried:
        return {**told, "Retry-After": "Seconds after which to try again"}
    if status == 401:
        return {**told, "WWW-Authenticate": "How to authenticate (RFC 6750)"}
    return told
