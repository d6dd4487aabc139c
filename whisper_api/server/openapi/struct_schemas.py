"""JSON Schemas of requests and responses: msgspec's schemas with the descriptions from docstrings, read here too."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

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
    waiting = list(msgspec.inspect.multi_type_info(types))
    while waiting:
        info = waiting.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in found:
                continue
            found.add(info.cls)
            waiting += [field.type for field in info.fields]
        else:
            for name in ("type", "types", "item_type", "item_types", "key_type", "value_type"):
                inner = getattr(info, name, ())
                waiting += [part for part in (inner if isinstance(inner, tuple) else (inner,)) if part is not None]
    return found


# ``:class:`~whisper_api.schema.Word```, of which the description keeps the last name.
ROLE = re.compile(r":[a-z]+:`~?(?:[\w.]*\.)?(\w+)`")
LITERAL = re.compile(r"``([^`]+)``")
CONSTANT = re.compile(r"\b(None|True|False)\b")
IN_JSON = {"None": "null", "True": "true", "False": "false"}
SECTION = re.compile(r"(Attributes|Args|Returns|Raises|Yields)(?:, as an answer)?:(.*)")
# One or several names with the same description.
ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")


@dataclasses.dataclass(frozen=True)
class Described:
    """The parts of a docstring.

    Attributes:
        summary: the first line, without the full stop.
        text: the paragraphs between the summary and the first section.
        attributes: name to description.
    """

    summary: str = ""
    text: str = ""
    attributes: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def whole(self) -> str:
        """The summary and the text as paragraphs."""
        return "\n\n".join(part for part in (f"{self.summary}." if self.summary else "", self.text) if part)


def described(thing: Callable[..., object]) -> Described:
    """The parts of the docstring of a class or function."""
    summary, _, rest = inspect.cleandoc(thing.__doc__ or "").partition("\n")
    paragraphs = [""]
    attributes: dict[str, list[str]] = {}
    section = ""
    names: tuple[str, ...] = ()
    for line in rest.splitlines():
        if heading := SECTION.fullmatch(line):
            section = heading[1]
        elif line and not line.startswith(" "):
            section = ""
        if section == "Attributes":
            if entry := ENTRY.fullmatch(line):
                names = tuple(entry[1].split(", "))
                attributes.update({name: [entry[2]] for name in names})
            elif line.strip() and names:
                for name in names:
                    attributes[name].append(line.strip())
        elif not section:
            if not line:
                paragraphs.append("")
            else:
                # The lines of a paragraph are joined; the items of a list stay on lines of their own.
                separator = "\n" if line.startswith("- ") else " "
                paragraphs[-1] = separator.join(filter(None, (paragraphs[-1], line.strip())))
    return Described(
        summary=plain(summary).rstrip("."),
        text="\n\n".join(plain(paragraph) for paragraph in paragraphs if paragraph),
        attributes={
            # Readers of the API know Python's constants by JSON's names.
            name: CONSTANT.sub(lambda found: IN_JSON[found[0]], plain(" ".join(lines)))
            for name, lines in attributes.items()
        },
    )


def plain(text: str) -> str:
    """Convert a text from reStructuredText to CommonMark, the language of OpenAPI's descriptions."""
    return LITERAL.sub(r"`\1`", ROLE.sub(r"`\1`", text)).strip()
