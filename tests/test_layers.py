"""Imports point one way: cli -> server -> jobs -> engine, access, store -> schema, errors; and they make no circle."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from whisper_api.jobs.parts import Parts

PACKAGE = Path(__file__).parents[1] / "whisper_api"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in MODULES}

VALUES = {
    *("errors", "records", "options", "schema", "job_values", "key_values", "usage_records", "voices"),
    *("audit_records", "trace_context", "webhooks"),
}
# How words stand in a text and in time: functions of the schema's values.
WORDS = {"time_order", "word_spacing", "speaker_turns"}
SETTINGS = {"coercion", "config", "permissions"}
ENGINE = VALUES | WORDS | SETTINGS | {"engine", "freed_memory"}
STORE = VALUES | SETTINGS | {"store"}
JOBS = ENGINE | STORE | {"access", "formats", "jobs", "outbound", "subtitles", "telemetry"}
# Each part of the package, and which others it may import. A part may always import itself.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "freed_memory": set(),
    "records": {"errors"},
    "options": {"errors", "records"},
    "schema": {"options", "records"},
    "job_values": {"errors", "records", "schema"},
    "key_values": {"errors", "records"},
    "usage_records": {"errors", "records"},
    "voices": {"errors", "records", "schema"},
    "audit_records": {"errors", "records"},
    "trace_context": set(),
    "webhooks": {"errors", "job_values", "records"},
    "outbound": {"errors"},
    "coercion": set(),
    "config": {"coercion", "errors"},
    "permissions": VALUES | SETTINGS,
    "speaker_turns": VALUES,
    "time_order": VALUES,
    "word_spacing": VALUES,
    "subtitles": VALUES | WORDS,
    "reading": VALUES | WORDS | {"subtitles"},
    "formats": VALUES | WORDS | {"reading", "subtitles"},
    "logs": SETTINGS,
    "telemetry": {"engine", "errors", "logs", "trace_context"},
    "engine": ENGINE,
    "store": STORE,
    "access": STORE,
    "jobs": JOBS,
    "testing": JOBS,
    "cluster": JOBS | {"logs", "whisper_api"},
    "server": JOBS | {"logs"},
    "client": VALUES,
    "cli": JOBS | {"client", "cluster", "logs", "server", "whisper_api"},
    "__main__": {"cli"},
    # The package itself only says where its names are.
    "whisper_api": JOBS | {"client", "server"},
}
# Slow imports: allowed only inside functions, so that an unused stage costs nothing.
HEAVY = {
    "faster_whisper",
    "lightning",
    "nltk",
    "pandas",
    "pyannote",
    "sklearn",
    "speechbrain",
    "torch",
    "torchaudio",
    "torchmetrics",
    "transformers",
    "whisperx",
}


def part_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "whisper_api" if first == "__init__" else first


def imported_parts(source: str) -> set[str]:
    """The parts of the package that a module imports anywhere, functions and type checking included."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "whisper_api":
                part = rest.partition(".")[0]
                is_module = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
                parts.add(part if part and is_module else "whisper_api")
    return parts


def top_level_imports(source: str) -> Iterator[str]:
    """First names of what is imported when a module is, which what stands in functions or for type checking is not."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def test_imports_point_one_way() -> None:
    unknown = {part_of(path) for path in MODULES} - ALLOWED.keys()
    assert not unknown, f"say in ALLOWED what {', '.join(sorted(unknown))} may import"
    wrong = {
        name: sorted(parts)
        for name, source in SOURCES.items()
        if (parts := imported_parts(source) - ALLOWED[part_of(PACKAGE / name)] - {part_of(PACKAGE / name)})
    }
    assert wrong == {}


def test_heavy_libraries_are_imported_only_when_they_are_used() -> None:
    heavy = {
        name: sorted(found)
        for name, source in SOURCES.items()
        if (found := HEAVY.intersection(top_level_imports(source)))
    }
    assert heavy == {}


def is_asynchronous(source: str) -> bool:
    asynchronous = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    return any(isinstance(node, asynchronous) for node in ast.walk(ast.parse(source)))


def test_only_the_server_the_event_bus_and_the_asynchronous_client_are_asynchronous() -> None:
    allowed = ("server/", "client/async_", "jobs/events.py", "client/calls.py", "client/upload.py")
    found = [name for name, source in SOURCES.items() if is_asynchronous(source) and not name.startswith(allowed)]
    assert found == []


# The parts of a JobService that only the service and its workers use.
SERVICE_PARTS = {*Parts.__annotations__} - {"metrics", "tracing", "settings"}


def parts_of_services(source: str) -> list[str]:
    """The places where a module uses a part of a service: ``service.store``, ``state.service.events`` ..."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and (node.attr in SERVICE_PARTS or node.attr.startswith("_"))
        and ast.unparse(node.value).rpartition(".")[2] in ("service", "_service")
    ]


def test_the_server_uses_only_the_methods_of_the_job_service() -> None:
    found = {
        name: parts
        for name, source in SOURCES.items()
        if name.startswith(("server/", "cli/")) and (parts := parts_of_services(source))
    }
    assert found == {}


def test_a_way_around_the_job_service_is_found() -> None:
    source = "a = state.service.store.get(1)\nb = service.queue\nservice._work()\nservice.status(1)\nexecutor.run()"
    assert sorted(parts_of_services(source)) == ["service._work", "service.queue", "state.service.store"]


def test_no_two_parts_may_import_each_other() -> None:
    for part, others in ALLOWED.items():
        assert not [other for other in others - {part} if part in ALLOWED[other]]


def imported_modules(source: str, modules: Collection[str]) -> set[str]:
    """The modules of the package that a module imports anywhere, functions and type checking included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name if name in modules else name.rpartition(".")[0] for name in names}
    return found.intersection(modules)


def circle_in(imports: Mapping[str, Collection[str]]) -> list[str]:
    """Modules that import each other in a circle, in order; empty when there is none."""
    finished: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in finished:
            return []
        for other in sorted(imports[module]):
            if circle := follow(other, [*path, module]):
                return circle
        finished.add(module)
        return []

    return next((circle for module in sorted(imports) if (circle := follow(module, []))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in MODULES
    }
    # The package itself names the homes of its names, and loads them when they are used.
    del sources["whisper_api"]
    imports = {
        name: imported_modules(path.read_text(encoding="utf-8"), sources) - {name} for name, path in sources.items()
    }
    assert circle_in(imports) == []


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]
    assert circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert imported_modules("import p.a\nfrom p.b import c\nfrom p import d, e", {"p.a", "p.b", "p.d"}) == {
        "p.a",
        "p.b",
        "p.d",
    }


def test_imports_in_functions_and_for_type_checking_are_seen() -> None:
    source = """
from typing import TYPE_CHECKING
from whisper_api import Engine
if TYPE_CHECKING:
    import whisper_api.engine.models.cache
def load():
    from whisper_api.formats import render
    import torch
class Thing:
    import pandas.io
try:
    import nltk
except ImportError:
    pass
"""
    assert imported_parts(source) == {"whisper_api", "engine", "formats"}
    assert set(top_level_imports(source)) == {"typing", "whisper_api", "pandas", "nltk"}
    assert not is_asynchronous(source)
    assert is_asynchronous("def outer():\n    async def inner(): ...")
