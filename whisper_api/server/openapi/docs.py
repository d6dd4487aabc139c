"""The description of the API as a page of HTML that needs no script, with a call by curl for each operation."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from whisper_api.server.openapi.struct_schemas import Schema

Object = Mapping[str, Any]
REFERENCE = "#/components/schemas/"
# Path parameter to its value in an example. Shell variables are expanded between double quotes.
PATH_VALUES = {
    "job_id": "$JOB",
    "speaker_id": "$SPEAKER",
    "endpoint_id": "$WEBHOOK",
    "delivery_id": "$DELIVERY",
    "id": "whisper-1",
    "deployment": "whisper-1",
    "name": "clients",
    "key_id": "$ID",
}

# A placeholder for the server's address, which differs between callers.
ADDRESS_MARK = "{{address}}"
CODE = re.compile(r"`([^`]+)`")
# Keywords of a lower and an upper bound, and the words for the bounds.
BOUNDS = (
    ("minimum", "maximum", "{}"),
    ("exclusiveMinimum", "exclusiveMaximum", "{}, exclusive"),
    ("minLength", "maxLength", "{} characters"),
    ("minItems", "maxItems", "{} of them"),
)


def page(api: Object) -> str:
    """The page for a description that :func:`~whisper_api.server.openapi.openapi.description` has made."""
    info = api["info"]
    title = f"{info['title']} {info['version']}"
    by_tag: dict[str, list[str]] = {tag["name"]: [] for tag in api["tags"]}
    index: dict[str, list[str]] = {tag: [] for tag in by_tag}
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            [tag] = operation["tags"]
            name = f"<b>{method.upper()}</b> <code>{escape(path)}</code>"
            index[tag].append(f'<li><a href="#{escape(operation["operationId"])}">{name}</a></li>')
            by_tag[tag].append(_operation(api, path, method, operation, name))
    contents = "".join(f"<h2>{escape(tag)}</h2><ul>{''.join(lines)}</ul>" for tag, lines in index.items())
    operations = "".join(
        f'<section><h2 id="tag-{escape(tag)}">{escape(tag)}</h2>{"".join(lines)}</section>'
        for tag, lines in by_tag.items()
    )
    schemas = "".join(_component(name, schema) for name, schema in api["components"]["schemas"].items())
    head = (
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{escape(title)}</title>",
        '<link rel="stylesheet" href="assets/docs.css">',
    )
    body = (
        '<a class="skip" href="#main">Skip to the calls</a>',
        f"<header><h1>{escape(title)}</h1>{_prose(info['description'])}{_beginning(api)}</header>",
        f'<nav aria-label="Calls">{contents}<h2><a href="#values">Values</a></h2></nav>',
        f'<main id="main">{operations}<section><h2 id="values">Values</h2>{schemas}</section></main>',
    )
    return "\n".join(
        ("<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", *body, "</body>", "</html>", "")
    )


def _beginning(api: Object) -> str:
    keys = "securitySchemes" in api["components"]
    lines = [f"URL={ADDRESS_MARK}", *(["KEY=wk_..."] if keys else []), "JOB=..."]
    return (
        f'<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI {escape(api["openapi"])}). '
        f"The examples use these variables:</p><pre><code>{escape(chr(10).join(lines))}</code></pre>"
    )


# The anchor is inside the folded part, because browsers unfold the part when a link leads there.
def _operation(api: Object, path: str, method: str, operation: Object, name: str) -> str:
    anchor = escape(operation["operationId"])
    parts = [_prose(operation.get("description", ""))]
    if operation.get("security") == []:
        parts.append("<p>No key is needed.</p>")
    parts.append(f"<pre><code>{escape(curl_of(api, path, method, operation))}</code></pre>")
    rows = [
        _row(
            parameter["name"],
            {**parameter["schema"], "description": parameter["description"]},
            parameter["required"],
            parameter["in"],
        )
        for parameter in operation.get("parameters", ())
    ]
    parts.append(_table("Parameters", rows))
    body = operation.get("requestBody", {})
    parts.append(_prose(body.get("description", "")))
    for media_type, content in body.get("content", {}).items():
        if media_type != "application/x-www-form-urlencoded":
            parts.append(_body(media_type, content["schema"]))
    parts.append(f"<h4>Answers</h4><dl>{''.join(_answers(operation['responses']))}</dl>")
    return (
        f'<details class="call"><summary><h3>{name}</h3> <span>{_text(operation["summary"])}</span></summary>'
        f'<div id="{anchor}">{"".join(parts)}</div></details>'
    )


def _answers(responses: Object) -> Iterator[str]:
    for status, response in responses.items():
        kind = "bad" if status >= "400" else "good"
        parts = [_prose(response["description"])]
        for media_type, content in response.get("content", {}).items():
            shape = content["schema"]
            if media_type == "text/event-stream":
                shape = shape["properties"]["data"].get("contentSchema", shape)
            parts.append(f"<p><code>{escape(media_type)}</code> {_type(shape)}</p>")
        headers = [
            f"<li><code>{escape(name)}</code>: {_text(header['description'])}</li>"
            for name, header in response["headers"].items()
            if "description" in header
        ]
        if headers:
            parts.append(f"<ul>{''.join(headers)}</ul>")
        yield f'<dt class="{kind}">{escape(status)}</dt><dd>{"".join(parts)}</dd>'


def _body(media_type: str, schema: Schema) -> str:
    if "properties" not in schema:
        return f"<h4>Body</h4><p><code>{escape(media_type)}</code> {_type(schema)}</p>"
    return _table(f"Body, {media_type}", _rows(schema))


def _component(name: str, schema: Schema) -> str:
    anchor = escape(name)
    return (
        f'<details class="value"><summary><h3><code>{anchor}</code></h3></summary>'
        f'<div id="value-{anchor}">{_prose(schema.get("description", ""))}{_table("", _rows(schema))}</div></details>'
    )


def _table(heading: str, rows: list[str]) -> str:
    if not rows:
        return ""
    title = f"<h4>{escape(heading)}</h4>" if heading else ""
    return (
        f'{title}<div class="wide"><table><thead><tr><th scope="col">Name</th><th scope="col">Type</th>'
        f'<th scope="col">Description</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _rows(schema: Schema) -> list[str]:
    required = schema.get("required", ())
    return [_row(name, field, name in required) for name, field in schema.get("properties", {}).items()]


def _row(name: str, schema: Schema, required: bool, location: str = "") -> str:
    notes = [location] if location else []
    if required:
        notes.append("always there" if not location else "required")
    note = f" <small>{escape(', '.join(notes))}</small>" if notes else ""
    sentences = [f"{_text(schema['description'].rstrip('.'))}."] if "description" in schema else []
    default = schema.get("default")
    if default is not None and default not in ((), [], {}, ""):
        sentences.append(f"Default <code>{escape(_value(default))}</code>.")
    cells = f"<td>{_type(schema)}</td><td>{' '.join(sentences)}</td>"
    return f'<tr><th scope="row"><code>{escape(name)}</code>{note}</th>{cells}</tr>'


def _type(schema: Schema) -> str:
    """The values of a schema, in words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(REFERENCE))
        return f'<a href="#value-{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(_value(value))}</code>" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array" and "items" in schema:
        return f"list of {_type(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    words = {"binary": "file", "date-time": "time (RFC 3339)"}.get(schema.get("format", ""), str(kind))
    pattern = f", matches <code>{escape(schema['pattern'])}</code>" if "pattern" in schema else ""
    return escape(", ".join([words, *_bounds(schema)])) + pattern


def _bounds(schema: Schema) -> Iterator[str]:
    for low, high, text in BOUNDS:
        if low in schema and high in schema:
            yield text.format(f"{schema[low]:g} to {schema[high]:g}")
        elif low in schema:
            yield text.format(f"at least {schema[low]:g}")
        elif high in schema:
            yield text.format(f"at most {schema[high]:g}")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _prose(text: str) -> str:
    """Convert the paragraphs and lists of a CommonMark text to HTML; descriptions use no other markup."""
    blocks = []
    for paragraph in filter(None, text.split("\n\n")):
        if paragraph.startswith("- "):
            items = paragraph.removeprefix("- ").split("\n- ")
            blocks.append(f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in items)}</ul>")
        else:
            blocks.append(f"<p>{_text(paragraph)}</p>")
    return "".join(blocks)


def _text(text: str) -> str:
    return CODE.sub(r"<code>\1</code>", escape(text))


def curl_of(api: Object, path: str, method: str, operation: Object) -> str:
    """An example call with the required parameters.

    Args:
        api: the whole description.
        path: path of the operation.
        method: HTTP method, in lower case.
        operation: the operation's part of the description.
    """
    words = ["curl"]
    if set(operation["responses"].get("200", {}).get("content", ())) == {"text/event-stream"}:
        # Without a buffer, curl shows each event when it arrives.
        words.append("-N")
    if method not in ("get", "post"):
        words.append(f"-X {method.upper()}")
    if operation.get("security"):
        words.append('-H "Authorization: Bearer $KEY"')
    query = []
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", PATH_VALUES.get(parameter["name"], "..."))
        elif parameter["required"]:
            query.append(f"{parameter['name']}=...")
    bodies = operation.get("requestBody", {}).get("content", {})
    for media_type, content in list(bodies.items())[:1]:
        words += _body_arguments(api, media_type, content["schema"])
    address = f"$URL{path}" + (f"?{'&'.join(query)}" if query else "")
    return " ".join([*words, f'"{address}"'])


def _body_arguments(api: Object, media_type: str, schema: Object) -> list[str]:
    if media_type == "application/json":
        return ["-H 'Content-Type: application/json'", "-d", shlex.quote(json.dumps(_example(api, schema)))]
    if media_type != "multipart/form-data":
        return []
    required = schema.get("required", ())
    files = {name: field for name, field in schema["properties"].items() if _is_file(field)}
    words = [f"-F {name}=@call.wav" for name in list(files)[:1]]
    for name, field in schema["properties"].items():
        if name in required and name not in files:
            words.append(f"-F {name}={shlex.quote(str(_example(api, field)))}")
    return words


def _is_file(schema: Object) -> bool:
    item = schema.get("items", schema)
    return bool(item.get("format") == "binary")


def _example(api: Object, schema: Object) -> Any:
    """A small value of a schema."""
    if "$ref" in schema:
        return _example(api, api["components"]["schemas"][schema["$ref"].removeprefix(REFERENCE)])
    if schema.get("examples"):
        return schema["examples"][0]
    if schema.get("default") is not None and schema["default"] not in ((), [], {}):
        return schema["default"]
    if "anyOf" in schema:
        return _example(api, schema["anyOf"][0])
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            values = {name: _example(api, part) for name, part in schema.get("properties", {}).items()}
            return values or {"SPEAKER_00": "Ann"} if "additionalProperties" in schema else values
        case "array":
            return [_example(api, schema["items"])]
        case "integer":
            return 0
        case "number":
            return 0.5
        case "boolean":
            return True
        case _:
            return "..."
