"""The description of the API (OpenAPI 3.1), derived from the table of routes and the types of its operations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import msgspec

from whisper_api.server.middleware.auth import BASIC_PATHS
from whisper_api.server.openai.bodies import ErrorBody
from whisper_api.server.openai.errors import TAG as OPENAI_TAG
from whisper_api.server.openapi.error_responses import refusals_of
from whisper_api.server.openapi.struct_schemas import Schema, described, schemas_of, without_null
from whisper_api.server.operations import Answer, FormBody, JsonBody, Operation, Parameter, Resource
from whisper_api.server.responses.problems import MEDIA_TYPE, ProblemBody
from whisper_api.server.state import version
from whisper_api.server.uploads.form_fields import FormField
from whisper_api.server.uploads.incoming import URL_FIELD
from whisper_api.server.uploads.plain_bodies import FILE_NAME, RAW_TYPES

VERSION = "3.1.1"
BEARER = "bearer"
BASIC = "basic"
REQUEST_ID = "X-Request-ID"
ABOUT = f"""Transcription with word times and speakers.

A recording becomes a job, which survives crashes and restarts of the server. Only the key that sent the recording may
read the result. Every response has the header `{REQUEST_ID}`; a request may set it. `HEAD` works as `GET`, and
`OPTIONS` lists the methods of a path. Unknown fields are ignored; the warnings of the job name them."""
ABOUT_KEY = "A key that `whisper-api keys create` made"
ABOUT_BASIC = "The key as the password, with any user name; clients read it from the URL: `http://user:key@host`"
FORM = "multipart/form-data"
URLENCODED_FORM = "application/x-www-form-urlencoded"
ABOUT_RAW = (
    "A form, or the recording itself with a `Content-Type` of its own (with curl: "
    "`--data-binary @call.wav -H 'Content-Type: audio/wav'`); then the other fields are query parameters."
)
EVENTS = "text/event-stream"
# Media type and body of an error: of OpenAI's operations (True), and of all others (False).
ERRORS: dict[bool, tuple[str, Any]] = {False: (MEDIA_TYPE, ProblemBody), True: ("application/json", ErrorBody)}
# The convertor in a path of Starlette: ``{id:path}``.
CONVERTOR = re.compile(r":\w+\}")


class _Endpoint(NamedTuple):
    """An operation at one path.

    Attributes:
        path, method: path and method of the route.
        operation: the operation.
        name: the unique ``operationId``.
        first_path: the path under which the same operation is described before; empty at its first path.
    """

    path: str
    method: str
    operation: Operation
    name: str
    first_path: str


class _Types:
    """The schemas of the types of all operations."""

    def __init__(self, endpoints: list[_Endpoint]) -> None:
        sent = [
            *(kind for _, kind in ERRORS.values()),
            *(kind for endpoint in endpoints for kind in _sent(endpoint.operation)),
        ]
        received = [kind for endpoint in endpoints for kind in _received(endpoint.operation)]
        sent_schemas, received_schemas, self.components = schemas_of(sent, received)
        self._sent = {id(kind): schema for kind, schema in zip(sent, sent_schemas, strict=True)}
        self._received = {id(kind): schema for kind, schema in zip(received, received_schemas, strict=True)}

    def sent(self, kind: Any) -> Schema:
        """The schema of a type in a response, or of any of several types."""
        kinds = _kinds(kind)
        return self._sent[id(kinds[0])] if len(kinds) == 1 else {"anyOf": [self._sent[id(kind)] for kind in kinds]}

    def received(self, kind: Any) -> Schema:
        """The schema of a type in a request."""
        return self._received[id(kind)]


def description(routes: Mapping[str, Resource], *, root_path: str, authorization: bool) -> dict[str, Any]:
    """The description as an object for JSON.

    Args:
        routes: path, as Starlette writes it, to its resource.
        root_path: the prefix of the application; empty without a prefix.
        authorization: whether the server asks for keys.
    """
    endpoints = list(_endpoints(routes))
    types = _Types(endpoints)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        methods = paths.setdefault(CONVERTOR.sub("}", endpoint.path), {})
        methods[endpoint.method.lower()] = _operation(endpoint, types, authorization=authorization)
    components: dict[str, Any] = {
        "schemas": dict(sorted(types.components.items())),
        "headers": {"RequestId": _header("Id of the request in the server's log", required=True)},
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
    """The described operations. The name is the handler's, with the words of the path when the name is in use."""
    names: set[str] = set()
    first_paths: dict[int, str] = {}
    for path, resource in routes.items():
        for method, operation in resource.operations.items():
            if operation.hidden:
                continue
            name = operation.handler.__name__
            if name in names:
                name = "_".join([name, *re.findall(r"[A-Za-z0-9]+", path)])
            names.add(name)
            first = first_paths.setdefault(id(operation), path)
            yield _Endpoint(path, method, operation, name, "" if first == path else first)


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The members of a union for which msgspec makes no common schema, because its Structs have no tag."""
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
    docstring = described(operation.handler)
    entry: dict[str, Any] = {"operationId": endpoint.name, "tags": [operation.tag], "summary": docstring.summary}
    same = f"Another path of `{endpoint.method} {endpoint.first_path}`." if endpoint.first_path else ""
    texts = [same, docstring.text, _about_key(operation) if authorization and not operation.open else ""]
    if any(texts):
        entry["description"] = "\n\n".join(filter(None, texts))
    parameters = [_parameter(parameter, types) for parameter in operation.parameters]
    if isinstance(operation.body, FormBody) and operation.body.raw:
        parameters += _raw_parameters(operation.body, types)
    if parameters:
        entry["parameters"] = parameters
    if operation.body is not None:
        entry["requestBody"] = _body(operation.body, types)
    entry["responses"] = _responses(operation, types, authorization=authorization)
    if authorization:
        schemes = (BEARER, BASIC) if endpoint.path in BASIC_PATHS else (BEARER,)
        entry["security"] = [] if operation.open else [{scheme: []} for scheme in schemes]
    return entry


def _about_key(operation: Operation) -> str:
    """What key the operation takes."""
    roles = " or ".join(f"`{role}`" for role in operation.roles)
    scope = f", and the scope `{operation.scope}` if it has scopes" if operation.scope else ""
    return f"Takes a key with the role {roles}{scope}."


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
        # A form without a file may be urlencoded.
        content[URLENCODED_FORM] = {"schema": _form([field for field in body.fields if field.type is not bytes], types)}
    if body.json_fields:
        same = [replace(field, name=field.name.removesuffix("[]")) for field in body.fields if field.type is not bytes]
        content["application/json"] = {"schema": _form([*body.json_fields, *same], types)}
    if not body.raw:
        return {"required": True, "content": content}
    content |= {name: {"schema": {"type": "string", "format": "binary"}} for name in RAW_TYPES}
    return {"required": True, "description": ABOUT_RAW, "content": content}


def _raw_parameters(body: FormBody, types: _Types) -> list[dict[str, Any]]:
    """The query parameters of a body that is the file itself."""
    fields = [field for field in body.fields if field.type is not bytes and field.name != URL_FIELD]
    about_name = "Name of the file when the body is the recording itself; Content-Disposition may name it too"
    file_name = _parameter(Parameter(FILE_NAME, str, about_name), types)
    options = {
        "name": "fields",
        "in": "query",
        "required": False,
        # Each member of the object is a query parameter.
        "style": "form",
        "explode": True,
        "description": "When the body is the recording itself: the fields of the form, each as a query parameter",
        "schema": _form(fields, types),
    }
    return [file_name, options]


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
    schema = {**schema, "description": field.description}
    return schema if field.default is None else {**schema, "default": field.default}


def _responses(operation: Operation, types: _Types, *, authorization: bool) -> dict[str, Any]:
    responses = {str(answer.status): _answer(answer, types) for answer in operation.answers}
    openai = operation.tag == OPENAI_TAG
    media_type, kind = ERRORS[openai]
    for refusal in refusals_of(operation, authorization=authorization, openai=openai):
        status, headers = str(refusal.status), _headers(refusal.headers)
        content = {media_type: {"schema": types.sent(kind)}}
        error = {"description": refusal.description, "headers": headers, "content": content}
        responses[status] = _both(responses[status], error) if status in responses else error
    return dict(sorted(responses.items()))


def _answer(answer: Answer, types: _Types) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.description, "headers": _headers(answer.headers)}
    if answer.content:
        response["content"] = {name: _content(name, types.sent(kind)) for name, kind in answer.content.items()}
    return response


def _content(media_type: str, schema: Schema) -> dict[str, Any]:
    if media_type != EVENTS:
        return {"schema": schema}
    # OpenAPI 3.1 has no keyword for the events of a stream, so the schema describes a single event, as is usual.
    data = {"contentMediaType": "application/json", "contentSchema": schema} if schema != {"type": "string"} else {}
    event = {"data": {"type": "string", **data}, "event": {"type": "string"}, "id": {"type": "string"}}
    return {"schema": {"type": "object", "title": "Event", "properties": event, "required": ["data"]}}


def _both(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merge two responses with the same status."""
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
    headers = {name: _header(text) for name, text in named.items()}
    return {**headers, REQUEST_ID: {"$ref": "#/components/headers/RequestId"}}


def _header(text: str, *, required: bool = False) -> dict[str, Any]:
    return {"description": text, "required": required, "schema": {"type": "string"}}
