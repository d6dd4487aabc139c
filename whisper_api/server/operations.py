"""What an address does, said once: the server runs on it, and the description of the API is made from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from whisper_api.server.query import query_value
from whisper_api.server.responses.problems import Problem

__all__ = ["Answer", "Cause", "FormBody", "FormField", "Handler", "JsonBody", "Operation", "Parameter"]

Handler = Callable[[Request], Awaitable[Response]]
# Why something is refused.
Cause = type[Exception] | Problem | int


@dataclass(frozen=True)
class Parameter:
    """A value that stands outside the body.

    Attributes:
        name: as it is sent.
        type: that it must have, as msgspec writes types.
        description: one sentence.
        default: what it is when it is not there.
        location: where it stands.
        required: whether the call fails without it.
    """

    name: str
    type: Any
    description: str
    default: Any = None
    location: Literal["query", "path", "header"] = "query"
    required: bool = False

    def of(self, request: Request) -> Any:
        """Its value in a request's query.

        Raises:
            InvalidOption: it is no such value.
        """
        return query_value(request, self.name, self.type, self.default)


@dataclass(frozen=True)
class FormField:
    """A part of a form.

    Attributes:
        name: as it is sent.
        type: of its value; ``bytes`` for a file.
        description: one sentence.
        required: whether the call fails without it.
        repeated: whether it may come several times.
        default: what it is when it is not there, if that is always the same.
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
        fields: what may stand in it.
        raw: whether the body may also be the file itself, and then the other fields are query parameters.
        json_fields: where the same may come as a JSON object, what this has in the place of the file; a list has no
            brackets there.
    """

    fields: tuple[FormField, ...]
    raw: bool = False
    json_fields: tuple[FormField, ...] = ()


@dataclass(frozen=True)
class JsonBody:
    """A JSON body.

    Attributes:
        type: of the value, usually a Struct.
    """

    type: Any


@dataclass(frozen=True)
class Answer:
    """An answer that is no error.

    Attributes:
        status: of HTTP.
        description: one sentence.
        content: media type to the type of what is sent; ``str`` for text, nothing for an empty body, several types as
            a tuple. Of an event stream, the type of the JSON in each event.
        headers: that it has beside the usual ones, name to description.
    """

    status: int
    description: str
    content: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """One method of one address.

    Attributes:
        handler: what answers it; the first line of its docstring is the summary, the rest the description.
        tag: what it is listed under.
        answers: that are no errors.
        refusals: the classes of :data:`~whisper_api.server.responses.problems.RULES` that it may answer with, of what
            only HTTP knows of the problems, and a bare status where there is no more to say than HTTP does. Those that
            every operation may answer with are not named: 401 and 403 where keys are asked for, 500, 503.
        parameters: outside the body.
        body: of the request.
        open: whether it is answered without a key.
        hidden: whether the description leaves it out.
    """

    handler: Handler
    tag: str
    answers: tuple[Answer, ...]
    refusals: tuple[Cause, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    body: FormBody | JsonBody | None = None
    open: bool = False
    hidden: bool = False
