"""Operations of the API: their declarations, from which the API's description is made, and how a path runs them."""

from __future__ import annotations

import functools
import inspect
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as RequestScope

from whisper_api.access.key_rules import allows
from whisper_api.audit_records import Action
from whisper_api.errors import JobNotFound, ScopeMissing
from whisper_api.key_values import Role, Scope
from whisper_api.server.auditing import ACTION
from whisper_api.server.responses.problems import Problem
from whisper_api.server.state import blocking, state_of
from whisper_api.server.uploads.form_fields import FormField, converted
from whisper_api.server.uploads.part_headers import shown

# The type of a parameter that is a time.
MOMENT = Annotated[datetime, Meta(tz=True)]
# Takes a request. What a coroutine or, in a thread, a function returns is the response, or the value of one.
Handler = Callable[[Request], Any]
# The cause of an error response.
Cause = type[Exception] | Problem | int


@dataclass(frozen=True)
class Parameter:
    """A parameter of a request outside its body.

    Attributes:
        name: name of the parameter.
        type: type of the value, for msgspec.
        description: one sentence.
        default: the value of an absent parameter.
        location: the part of the request that contains the parameter.
        required: whether the call fails without the parameter.
        refusals: the error responses of every operation with this parameter.
    """

    name: str
    type: Any
    description: str
    default: Any = None
    location: Literal["query", "path", "header"] = "query"
    required: bool = False
    refusals: tuple[Cause, ...] = ()

    def of(self, request: Request) -> Any:
        """The value in a request's query. The last of several counts, and an empty parameter counts as absent.

        Raises:
            InvalidOption: the text is not a value of this type.
        """
        text = request.query_params.get(self.name, "").strip()
        return converted(self.name, text, self.type) if text else self.default


@dataclass(frozen=True)
class FormBody:
    """A ``multipart/form-data`` body.

    Attributes:
        fields: the fields of the form.
        raw: whether the body may also be the file itself; the other fields are then query parameters.
        json_fields: members of a JSON body instead of the file; the other fields are members too, without brackets in
            the names of lists. Empty when the body may not be JSON.
    """

    fields: tuple[FormField, ...]
    raw: bool = False
    json_fields: tuple[FormField, ...] = ()


@dataclass(frozen=True)
class JsonBody:
    """A JSON body.

    Attributes:
        type: type of the value, usually a Struct.
    """

    type: Any


@dataclass(frozen=True)
class Answer:
    """A response that is not an error.

    Attributes:
        status: the HTTP status.
        description: one sentence.
        content: media type to the type of the body; ``str`` for text, and for an event stream the type of the JSON in
            each event. Empty for an empty body.
        headers: name to description of the headers that only this response has.
    """

    status: int
    description: str
    content: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """A method of a route, as the server runs it and as the API's description shows it.

    Attributes:
        handler: makes the response; the first line of its docstring is the summary, the rest the description. A
            function that is no coroutine runs in a thread.
        answers: the responses that are not errors; a value that the handler returns is sent with the first.
        tag: heading of the operation in the description.
        refusals: the error responses: classes in :data:`~whisper_api.errors.RULES`, problems or bare
            statuses. Left out are errors of every operation (401, 403, 500, 503), and those that follow from the
            parameters and the body.
        parameters: parameters outside the body.
        body: body of the request; None without a body.
        open: whether the operation needs no key.
        roles: roles of the keys that may call the operation.
        scope: the scope that a key with scopes needs; None for an operation that every key of these roles may call.
        hidden: whether the description leaves the operation out.
        audit: the action that the audit trail records; None when it records nothing. A test asks for it where an
            operation changes something.
    """

    handler: Handler
    answers: tuple[Answer, ...]
    tag: str
    refusals: tuple[Cause, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: FormBody | JsonBody | None = None
    open: bool = False
    roles: tuple[Role, ...] = ("user", "admin")
    scope: Scope | None = None
    hidden: bool = False
    audit: Action | None = None

    @functools.cached_property
    def blocks(self) -> bool:
        """Whether the handler is a function that runs in a thread, and no coroutine."""
        return not inspect.iscoroutinefunction(self.handler)


def operation(*answers: Answer | str, **declared: Any) -> Callable[[Handler], Operation]:
    """Make an operation of a handler.

    Args:
        answers: the responses that are not errors. A text describes the response 200 with the value that the handler
            returns, whose type is the handler's annotation; or 204 when the handler returns None.
        declared: the other attributes of :class:`Operation`.
    """

    def declare(handler: Handler) -> Operation:
        return Operation(handler, tuple(_answer(each, handler) for each in answers), **declared)

    return declare


def _answer(answer: Answer | str, handler: Handler) -> Answer:
    if isinstance(answer, Answer):
        return answer
    kind = get_type_hints(handler)["return"]
    return Answer(204, answer) if kind is type(None) else Answer(200, answer, {"application/json": kind})


class JsonResponse(Response):
    """A value or a Struct as JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


def created(request: Request, value: object, path: str) -> Response:
    """The response 201 with what a request has made.

    Args:
        request: the request.
        value: what it has made.
        path: path of that, without the prefix of the application.
    """
    return JsonResponse(value, 201, {"Location": f"{request.scope.get('root_path', '')}{path}"})


class Resource:
    """An ASGI application for one path. HEAD works as GET, OPTIONS lists the methods, any other method is a 405.

    A key whose role or scopes may not call the operation is a 403.

    Args:
        operations: method to operation.
    """

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self.operations = dict(operations)
        methods = [*self.operations, *(["HEAD"] if "GET" in self.operations else ())]
        self.allow = ", ".join([*methods, "OPTIONS"])

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        operation = self.operations.get("GET" if method == "HEAD" else method)
        if operation is not None:
            # The response to HEAD has no text.
            if operation.audit is not None and method != "HEAD":
                scope[ACTION] = operation.audit
            _check_key(scope, operation)
            if operation.body is not None:
                _check_encoding(Headers(scope=scope))
            response = await _response(operation, Request(scope, receive, send))
        elif method == "OPTIONS":
            response = Response(status_code=204, headers={"Allow": self.allow})
        else:
            raise HTTPException(405, headers={"Allow": self.allow})
        await response(scope, receive, send)


async def _response(operation: Operation, request: Request) -> Response:
    if operation.blocks:
        state = state_of(request)
        pool = state.reads if request.method in ("GET", "HEAD") else state.uploads
        found = await blocking(pool, operation.handler, request)
    else:
        found = await operation.handler(request)
    if isinstance(found, Response):
        return found
    status = operation.answers[0].status
    return Response(status_code=status) if found is None else JsonResponse(found, status)


def _check_key(scope: RequestScope, operation: Operation) -> None:
    key = scope["state"].get("key")
    if key is None or operation.open:
        return
    if key.role not in operation.roles:
        raise Problem(
            403,
            "forbidden_role",
            f"A key with the role {key.role} may not do this: use a key with the role {' or '.join(operation.roles)}",
        )
    if not allows(key, operation.scope):
        raise ScopeMissing(
            f"This key has the scopes {', '.join(key.scopes)}: use a key with the scope {operation.scope}, or "
            "without scopes"
        )


def _check_encoding(headers: Headers) -> None:
    """Refuse a compressed body: recordings are compressed already, and the size of an unpacked body has no bound.

    Raises:
        Problem: 415 ``content_encoding``, with the accepted encodings (RFC 9110, section 12.5.3).
    """
    codings = [coding.strip() for line in headers.getlist("content-encoding") for coding in line.split(",")]
    if any(coding.lower() not in ("", "identity") for coding in codings):
        raise Problem(
            415,
            "content_encoding",
            f"The body has Content-Encoding {shown(', '.join(codings))}: send it uncompressed, without that header",
            {"Accept-Encoding": "identity"},
        )


def job_id_of(request: Request) -> str:
    """The job id in the path, in the form of the database.

    Raises:
        JobNotFound: the path does not contain a UUID.
    """
    text: str = request.path_params["job_id"]
    try:
        job_id = str(uuid.UUID(text))
    except ValueError:
        raise JobNotFound(text) from None
    if job_id != text.lower():
        raise JobNotFound(text)
    request.scope["job_id"] = job_id
    return job_id
