"""The page of the description: it needs nothing but itself, everything in it leads somewhere, its examples work."""

from __future__ import annotations

import collections
import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from server.harness import PATIENCE_SECONDS, RunningServer, finish, submit
from server.inside import inside, on_a_loop
from whisper_api.server.app import ROUTES
from whisper_api.server.openapi.docs import page
from whisper_api.server.openapi.openapi import description

# They have no end tag.
VOID = {"meta", "link"}


class Elements(HTMLParser):
    """The elements of a page: which there are, whether each is closed, and what they say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: dict[str, list[dict[str, str | None]]] = collections.defaultdict(list)
        self.texts: dict[str, list[str]] = collections.defaultdict(list)
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes[tag].append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]].append(data)

    @property
    def ids(self) -> list[str]:
        every = [given for elements in self.attributes.values() for given in elements]
        return [given["id"] or "" for given in every if "id" in given]


def shown(authorization: bool = True) -> Elements:
    return Elements(page(description(ROUTES, root_path="", authorization=authorization)))


def test_the_page_has_no_scripts_and_loads_only_its_own_stylesheet() -> None:
    found = shown()
    assert not found.attributes.keys() & {"script", "style", "img", "iframe", "object", "form", "base"}
    assert [given["href"] for given in found.attributes["link"]] == ["assets/docs.css"]
    for elements in found.attributes.values():
        assert not any(name == "style" or name.startswith("on") for given in elements for name in given)


def test_every_link_leads_somewhere() -> None:
    found = shown()
    assert len(found.ids) == len(set(found.ids))
    targets = [given["href"] or "" for given in found.attributes["a"]]
    assert len(targets) > 100
    assert {target for target in targets if not target.startswith("#")} == {"openapi.json"}
    assert {target[1:] for target in targets if target.startswith("#")} <= set(found.ids)


def test_the_page_shows_every_operation_field_and_status() -> None:
    api = description(ROUTES, root_path="", authorization=True)
    found = shown()
    words = set(found.texts["code"])
    for path, methods in api["paths"].items():
        assert path in words
        for operation in methods.values():
            assert operation["operationId"] in found.ids
            assert {parameter["name"] for parameter in operation.get("parameters", [])} <= words
            assert set(operation["responses"]) <= set(found.texts["dt"])
            for content in operation.get("requestBody", {}).get("content", {}).values():
                assert set(content["schema"].get("properties", {})) <= words
    for name, schema in api["components"]["schemas"].items():
        assert f"value-{name}" in found.ids
        assert set(schema["properties"]) <= words


def test_screen_readers_find_landmarks_headings_and_labels() -> None:
    found = shown()
    assert found.attributes["html"] == [{"lang": "en"}]
    assert len(found.attributes["h1"]) == len(found.attributes["main"]) == 1
    assert [given.get("aria-label") for given in found.attributes["nav"]] == ["Calls"]
    assert found.attributes["a"][0] == {"class": "skip", "href": "#main"}
    assert all("scope" in given for given in found.attributes["th"])


def test_texts_of_the_description_cannot_become_markup() -> None:
    evil = '<b onclick="x">&amp;'
    api = description(ROUTES, root_path="", authorization=True)
    api["info"]["description"] = f"`{evil}` {evil}"
    schema = api["components"]["schemas"]["JobStatus"]
    schema["properties"][evil] = {"enum": [evil], "default": evil, "description": evil}
    text = page(api)
    assert "<b onclick" not in text
    assert text.count(html.escape(evil)) >= 5
    Elements(text)


@on_a_loop
async def test_the_page_is_served_without_a_key_under_a_strict_policy(tmp_path: Path) -> None:
    async with inside(tmp_path, enable_authorization=True) as app, app.client() as client:
        answer = await client.get("/docs", headers={"Host": "it's<b>:1"})
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
        assert "<b>:1" not in answer.text
        Elements(answer.text)
        style = await client.get("/assets/docs.css")
        assert style.headers["Content-Type"] == "text/css; charset=utf-8"
        assert "prefers-color-scheme: dark" in style.text
        assert not re.search(r"@import|url\(", style.text)


@on_a_loop
async def test_the_page_mentions_no_key_when_authorization_is_off(tmp_path: Path) -> None:
    async with inside(tmp_path) as app, app.client() as client:
        text = (await client.get("/docs")).text
        assert "$KEY" not in text
        assert "KEY=" not in text


@pytest.mark.usefixtures("no_speakers")
def test_the_examples_work(server: RunningServer, hello: bytes, speech: bytes, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("there is no curl on this machine")
    # One speaker, so that the file can be enrolled as well.
    (tmp_path / "call.wav").write_bytes(speech)
    with server.client() as client:
        job_id = submit(client, hello, keep_result="true", align="true", diarize="true")
        finish(client, job_id, "Completed")
        made = client.post("/speakers", data={"name": "Ann"}, files={"samples": ("call.wav", speech)})
        speaker_id = made.json()["speaker_id"]
        examples = [text for text in Elements(client.get("/docs").text).texts["code"] if text.startswith("curl ")]
    assert len(examples) > 15
    # The shared server sends no webhooks, as shipped.
    examples = [
        line for line in examples if "URL/webhooks" not in line or line.endswith(('/webhooks/secret"', '/deliveries"'))
    ]
    # Skip examples that leave an unfinished job. Run those that store something first, and those that remove it last.
    examples = [line for line in examples if not re.search(r'URL/(transcribe|transcription|transcriptions)"', line)]
    for line in sorted(examples, key=lambda line: ("DELETE" in line, "PUT" not in line)):
        done = subprocess.run(
            ["/bin/sh", "-c", line.replace("curl ", 'curl -sS -o /dev/null -w "%{http_code}" --noproxy "*" ', 1)],
            env={
                "URL": server.url,
                # A user's key may read neither the metrics nor the audit trail, and may not manage keys.
                "KEY": server.admin_key if "/metrics" in line or "/admin/" in line else server.user_key,
                "ID": server.key("tests-docs")[3:11],
                "JOB": job_id,
                "SPEAKER": speaker_id,
                "PATH": str(Path(curl).parent),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        creates = ("-F" in line and line.endswith('/speakers"')) or ("-d" in line and line.endswith('/admin/keys"'))
        expected = ("201",) if creates else ("200", "204")
        assert done.stdout in expected, f"{line}: {done.stdout} {done.stderr}"
