"""JSON Schemas of requests and responses: msgspec's schemas with the descriptions from docstrings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from whisper_api.server.openapi.docstrings import described

__all__ = ["Schema", "schemas_of", "without_null"]

Schema = dict[str, Any]

REF_TEMPLATE = "#/components/schemas/{name}"
# With ``omit_defaults`` msgspec omits an empty value of a field with one of these default factories.
OMITTED_FACTORIES = (list, dict, set, tuple, frozenset)


def schemas_of(sent: Sequence[Any], received: Sequence[Any]) -> tuple[list[Schema], list[Schema], dict[str, Schema]]:
    """The schemas of types, and the components that the schemas refer to.

    In a Struct that is only sent, every field that is always present is required: a default means nothing to a reader.

    Args:
        sent: types in responses.
        received: types in requests.

    Returns:
        One schema for each of ``sent``, one for each of ``received``, and the components by name.
    """
    schemas, components = msgspec.json.schema_components([*sent, *received], ref_template=REF_TEMPLATE)
    also_received = _structs(received)
    for struct in _structs([*sent, *received]):
        component = components.get(struct.__name__)
        if component is None:
            # msgspec prefixes the module when two Structs have the same name.
            component = components[f"{struct.__module__}.{struct.__qualname__}"]
        _describe(component, struct)
        if struct not in also_received:
            _require(component, struct)
    return list(schemas[: len(sent)]), list(schemas[len(sent) :]), components


def without_null(schema: Schema) -> Schema:
    """The schema without null: a field of a form or a query is present or absent, but never null."""
    parts = schema.get("anyOf")
    if parts is None:
        return schema
    rest = [part for part in parts if part != {"type": "null"}]
    others = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**rest[0], **others} if len(rest) == 1 else {**others, "anyOf": rest}


def _describe(component: Schema, struct: type[msgspec.Struct]) -> None:
    docstring = described(struct)
    component["description"] = docstring.whole
    for name, field in zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True):
        if name in docstring.attributes:
            component["properties"][field].setdefault("description", docstring.attributes[name])
    tag = struct.__struct_config__.tag_field
    if tag is not None:
        component["properties"][tag]["description"] = "always this word"


def _require(component: Schema, struct: type[msgspec.Struct]) -> None:
    always = set(component["required"])
    leaves_out = struct.__struct_config__.omit_defaults
    for field in msgspec.structs.fields(struct):
        factory = field.default_factory
        has_default = field.default is not msgspec.NODEFAULT and field.default is not msgspec.UNSET
        if (has_default and not leaves_out) or (
            factory is not msgspec.NODEFAULT and not (leaves_out and factory in OMITTED_FACTORIES)
        ):
            always.add(field.encode_name)
            component["properties"][field.encode_name].pop("default", None)
    component["required"] = [name for name in component["properties"] if name in always]


def _structs(types: Iterable[Any]) -> set[type[msgspec.Struct]]:
    """The Structs that types contain."""
    found: set[type[msgspec.Struct]] = set()
    waiting = list(inspect.multi_type_info(types))
    while waiting:
        info = waiting.pop()
        if isinstance(info, inspect.StructType):
            if info.cls in found:
                continue
            found.add(info.cls)
            waiting += [field.type for field in info.fields]
        else:
            for name in ("type", "types", "item_type", "item_types", "key_type", "value_type"):
                inner = getattr(info, name, ())
                waiting += [part for part in (inner if isinstance(inner, tuple) else (inner,)) if part is not None]
    return found
