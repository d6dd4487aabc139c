"""The description of the API (OpenAPI 3.1), made from the operations that the server runs on and their types."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import msgspec

from whisper_api.server.middleware.auth import BASIC_PATHS
from whisper_api.server.openai.bodies import ErrorBody
from whisper_api.server.openai.errors import TAG as OPENAI_TAG
from whisper_api.server.openapi.docstrings import described
from whisper_api.server.openapi.error_responses import Refusal, refusals_of
from whisper_api.server.openapi.struct_schemas import Schema, schemas_of, without_null
from whisper_api.server.operations import Answer, FormBody, FormField, JsonBody, Operation, Parameter
from whisper_api.server.resource import Resource
from whisper_api.server.responses.problems import MEDIA_TYPE, ProblemBody
from whisper_api.server.uploads.incoming import URL_FIELD
from whisper_api.server.uploads.plain_bodies import FILE_NAME, RAW_TYPES
from whisper_api.server.version import version

__all__ = ["BASIC", "BEARER", "description"]

VERSION = "3.1.1"
BEARER = "bearer"
BASIC = "basic"
REQUEST_ID = "X-Request-ID"
ABOUT = f"""Transcription with word times and speakers.

A recording becomes a job: it survives whatever happens to the process, and its result is for the key that sent it.
Every answer has the header `{REQUEST_ID}`; the client's own is kept. `HEAD` is answered as `GET` is, and `OPTIONS` says
which methods an address takes. What is sent that is not described here is ignored; the warnings of a job name such
fields."""
ABOUT_KEY = "A key that `whisper-api keys create` made"
ABOUT_BASIC = "The key as the password, with any user name; clients take it from the address: `http://user:key@host`"
FORM = "multipart/form-data"
FORM_OF_TEXT = "application/x-www-form-urlencoded"
ABOUT_RAW = (
    "A form, or the recording itself with a `Content-Type` of its own (with curl: "
    "`--data-binary @call.wav -H 'Content-Type: audio/wav'`); then the other fields are query parameters."
)
EVENTS = "text/event-stream"
# Media type and body of an error; of OpenAI's operations, if so.
ERRORS: dict[bool, tuple[str, Any]] = {False: (MEDIA_TYPE, ProblemBody), True: ("application/json", ErrorBody)}
# In a path of Starlette's: the type that the name has there.
CONVERTOR = re.compile(r":\w+\}")


class _Endpoint(NamedTuple):
    """One operation, and where it stands; where it stood before, if it did."""

    path: str
    method: str
    operation: Operation
    name: str
    before: str


class _Types:
    """The types of all operations, and the schemas they have."""

    def __init__(self, endpoints: list[_Endpoint]) -> None:
        sent = [
            *(kind for _, kind in ERRORS.values()),
            *(kind for endpoint in endpoints for kind in _sent(endpoint.operation)),
        ]
        received = [kind for endpoint in endpoints for kind in _received(endpoint.operation)]
        of_sent, of_received, self.components = schemas_of(sent, received)
        self._sent = {id(kind): schema for kind, schema in zip(sent, of_sent, strict=True)}
        self._received = {id(kind): schema for kind, schema in zip(received, of_received, strict=True)}

    def sent(self, kind: Any) -> Schema:
        """Of what is answered; of several types, of any of them."""
        kinds = _kinds(kind)
        return self._sent[id(kinds[0])] if len(kinds) == 1 else {"anyOf": [self._sent[id(kind)] for kind in kinds]}

    def received(self, kind: Any) -> Schema:
        """Of what is given."""
        return self._received[id(kind)]


def description(routes: Mapping[str, Resource], *, root_path: str, authorization: bool) -> dict[str, Any]:
    """The description as an object to be written as JSON.

    Args:
        routes: path, as Starlette writes it, to what stands there.
        root_path: the prefix under which the application stands; empty when it stands alone.
        authorization: whether a key is asked for.
    """
    endpoints = list(_endpoints(routes))
    types = _Types(endpoints)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        told = _operation(endpoint, types, authorization=authorization)
        paths.setdefault(CONVERTOR.sub("}", endpoint.path), {})[endpoint.method.lower()] = told
    components: dict[str, Any] = {
        "schemas": dict(sorted(types.components.items())),
        "headers": {"RequestId": _header("Of this request, as the server's log has it", required=True)},
    }
    if authorization:
        components["securitySchemes"] = {
            BEARER: {"type": "http", "scheme": "bearer", "description": ABOUT_KEY},
            BASIC: {"type": "http", "scheme": "basic", "description": ABOUT_BASIC},
        }
    return {
        "openapi": VERSION,
        "info": {"title": "Whisper API", "version": version(), "description": ABOUT, "license": {"name": "MIT"}},
        "servers": [{"url": root_path or "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(endpoint.operation.tag for endpoint in endpoints)],
        "paths": paths,
        "components": components,
    }


def _endpoints(routes: Mapping[str, Resource]) -> Iterator[_Endpoint]:
    """What is described, each with a name of its own: the handler's, and at its second address, that address too."""
    taken: set[str] = set()
    first: dict[int, str] = {}
    for path, resource in routes.items():
        for method, operation in resource.operations.items():
            if operation.hidden:
                continue
            name = operation.handler.__name__
            if name in taken:
                name = "_".join([name, *re.findall(r"[A-Za-z0-9]+", path)])
            taken.add(name)
            before = first.setdefault(id(operation), path)
            yield _Endpoint(path, method, operation, name, "" if before == path else before)


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The types that a type is one of, where they have no schema together: Structs without a tag."""
    if isinstance(kind, tuple):
        return kind
    parts = get_args(kind)
    structs = [part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)]
    untagged = [part for part in structs if part.__struct_config__.tag is None]
    return parts if untagged and len(structs) > 1 else (kind,)


def _sent(operation: Operation) -> Iterator[Any]:
    for answer in operation.answers:
        for kind in answer.content.values():
            yield from _kinds(kind)


def _received(operation: Operation) -> Iterator[Any]:
    for parameter in operation.parameters:
        yield parameter.type
    if isinstance(operation.body, JsonBody):
        yield operation.body.type
    elif operation.body is not None:
        yield from (field.type for field in (*operation.body.fields, *operation.body.json_fields))


def _operation(endpoint: _Endpoint, types: _Types, *, authorization: bool) -> dict[str, Any]:
    operation = endpoint.operation
    told = described(operation.handler)
    given: dict[str, Any] = {"operationId": endpoint.name, "tags": [operation.tag], "summary": told.summary}
    again = f"Another address of `{endpoint.method} {endpoint.before}`." if endpoint.before else ""
    if again or told.text:
        given["description"] = "\n\n".join(filter(None, (again, told.text)))
    parameters = [_parameter(parameter, types) for parameter in operation.parameters]
    if isinstance(operation.body, FormBody) and operation.body.raw:
        parameters += _raw_parameters(operation.body, types)
    if parameters:
        given["parameters"] = parameters
    if operation.body is not None:
        given["requestBody"] = _body(operation.body, types)
    given["responses"] = _responses(endpoint, types, authorization=authorization)
    if authorization:
        schemes = (BEARER, BASIC) if endpoint.path in BASIC_PATHS else (BEARER,)
        given["security"] = [] if operation.open else [{scheme: []} for scheme in schemes]
    return given


def _parameter(parameter: Parameter, types: _Types) -> dict[str, Any]:
    schema = without_null(types.received(parameter.type))
    if parameter.default is not None:
        schema = {**schema, "default": parameter.default}
    return {
        "name": parameter.name,
        "in": parameter.location,
        "required": parameter.required or parameter.location == "path",
        "description": parameter.description,
        "schema": schema,
    }


def _body(body: FormBody | JsonBody, types: _Types) -> dict[str, Any]:
    if isinstance(body, JsonBody):
        return {"required": True, "content": {"application/json": {"schema": types.received(body.type)}}}
    content = {FORM: {"schema": _form(body.fields, types)}}
    if any(field.name == URL_FIELD for field in body.fields):
        # Where nothing but text is sent, a form need not have parts.
        content[FORM_OF_TEXT] = {"schema": _form([field for field in body.fields if field.type is not bytes], types)}
    if body.json_fields:
        same = [replace(field, name=field.name.removesuffix("[]")) for field in body.fields if field.type is not bytes]
        content["application/json"] = {"schema": _form([*body.json_fields, *same], types)}
    if not body.raw:
        return {"required": True, "content": content}
    content |= {name: {"schema": {"type": "string", "format": "binary"}} for name in RAW_TYPES}
    return {"required": True, "description": ABOUT_RAW, "content": content}


def _raw_parameters(body: FormBody, types: _Types) -> list[dict[str, Any]]:
    """What stands in the query when the body is the file itself."""
    fields = [field for field in body.fields if field.type is not bytes and field.name != URL_FIELD]
    names = {
        "name": FILE_NAME,
        "in": "query",
        "required": False,
        "description": "Name of the file when the body is the recording itself; Content-Disposition may have it, too",
        "schema": {"type": "string"},
    }
    options = {
        "name": "fields",
        "in": "query",
        "required": False,
        # Each member of the object is a query parameter.
        "style": "form",
        "explode": True,
        "description": "When the body is the recording itself: the fields of the form, each a query parameter",
        "schema": _form(fields, types),
    }
    return [names, options]


def _form(fields: Sequence[FormField], types: _Types) -> Schema:
    return {
        "type": "object",
        "properties": {field.name: _field(field, types) for field in fields},
        "required": [field.name for field in fields if field.required],
    }


def _field(field: FormField, types: _Types) -> Schema:
    if field.type is bytes:
        schema: Schema = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    else:
        schema = without_null(types.received(field.type))
    if field.repeated:
        schema = {"type": "array", "items": schema}
    given = {**schema, "description": field.description}
    return given if field.default is None else {**given, "default": field.default}


def _responses(endpoint: _Endpoint, types: _Types, *, authorization: bool) -> dict[str, Any]:
    operation = endpoint.operation
    responses: dict[str, Any] = {}
    for answer in operation.answers:
        responses[str(answer.status)] = _answer(answer, types)
    openai = operation.tag == OPENAI_TAG
    media_type, kind = ERRORS[openai]
    for refusal in refusals_of(operation, authorization=authorization, openai=openai):
        status = str(refusal.status)
        told = _refusal(refusal, media_type, types.sent(kind))
        responses[status] = _both(responses[status], told) if status in responses else told
    return dict(sorted(responses.items()))


def _answer(answer: Answer, types: _Types) -> dict[str, Any]:
    given: dict[str, Any] = {"description": answer.description, "headers": _headers(answer.headers)}
    if answer.content:
        given["content"] = {name: _content(name, types.sent(kind)) for name, kind in answer.content.items()}
    return given


def _content(media_type: str, schema: Schema) -> dict[str, Any]:
    if media_type != EVENTS:
        return {"schema": schema}
    # This version of OpenAPI has no word for what stands in each event, so as is usual, it describes one.
    data = {"contentMediaType": "application/json", "contentSchema": schema} if schema != {"type": "string"} else {}
    event = {"data": {"type": "string", **data}, "event": {"type": "string"}, "id": {"type": "string"}}
    return {"schema": {"type": "object", "title": "Event", "properties": event, "required": ["data"]}}


def _refusal(refusal: Refusal, media_type: str, schema: Schema) -> dict[str, Any]:
    meanings = refusal.meanings
    text = meanings[0] if len(meanings) == 1 else "\n".join(f"- {meaning}" for meaning in meanings)
    return {
        "description": text,
        "headers": _headers(refusal.headers),
        "content": {media_type: {"schema": schema}},
    }


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two things that have the same status as one."""
    content = {**second["content"], **first.get("content", {})}
    for media_type in first.get("content", {}).keys() & second["content"].keys():
        schemas = [side["content"][media_type]["schema"] for side in (first, second)]
        content[media_type] = {"schema": schemas[0] if schemas[0] == schemas[1] else {"anyOf": schemas}}
    return {
        "description": f"{first['description']}\n\n{second['description']}",
        "headers": {**second["headers"], **first["headers"]},
        "content": content,
    }


def _headers(named: Mapping[str, str]) -> dict[str, Any]:
    told = {name: _header(text) for name, text in named.items()}
    return {**told, REQUEST_ID: {"$ref": "#/components/headers/RequestId"}}


def _header(text: str, *, required: bool = False) -> dict[str, Any]:
    return {"description": text, "required": required, "schema": {"type": "string"}}
