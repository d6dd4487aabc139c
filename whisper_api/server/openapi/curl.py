"""Example calls of the API as curl command lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

__all__ = ["REFERENCE", "curl_of"]

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
