"""Names that documents and docstrings import from the package exist, and have the types that the package promises."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import whisper_api

ROOT = Path(__file__).parents[1]
IMPORT = re.compile(r"^[ >]*from (whisper_api[\w.]*) import (\([^)]*\)|[^\n(#`]+)", re.MULTILINE)
ATTRIBUTE = re.compile(r"\bwhisper_api\.([A-Z]\w+|create_app|render)\b")


def documents() -> Iterator[tuple[str, str]]:
    """The place and the text of every Markdown file and every docstring."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for folder in ("whisper_api", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    yield path.relative_to(ROOT).as_posix(), ast.get_docstring(node, clean=False) or ""


@functools.cache
def found() -> frozenset[tuple[str, str, str]]:
    """Place, module and name of each import."""
    return frozenset(imports())


def imports() -> Iterator[tuple[str, str, str]]:
    for place, text in documents():
        for module, names in IMPORT.findall(text):
            for name in re.sub(r"[()\s]+", " ", names).split(","):
                if imported := name.split(" as ")[0].strip():
                    yield place, module, imported
        for name in ATTRIBUTE.findall(text):
            yield place, "whisper_api", name


def test_examples_are_found() -> None:
    assert {
        ("whisper_api/client/__init__.py", "whisper_api", "DEFAULT_URL"),
        ("README.md", "whisper_api", "Engine"),
        ("docs/library.md", "whisper_api", "AsyncClient"),
    } <= found()
    assert len({place for place, _, _ in found()}) >= 4


def test_the_names_that_examples_import_are_there() -> None:
    missing = [each for each in found() if not hasattr(importlib.import_module(each[1]), each[2])]
    assert missing == []


def test_the_default_address_is_where_a_server_listens_by_default() -> None:
    config = whisper_api.Config()
    assert f"http://{config.host}:{config.port}" == whisper_api.DEFAULT_URL
