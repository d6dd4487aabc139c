"""The error responses of an operation, by status, for the description of the API."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

from whisper_api import errors
from whisper_api.server.openai.errors import RETRY_HEADER, error_body, status_of
from whisper_api.server.openapi.struct_schemas import described
from whisper_api.server.operations import Cause, JsonBody, Operation
from whisper_api.server.responses.problems import TOO_MANY_CONNECTIONS, TOO_MANY_RESPONSES, Problem
from whisper_api.server.uploads.receiving import BODY_REFUSALS

# The meaning of a status that an operation lists without a class or a problem.
MEANINGS = {
    400: "The request is malformed, or a value in it cannot be used",
    401: "The request has no key, or a key that does not exist or was revoked",
    403: "Authorization is off, and the request comes from a page of another origin, or from another machine",
    404: "Nothing has this name",
    500: "The server failed; its log has the reason under the request's id",
}
# The code of a status that has only one.
CODES = {401: "unauthorized", 403: "forbidden_origin", 500: "internal_error"}
# Every operation may refuse a malformed request; the other causes are states of the server.
EVERYWHERE: tuple[Cause, ...] = (400, 500, errors.Draining, errors.StorageError)
# The tag of health checks, which the server answers at any number of open connections.
HEALTH = "Health"
ENCODED = Problem(415, "content_encoding", "The body is compressed; the server takes uncompressed bodies only")
WRONG_ROLE = Problem(403, "forbidden_role", "The role of the key does not allow this")
# Errors with the header Retry-After.
RETRIED = (errors.Busy, errors.StorageError, errors.JobNotFinished)


class Refusal(NamedTuple):
    """The error response of an operation with one status.

    Attributes:
        status: the HTTP status.
        description: a sentence for each cause, as CommonMark, with the code of the error.
        headers: name to description of the headers that the response may have.
    """

    status: int
    description: str
    headers: dict[str, str]


def refusals_of(operation: Operation, *, authorization: bool, openai: bool) -> list[Refusal]:
    """The error responses of an operation, by rising status.

    Args:
        operation: the operation.
        authorization: whether the server asks for keys.
        openai: whether the operation is one of OpenAI's, which have other codes, statuses and headers.
    """
    causes = [*operation.refusals, *(cause for each in operation.parameters for cause in each.refusals)]
    if operation.body is not None or any(each.location == "query" for each in operation.parameters):
        causes.append(errors.InvalidOption)
    if isinstance(operation.body, JsonBody):
        causes += BODY_REFUSALS
    causes += EVERYWHERE
    if operation.tag != HEALTH:
        causes += [TOO_MANY_CONNECTIONS, TOO_MANY_RESPONSES]
    if operation.body is not None:
        causes.append(ENCODED)
    if not operation.open:
        causes += _of_keys(operation) if authorization else [403]
    meanings: dict[int, dict[str, None]] = {}
    retried = set()
    for cause in causes:
        status, meaning = _meaning(cause, openai=openai)
        meanings.setdefault(status, {})[meaning] = None
        if isinstance(cause, type) and issubclass(cause, RETRIED):
            retried.add(status)
    for status, sentences in meanings.items():
        if len(sentences) > 1:
            # The specific sentences make the general one superfluous.
            sentences.pop(MEANINGS.get(status, ""), None)
    return [
        Refusal(
            status,
            "\n".join(f"- {each}" for each in sentences) if len(sentences) > 1 else "".join(sentences),
            _headers(status, retried=status in retried, openai=openai),
        )
        for status, sentences in sorted(meanings.items())
    ]


def _of_keys(operation: Operation) -> list[Cause]:
    """The refusals of keys that the operation does not take, or that send too many requests."""
    scope: list[Cause] = [errors.ScopeMissing] if operation.scope else []
    return [401, errors.KeyExpired, WRONG_ROLE, errors.RateLimited, *scope]


def _meaning(cause: Cause, *, openai: bool) -> tuple[int, str]:
    """The status of a cause, and its meaning."""
    if isinstance(cause, int):
        code, sentence = CODES.get(cause, ""), MEANINGS.get(cause, HTTPStatus(cause).phrase)
        problem = Problem(cause, code, sentence)
    elif isinstance(cause, Problem):
        problem = cause
    else:
        rule = next(errors.RULES[kind] for kind in cause.__mro__ if kind in errors.RULES)
        problem = Problem(*rule, described(cause).summary)
    status = status_of(problem) if openai else problem.status
    code = (error_body(problem).error.code or "") if openai else problem.code
    return status, f"`{code}`: {problem.detail[:1].lower()}{problem.detail[1:]}" if code else problem.detail


def _headers(status: int, *, retried: bool, openai: bool) -> dict[str, str]:
    headers = {RETRY_HEADER: "`true` or `false`: whether to try again"} if openai else {}
    if retried:
        headers["Retry-After"] = "Seconds after which to try again"
    elif status == 401:
        headers["WWW-Authenticate"] = "How to authenticate (RFC 6750)"
    return headers
