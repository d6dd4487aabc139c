"""The documents agree with the repository: links, commands, calls of the API, folders and scripts that they name."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documents import DOCUMENTS, ROOT, between, examples, prose
from msgspec.structs import asdict
from server.inside import inside

from whisper_api import Config
from whisper_api.cli.main import main
from whisper_api.subtitles.rules import LANGUAGES, PRESETS

API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
LINKED = [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "models_cache" / "README.md"]
# Lines of shell examples that this test does not look into: they install, or run what other tests run.
OTHER_COMMANDS = ("curl ", "docker ", "export ", "pip install ", "mkdocs ", ".venv/bin/pip ", ".venv/bin/pre-commit ")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# --- links ---


def anchors(path: Path) -> set[str]:
    """The anchors that MkDocs and code hosts make of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", LINKED, ids=relative)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target
        if path.parent == ROOT / "docs":
            assert found.is_relative_to(path.parent), f"{target}: the built site has only what is in docs/"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, new = set[Path](), {ROOT / "README.md"}
    while new:
        reached |= new
        text = {path: path.read_text(encoding="utf-8") for path in new}
        linked = {(p.parent / t).resolve() for p in new for t in re.findall(r"\]\(([\w/.-]+\.md)", text[p])}
        new = linked - reached
    assert {*DOCUMENTS} - reached == set()


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocs") is None:
        pytest.skip("Material for MkDocs is not installed: pip install '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages <= {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert '<pre class="mermaid">' in (tmp_path / "architecture.html").read_text(encoding="utf-8")


# --- commands ---


def commands() -> list[str]:
    lines = {line for example in examples("sh") for line in example.code.splitlines()}
    return sorted(
        shlex.join(words) for line in lines if (words := shlex.split(line.partition(" > ")[0], comments=True))
    )


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(command)
    if program == "whisper-api":
        # A configuration that is not there ends a command after its arguments were understood.
        assert main([*arguments, "--config", "missing.conf"]) == 2
        told = capsys.readouterr().err
        assert "missing.conf" in told
        assert "usage:" not in told
    elif not command.startswith(OTHER_COMMANDS):
        assert (ROOT / program).is_file()
        assert os.access(ROOT / program, os.X_OK)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_scripts_modules_and_their_flags_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:scripts|tests|whisper_api|docs|\.ci)/[\w/.-]*\w)/?`", text):
        assert (ROOT / name).exists(), name
    shared = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "scripts" / "measuring").glob("*.py"))
    for script, arguments in re.findall(r"`(scripts/\w+\.py)( [^`]*)`", text):
        for flag in re.findall(r"--[\w-]+", arguments):
            assert f'"{flag}"' in (ROOT / script).read_text(encoding="utf-8") + shared, f"{script} {flag}"


def test_examples_of_the_configuration_can_be_read(tmp_path: Path) -> None:
    found = examples("toml")
    assert found
    for number, example in enumerate(found):
        file = tmp_path / f"{number}.conf"
        file.write_text(example.code, encoding="utf-8")
        loaded = Config.load(file, env={})
        assert loaded.warnings == ()
        assert sum(origin.startswith(str(file)) for origin in loaded.origins.values()) == len(example.code.splitlines())


# --- the API ---


def description_of(directory: Path, **settings: Any) -> dict[str, Any]:
    """``/openapi.json`` of a server with these settings."""

    async def read() -> dict[str, Any]:
        async with inside(directory, **settings) as app, app.client() as client:
            api: dict[str, Any] = (await client.get("/openapi.json")).json()
            return api

    return asyncio.run(read())


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return description_of(tmp_path_factory.mktemp("api"))


def test_the_calls_are_those_of_the_server(description: dict[str, Any]) -> None:
    served = {
        f"{method.upper()} {path}"
        for path, methods in description["paths"].items()
        for method in methods
        # The document names the other addresses of these calls in one sentence.
        if not path.startswith("/openai/")
    }
    written = re.findall(r"`((?:GET|POST|PUT|DELETE) /[^`?]*)`", between(API, "calls"))
    assert sorted(written) == sorted(served)
    others = {path for path in description["paths"] if path.startswith("/openai/")}
    v1 = {f"/openai{path}" for path in description["paths"] if path.startswith("/v1/")}
    azure = {path for path in others - v1 if path.startswith(("/openai/deployments/", "/openai/models"))}
    assert others == v1 | azure


def test_the_fields_are_those_of_the_server(description: dict[str, Any]) -> None:
    form = description["paths"]["/transcribe"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    written = re.findall(r"`([\w]+)(?:\[\])?`", between(API, "fields"))
    assert sorted(written) == sorted(form["properties"])


def test_the_statuses_of_errors_are_those_of_the_server(description: dict[str, Any], tmp_path: Path) -> None:
    served = set[str]()
    # 401 is an answer of servers with keys, 403 one of servers without.
    for api in (description, description_of(tmp_path, enable_authorization=True)):
        operations = [operation for methods in api["paths"].values() for operation in methods.values()]
        served |= {status for operation in operations for status in operation["responses"] if status >= "400"}
    assert re.findall(r"^\| (\d+) \|", between(API, "errors"), re.MULTILINE) == sorted(served)


def test_the_presets_of_subtitles_are_those_of_the_code() -> None:
    table = between((ROOT / "docs" / "subtitles.md").read_text(encoding="utf-8"), "presets")
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    found = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    options = [name for name, value in asdict(PRESETS["netflix"]).items() if value]
    assert found == [
        ["option", *PRESETS],
        *([name, *(shown(getattr(preset, name)) for preset in PRESETS.values())] for name in options),
        ["language", "characters in a line", "characters a second"],
        *([code, shown(width), shown(speed or "as the preset")] for code, (width, speed) in LANGUAGES.items()),
    ]


def shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


# --- the house ---


def test_the_folders_are_those_of_the_package() -> None:
    package = ROOT / "whisper_api"
    folders = {
        relative(init.parent) for pattern in ("*", "engine/*") for init in package.glob(f"{pattern}/__init__.py")
    }
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^\| `([\w/]+)` \|", between(architecture, "folders"), re.MULTILINE)} == folders
    house = between((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), "house")
    assert {*re.findall(r"`(whisper_api/[\w/]+)`", house)} == folders
    assert len(re.findall(r"^- ", house, re.MULTILINE)) == 10


# --- the measured tables ---


def test_every_measurement_names_its_script_and_the_readme_repeats_the_table() -> None:
    page = (ROOT / "docs" / "accuracy-and-speed.md").read_text(encoding="utf-8")
    measured = re.findall(r"^\|(?! what | measurement |---).*\|$", page, re.MULTILINE)
    assert len(measured) > 10
    for row in measured:
        assert re.search(r"`scripts/(bench|eval)_\w+\.py[^`]*` \|$", row), row
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {*between(readme, "comparison").splitlines()} <= {*between(page, "speed").splitlines()}
    date = re.search(r"Measured on \d+ \w+ \d{4}", readme)
    assert date is not None
    assert date[0] in page
