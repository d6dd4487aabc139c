"""The declaration of an operation, which the server runs and from which the API's description is made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.audit_records import Action
from whisper_api.key_values import Role, Scope
from whisper_api.server.query import query_value
from whisper_api.server.responses.problems import Problem

Handler = Callable[[Request], Awaitable[Response]]
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
    """

    name: str
    type: Any
    description: str
    default: Any = None
    location: Literal["query", "path", "header"] = "query"
    required: bool = False

    def of(self, request: Request) -> Any:
        """The parameter's value in a request's query.

        Raises:
            InvalidOption: the text is not a value of this type.
        """
        return query_value(request, self.name, self.type, self.default)


@dataclass(frozen=True)
class FormField:
    """A field of a form.

    Attributes:
        name: name of the field.
        type: type of the value; ``bytes`` for a file.
        description: one sentence.
        required: whether the call fails without the field.
        repeated: whether the form may have the field several times.
        default: the value of an absent field; None when the configuration decides.
    """

    name: str
    type: Any
    description: str
    required: bool = False
    repeated: bool = False
    default: Any = None


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
        content: media type to the type of the body; ``str`` for text, a tuple for one of several types, and for an
            event stream the type of the JSON in each event. Empty for an empty body.
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
        handler: makes the response; the first line of its docstring is the summary, the rest the description.
        answers: the responses that are not errors.
        tag: heading of the operation in the description.
        refusals: the error responses: classes in :data:`~whisper_api.errors.RULES`, problems or bare
            statuses. Errors of every operation (401, 403, 500, 503) are left out.
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
