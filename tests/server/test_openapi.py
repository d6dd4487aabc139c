"""The description of the API: that it is OpenAPI, that it says everything, and that it says what is so."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import httpx
import msgspec
import pytest
from msgspec import Meta
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from server.inside import inside, on_a_loop
from whisper_api.errors import InvalidAudio, JobNotFinished, QueueFull, UnknownModel
from whisper_api.job_values import Corrections, JobResult, JobStatus
from whisper_api.jobs.health import Health
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Segment
from whisper_api.server.app import ROUTES
from whisper_api.server.middleware.auth import BASIC_PATHS, OPEN_PATHS, OPEN_PREFIXES
from whisper_api.server.openapi.openapi import description
from whisper_api.server.openapi.struct_schemas import schemas_of, without_null
from whisper_api.server.operations import Answer, FormBody, JsonBody, Operation, Parameter, Resource
from whisper_api.server.responses.problems import Problem
from whisper_api.server.routes.jobs import WhisperxTranscript
from whisper_api.server.uploads.form_fields import FormField
from whisper_api.server.uploads.forms import DECLARED

GOLDEN = Path(__file__).parents[1] / "golden" / "call.json"


def described(authorization: bool = True, root_path: str = "") -> dict[str, Any]:
    """The description as a client reads it from JSON."""
    api = description(ROUTES, root_path=root_path, authorization=authorization)
    read: dict[str, Any] = json.loads(json.dumps(api))
    return read


def operations(api: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for key, part in value.items():
            yield from part.values() if key == "mapping" else references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


# --- that it is OpenAPI ---


@pytest.mark.parametrize("authorization", [True, False])
def test_the_description_is_valid_openapi(authorization: bool) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="Schemathesis, which has the schema, needs Python 3.11")
    api = described(authorization)
    assert api["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(api).validate()
    broken = {**api, "paths": {"/x": {"get": {"responses": []}}}}
    with pytest.raises(Exception, match=r"responses|array|object"):
        schemathesis.openapi.from_dict(broken).validate()


def test_every_schema_is_one() -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="comes with Schemathesis, which needs Python 3.11")
    for name, schema in described()["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid(schema), name


def test_every_reference_leads_somewhere_and_nothing_lies_about() -> None:
    api = described()
    found = set(references(api))
    names = {reference.removeprefix("#/components/schemas/") for reference in found if "/schemas/" in reference}
    assert names == set(api["components"]["schemas"])
    assert found - {f"#/components/schemas/{name}" for name in names} == {"#/components/headers/RequestId"}


def test_the_names_of_operations_are_their_own() -> None:
    names = [operation["operationId"] for _, operation in operations(described())]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)


def test_another_address_says_of_which() -> None:
    paths = described()["paths"]
    assert paths["/transcription"]["post"]["description"].startswith("Another path of `POST /transcribe`.\n\n")
    assert paths["/health"]["get"]["description"].startswith("Another path of `GET /readyz`.")
    assert "Another path" not in paths["/transcribe"]["post"]["description"]


# --- that it says everything ---


def test_a_json_body_whose_fields_have_defaults_takes_no_unknown_field() -> None:
    """A misspelt field would leave the default: a key without the limit that was meant."""
    bodies = [
        operation.body.type
        for resource in ROUTES.values()
        for operation in resource.operations.values()
        if isinstance(operation.body, JsonBody)
    ]
    lenient = {
        kind.__name__
        for kind in bodies
        if not kind.__struct_config__.forbid_unknown_fields
        and not all(field.required for field in msgspec.structs.fields(kind))
    }
    assert len(bodies) > 5
    assert lenient == set()


def test_the_description_has_every_route_and_method() -> None:
    served = {
        f"{method} {re.sub(':[a-z]+}', '}', path)}"
        for path, resource in ROUTES.items()
        for method, operation in resource.operations.items()
        if not operation.hidden
    }
    assert {name for name, _ in operations(described())} == served
    assert {"POST /transcribe", "GET /openapi.json", "POST /v1/audio/transcriptions"} <= served


def test_every_parameter_of_a_path_is_described() -> None:
    for name, operation in operations(described()):
        given = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        assert given == set(re.findall(r"{(\w+)}", name)), name


def test_everything_has_words() -> None:
    api = described()
    for name, operation in operations(api):
        assert operation["summary"], name
        assert all(parameter["description"] for parameter in operation.get("parameters", [])), name
        assert all(response["description"] for response in operation["responses"].values()), name
        for content in operation.get("requestBody", {}).get("content", {}).values():
            fields = content["schema"].get("properties", {})
            assert all(field["description"] for field in fields.values()), name
    for name, schema in api["components"]["schemas"].items():
        assert schema["description"], name
        missing = {
            field for field, told in schema["properties"].items() if not ("description" in told or "$ref" in told)
        }
        assert not missing, f"{name}: {missing}"


def test_the_description_has_no_python_markup() -> None:
    text = json.dumps(described())
    assert "``" not in text
    assert ":class:" not in text
    assert "Attributes:" not in text
    assert "Raises:" not in text


def test_the_description_has_every_field_of_the_form() -> None:
    body = described()["paths"]["/transcribe"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    names = {name.removesuffix("[]") for name in body["properties"]}
    assert names == {*(field.name for field in DECLARED), "file"}
    assert body["properties"]["file"]["format"] == "binary"
    assert body["properties"]["align"]["default"] is True
    assert body["properties"]["num_speakers"] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 100,
        "description": "Exact number of speakers, when it is known",
    }


# --- that it says what is so ---


def test_only_operations_with_authorization_mention_a_key() -> None:
    with_keys, without = described(), described(authorization=False)
    assert {name: scheme["scheme"] for name, scheme in with_keys["components"]["securitySchemes"].items()} == {
        "bearer": "bearer",
        "basic": "basic",
    }
    assert "securitySchemes" not in without["components"]
    for name, operation in operations(with_keys):
        is_open = name.removeprefix("GET ") in ("/livez", "/readyz", "/health", "/docs", "/openapi.json")
        basic: list[dict[str, list[str]]] = [{"basic": []}] if name.removeprefix("POST ") in BASIC_PATHS else []
        assert operation["security"] == ([] if is_open else [{"bearer": []}, *basic]), name
        assert ("401" in operation["responses"]) is not is_open, name
        assert ("403" in operation["responses"]) is not is_open, name
    for name, operation in operations(without):
        assert "security" not in operation, name
        assert "401" not in operation["responses"], name


def test_errors_of_openai_routes_have_the_shape_of_openai() -> None:
    for name, operation in operations(described()):
        for status, response in operation["responses"].items():
            if status < "400":
                continue
            if "/v1/" in name or " /openai/" in name:
                assert set(response["content"]) == {"application/json"}
                assert response["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorBody")
            else:
                assert set(response["content"]) == {"application/problem+json"}
                assert response["content"]["application/problem+json"]["schema"]["$ref"].endswith("/ProblemBody")
            later = status in ("429", "503") or "`job_not_finished`" in response["description"]
            assert ("Retry-After" in response["headers"]) is later


def test_the_description_lists_the_states_in_which_the_server_is_not_ready() -> None:
    refused = described()["paths"]["/readyz"]["get"]["responses"]["503"]["description"]
    states = {state for state in get_args(get_type_hints(Health)["state"]) if state != "ready"}
    assert len(states) == 7
    assert states <= set(re.findall(r"`(\w+)`: ", refused))


def test_operations_without_authorization_are_described_as_such() -> None:
    is_open = {
        path for path, resource in ROUTES.items() if any(operation.open for operation in resource.operations.values())
    }
    assert is_open == {*OPEN_PATHS, *(f"{prefix}{{name}}" for prefix in OPEN_PREFIXES)}


class Inner(msgspec.Struct, omit_defaults=True):
    """What stands in it.

    Attributes:
        one, two: numbers, or None.
    """

    one: int | None = None
    two: Annotated[int, Meta(ge=3)] | None = None


class Outer(msgspec.Struct):
    """What is sent. More is said of it.

    Attributes:
        inner: the ``Inner``, as :class:`whisper_api.x.Inner` says,
            on two lines.
    """

    inner: Inner
    always: int = 5
    some: int | msgspec.UnsetType = msgspec.UNSET


class FormFields(msgspec.Struct):
    """What is received."""

    value: int = 1


async def handler(request: Request) -> Response:
    """Do something.

    As it is done.

    Raises:
        Nothing: that is read here.
    """
    return Response()


def described_as(operation: Operation, path: str = "/x/{name}", authorization: bool = True) -> dict[str, Any]:
    routes = {path: Resource({"POST": operation})}
    api: dict[str, Any] = description(routes, root_path="", authorization=authorization)
    assert set(api["paths"]) == {path.replace(":path", "")}
    return api


def test_an_operation_has_the_texts_of_its_declaration() -> None:
    operation = Operation(
        handler,
        (Answer(200, "Done", {"application/json": Outer, "text/plain": str}, {"Location": "Where"}),),
        "Things",
        refusals=(UnknownModel, InvalidAudio, JobNotFinished, Problem(413, "too_large", "There is more than may be")),
        parameters=(
            Parameter("name", str, "Whose", location="path"),
            Parameter("limit", Annotated[int, Meta(le=9)] | None, "How many", 3),
        ),
        body=JsonBody(FormFields),
    )
    api = described_as(operation, "/x/{name:path}")
    told = api["paths"]["/x/{name}"]["post"]
    assert told["operationId"] == "handler"
    assert (told["summary"], told["description"]) == (
        "Do something",
        "As it is done.\n\nTakes a key with the role `user` or `admin`.",
    )
    assert told["parameters"][0]["required"] is True
    assert told["parameters"][1]["schema"] == {"type": "integer", "maximum": 9, "default": 3}
    assert told["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/FormFields"}
    assert list(told["responses"]) == [
        "200",
        "400",
        "401",
        "403",
        "408",
        "409",
        "413",
        "415",
        "422",
        "429",
        "500",
        "503",
    ]
    done = told["responses"]["200"]
    assert done["content"]["text/plain"]["schema"] == {"type": "string"}
    assert done["headers"]["Location"]["description"] == "Where"
    assert told["responses"]["415"]["description"].startswith("- `invalid_audio`: ")
    assert "\n- `content_encoding`: " in told["responses"]["415"]["description"]
    assert "- `too_large`: there is more than may be" in told["responses"]["413"]["description"].splitlines()
    assert told["responses"]["422"]["description"].startswith("`unknown_model`: ")
    schemas = api["components"]["schemas"]
    assert schemas["Outer"]["required"] == ["inner", "always"]
    assert schemas["Outer"]["description"] == "What is sent. More is said of it."
    assert schemas["Outer"]["properties"]["inner"]["description"] == "the `Inner`, as `Inner` says, on two lines."
    assert schemas["Inner"]["required"] == []
    assert schemas["Inner"]["properties"]["two"]["description"] == "numbers, or null."
    assert schemas["FormFields"]["required"] == []


def test_openai_s_operations_say_some_errors_otherwise() -> None:
    operation = Operation(handler, (), "Things", refusals=(UnknownModel, InvalidAudio, QueueFull))
    native = described_as(operation, "/x")["paths"]["/x"]["post"]["responses"]
    operation = dataclasses.replace(operation, tag="OpenAI")
    openai = described_as(operation, "/v1/x")["paths"]["/v1/x"]["post"]["responses"]
    assert set(native) - set(openai) == {"415", "422"}
    assert set(openai) - set(native) == {"404"}
    assert "`model_not_found`" in openai["404"]["description"]
    assert "`invalid_audio`" in openai["400"]["description"]
    assert "`queue_full`" in openai["503"]["description"]


def test_a_status_that_is_both_an_answer_and_an_error_has_both() -> None:
    operation = Operation(handler, (Answer(404, "It is not, but here is why", {"text/plain": str}),), "Things", (404,))
    told = described_as(operation)["paths"]["/x/{name}"]["post"]["responses"]["404"]
    assert set(told["content"]) == {"text/plain", "application/problem+json"}
    assert told["description"] == "It is not, but here is why\n\nNothing has this name"


def test_forms_take_files_and_lists() -> None:
    fields = (FormField("file", bytes, "Audio", required=True, repeated=True), FormField("url", str, "Where it is"))
    told = described_as(Operation(handler, (), "Things", body=FormBody(fields)))["paths"]["/x/{name}"]["post"]
    content = told["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert form["properties"]["file"]["type"] == "array"
    assert form["properties"]["file"]["items"]["format"] == "binary"
    assert set(content["application/x-www-form-urlencoded"]["schema"]["properties"]) == {"url"}


def test_a_body_that_may_be_the_file_itself_has_its_fields_in_the_query() -> None:
    fields = (
        FormField("file", bytes, "Audio"),
        FormField("url", str, "Where it is"),
        FormField("beam_size", int, "How many", default=5),
    )
    told = described_as(Operation(handler, (), "Things", body=FormBody(fields, raw=True)))["paths"]["/x/{name}"]["post"]
    body = told["requestBody"]
    assert {"multipart/form-data", "audio/*", "video/*", "application/octet-stream"} <= set(body["content"])
    assert "--data-binary" in body["description"]
    name, given = told["parameters"]
    assert (name["name"], name["in"]) == ("filename", "query")
    assert (given["in"], given["style"], given["explode"]) == ("query", "form", True)
    assert set(given["schema"]["properties"]) == {"beam_size"}


def test_events_are_described_by_their_data() -> None:
    operation = Operation(handler, (Answer(200, "Events", {"text/event-stream": FormFields | Outer}),), "Things")
    told = described_as(operation)["paths"]["/x/{name}"]["post"]["responses"]["200"]
    event = told["content"]["text/event-stream"]["schema"]
    assert event["required"] == ["data"]
    data = event["properties"]["data"]["contentSchema"]
    assert [part["$ref"].rpartition("/")[2] for part in data["anyOf"]] == ["FormFields", "Outer"]


def test_null_is_nothing_that_a_form_can_hold() -> None:
    number = {"type": "integer", "minimum": 1}
    assert without_null({"anyOf": [number, {"type": "null"}], "description": "x"}) == {**number, "description": "x"}
    both = {"anyOf": [number, {"type": "string"}, {"type": "null"}]}
    assert without_null(both) == {"anyOf": [number, {"type": "string"}]}
    assert without_null(number) == number


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (JobStatus, JobStatus(job_id="x", status="Queued", created_at="2026-01-01T00:00:00Z")),
        (JobResult, JobResult(text="", language="en", segments=(), duration=1.0, model="base")),
        (Segment, Segment(id=0, start=0.0, end=1.0, text="Hello.")),
        (TranscriptionOptions, TranscriptionOptions(language="fr", num_speakers=2)),
        (Corrections, Corrections()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_every_response_matches_its_schema_and_needs_all_required_fields(kind: type, value: msgspec.Struct) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="comes with Schemathesis, which needs Python 3.11")
    [schema], _, components = schemas_of([kind], [])
    whole = json.loads(json.dumps({**schema, "components": {"schemas": components}}))
    sent = json.loads(msgspec.json.encode(value))
    jsonschema_rs.validate(whole, sent)
    for name in components[kind.__name__]["required"]:
        assert not jsonschema_rs.is_valid(whole, {key: part for key, part in sent.items() if key != name}), name


def test_the_format_json_is_as_described() -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="comes with Schemathesis, which needs Python 3.11")
    [schema], _, components = schemas_of([WhisperxTranscript], [])
    for component in components.values():
        component["additionalProperties"] = False
    whole = json.loads(json.dumps({**schema, "components": {"schemas": components}}))
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    jsonschema_rs.validate(whole, golden)
    assert not jsonschema_rs.is_valid(whole, {**golden, "more": 1})


# --- as it is served ---


@on_a_loop
async def test_the_description_is_served_without_a_key(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client() as client:
        answer = await client.get("/openapi.json")
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json() == described()
        head = await client.head("/openapi.json")
        assert head.status_code == 200
        assert (await client.post("/openapi.json")).status_code == 405


@on_a_loop
async def test_the_description_names_the_prefix_of_the_application(tmp_path: Path) -> None:
    async with inside(tmp_path) as app:
        outer = Starlette(routes=[Mount("/speech", app.app)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://127.0.0.1") as client:
            assert (await client.get("/speech/openapi.json")).json()["servers"] == [{"url": "/speech"}]
            page = (await client.get("/speech/docs")).text
            assert "URL=http://127.0.0.1/speech\n" in page
    assert described(authorization=False)["servers"] == [{"url": "/"}]
