"""The files of the page: their headers, and their agreement with each other and with the server."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from hatchling.builders.wheel import WheelBuilder
from server.harness import RunningServer

from whisper_api.engine.languages import CODES
from whisper_api.server.routes import page

ROOT = Path(__file__).parents[2]
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(page.DIRECTORY.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}

# The warnings of the engine and their French translations in notes.js.
FRENCH_REMARKS: dict[str, str] = dict(
    re.findall(r'^ +\[?"(.*?)",\s+"(.*?)"(?:\],|,$)', FILES["notes.js"], re.M | re.S),
)


class Links(HTMLParser):
    """The files that a document loads, and the inline parts that a strict policy forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.inline: list[str] = []
        self.ids: list[str] = []
        self.texts: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.found |= {given[name] for name in ("src", "href") if name in given}
        self.inline += [f"{tag} {name}" for name in given if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.texts |= {value for name, value in given.items() if name.startswith("data-t")}


@pytest.fixture(scope="module")
def index() -> Links:
    links = Links()
    links.feed(FILES["index.html"])
    return links


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[httpx.Client]:
    """A client without a key, of a server that asks for keys."""
    directory = tmp_path_factory.mktemp("bare")
    with RunningServer(directory, models_dir, {"PRELOAD_MODELS": False}) as server, server.client(key="") as client:
        yield client


def texts(language: str) -> dict[str, str]:
    """The keys of the texts of a language, and the placeholders of each text."""
    (body,) = re.findall(rf"^const {language} = {{\n(.*?)^}};", FILES["messages.js"], re.M | re.S)
    entries = re.findall(r"^  (\w+):(.*?)(?=^  \w+:|\Z)", body, re.M | re.S)
    return {key: " ".join(sorted(set(re.findall(r"\{\w+\}", text)))) for key, text in entries}


def test_the_page_needs_no_key_and_may_load_only_its_own_files(bare: httpx.Client, index: Links) -> None:
    for path in ("/", *(f"/assets/{name}" for name in FILES if name != "index.html")):
        answer = bare.get(path)
        assert answer.status_code == 200
        assert answer.content.decode() == FILES[path.rpartition("/")[2] or "index.html"]
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "microphone=(self)" in answer.headers["Permissions-Policy"]
    assert bare.get("/").headers["Content-Type"] == "text/html; charset=utf-8"
    assert bare.get("/assets/app.js").headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert bare.get("/transcriptions").status_code == 401


def test_an_unchanged_file_is_not_sent_again(bare: httpx.Client) -> None:
    first = bare.get("/assets/app.js")
    assert first.headers["Cache-Control"] == "no-cache"
    again = bare.get("/assets/app.js", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert bare.get("/", headers={"If-None-Match": first.headers["ETag"]}).status_code == 200
    head = bare.head("/")
    assert (head.status_code, head.content) == (200, b"")


OTHERS = ("/assets/", "/assets/no.js", "/assets/%2e%2e/app.py", "/assets/../app.py", "/index.html")


@pytest.mark.parametrize("path", OTHERS)
def test_no_other_file_is_sent(bare: httpx.Client, path: str) -> None:
    assert bare.get(path).status_code in (401, 404)


def test_the_page_has_no_inline_scripts_and_loads_only_its_own_files(index: Links) -> None:
    assert index.inline == []
    assert all(link.startswith(("assets/", "#")) for link in index.found)
    for name, text in FILES.items():
        # The URL of a vocabulary is only a name; nothing is loaded from it.
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text), name
    for name, text in SCRIPTS.items():
        assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|\beval\(|new Function", text), name


def test_every_text_is_there_in_both_languages_and_none_for_nothing(index: Links) -> None:
    english, french = texts("en"), texts("fr")
    assert english == french
    code = "".join(text for name, text in SCRIPTS.items() if name != "messages.js")
    used = index.texts | set(re.findall(r'"(\w+)"', code))
    assert index.texts <= set(english)
    assert set(re.findall(r'\bt\("(\w+)"', code)) <= set(english)
    families = ("error_", "stage_", "format_", "preset_", "rule_")
    assert {key for key in english if key not in used and not key.startswith(families)} == set()
    rules = {rule.split(":")[0].replace(" ", "_") for rule in broken_rules()}
    assert {key for key in english if key.startswith("rule_")} == {f"rule_{rule}" for rule in rules}
    stages = {key for key in english if key.startswith("stage_")}
    assert stages >= {f"stage_{name}" for name in ("queue", "load", "decode", "vad", "asr", "align", "diarize", "done")}


# The end of a warning about a rule of subtitles.
LAST_WORDS = " in {} of {} subtitles, first at {}"
# The reasons of a missing stage, in the words of JobContext.continue_without.
REASONS = ("the memory ran out", "of an error, which is in the log")


def broken_rules() -> set[str]:
    """The warnings about the layout of subtitles, with ``{}`` for the parts that vary."""
    tree = ast.parse((ROOT / "whisper_api/subtitles/subtitles.py").read_text(encoding="utf-8"))
    (function,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_broken_by"]
    told = [node.value for node in ast.walk(function) if isinstance(node, ast.Yield)]
    return {re.sub(r"\{.*?\}", "{}", ast.unparse(text)).strip("f'") + LAST_WORDS for text in told if text is not None}


def remarks() -> set[str]:
    """The warnings of the engine, with ``{}`` for the parts that vary."""

    def of(call: ast.Call) -> str | None:
        told = call.args[0] if call.args else None
        if isinstance(told, ast.JoinedStr):
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in told.values)
        return told.value if isinstance(told, ast.Constant) and isinstance(told.value, str) else None

    found = set()
    for path in (ROOT / "whisper_api/engine").rglob("*.py"):
        lists = ("warnings.append", "found.append") if path.name in ("libav.py", "timeline.py", "wav.py") else ()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("ctx.warn", *lists)):
                found.add(of(node))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ctx.continue_without"):
                loss = of(node)
                found |= {f"{loss}, because {reason}" for reason in REASONS if loss}
    return {text for text in found if text}


def test_every_remark_of_the_engine_is_there_in_french() -> None:
    assert remarks() <= set(FRENCH_REMARKS)
    assert len(remarks()) > 15
    assert all(any(reason in remark for remark in remarks()) for reason in REASONS)
    assert broken_rules() <= set(FRENCH_REMARKS)
    assert len(broken_rules()) > 5
    for english, translated in FRENCH_REMARKS.items():
        places = [str(place + 1) for place in range(english.count("{}"))]
        assert sorted(re.findall(r"\{(\d)\}", translated)) == places


def test_the_page_offers_the_languages_that_the_server_knows() -> None:
    (listed,) = re.findall(r'LANGUAGES =\s*"([a-z ]+)"', FILES["composer.js"])
    assert sorted(listed.split()) == sorted(CODES)


def test_the_files_are_in_the_package() -> None:
    built = {Path(file.distribution_path).name for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert set(FILES) <= built


def test_the_files_stay_small() -> None:
    for name, text in FILES.items():
        # The table of translated warnings has a row for each warning of the engine.
        assert len(text.encode()) < (24_000 if name == "notes.js" else 16_000), name
    assert sum(len(text.encode()) for text in FILES.values()) < 160_000
