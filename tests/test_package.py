"""The package's public names, and what importing it costs."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

import whisper_api
from whisper_api import errors

ROOT = Path(__file__).parents[1]
LIBRARIES = {
    "av",
    "ctranslate2",
    "faster_whisper",
    "httpx",
    "huggingface_hub",
    "hypercorn",
    "numpy",
    "onnxruntime",
    "pyannote",
    "python_multipart",
    "requests",
    "scipy",
    "sqlite3",
    "starlette",
    "torch",
    "tqdm",
    "transformers",
    "whisperx",
}


def modules_after(code: str) -> set[str]:
    """Names of the modules that are loaded in a new interpreter after it has run some code."""
    script = f"{code}\nimport sys\nprint('\\n' + ' '.join(sys.modules))"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=ROOT / "tests",
    )
    return set(done.stdout.splitlines()[-1].split())


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] == "whisper_api"}


def test_all_is_exact() -> None:
    tree = ast.parse(Path(whisper_api.__file__).read_text(encoding="utf-8"))
    (for_checkers,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = [alias.name for node in for_checkers.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    imported[imported.index("*") : imported.index("*") + 1] = errors.__all__
    assert sorted([*imported, "__version__"]) == sorted(whisper_api.__all__)
    assert len(set(whisper_api.__all__)) == len(whisper_api.__all__)
    assert set(whisper_api.__all__) <= set(dir(whisper_api))


def test_every_public_name_is_what_its_module_defines() -> None:
    values = {name: getattr(whisper_api, name) for name in whisper_api.__all__}
    del values["__version__"], values["DEFAULT_URL"]
    wrong = [
        name
        for name, value in values.items()
        if value.__name__ != name or not value.__module__.startswith("whisper_api.") or not value.__doc__
    ]
    assert wrong == []


def test_other_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = whisper_api.no_such_name


def test_the_version_is_that_of_the_distribution() -> None:
    try:
        expected = importlib.metadata.version("whisper-api")
    except importlib.metadata.PackageNotFoundError:
        expected = "0+source"
    assert whisper_api.__version__ == expected


def test_importing_the_package_loads_nothing() -> None:
    loaded = modules_after("import whisper_api")
    assert ours(loaded) == {"whisper_api"}
    assert not loaded & (LIBRARIES | {"msgspec", "asyncio"})


def test_options_load_no_library_but_msgspec() -> None:
    loaded = modules_after("from whisper_api import TranscriptionOptions, InvalidAudio; TranscriptionOptions()")
    assert "msgspec" in loaded
    assert not loaded & LIBRARIES


def test_formats_load_neither_the_engine_nor_a_library() -> None:
    loaded = modules_after("from whisper_api import render")
    assert not loaded & LIBRARIES
    assert not any(name.startswith("whisper_api.engine") for name in loaded)


def test_the_engine_does_not_load_torch() -> None:
    loaded = modules_after("from whisper_api import Engine")
    assert not loaded & {"torch", "torchaudio", "transformers", "whisperx", "pyannote"}


def test_help_loads_no_library() -> None:
    commands = ["", "transcribe", "models list", "serve", "submit", "keys create"]
    calls = "\n".join(f"assert main({[*command.split(), '--help']!r}) == 0" for command in commands)
    loaded = modules_after(f"from whisper_api.cli.main import main\n{calls}")
    assert not loaded & LIBRARIES


def test_the_server_loads_neither_the_engine_nor_its_libraries_before_it_listens() -> None:
    loaded = modules_after("from whisper_api import create_app, Server")
    assert not loaded & (LIBRARIES - {"starlette", "hypercorn", "sqlite3", "python_multipart"})
    assert not any(name.startswith("whisper_api.engine") for name in loaded)


def test_the_client_loads_no_library_before_it_is_used() -> None:
    assert not modules_after("from whisper_api import Client, JobStatus") & LIBRARIES


def test_help_of_the_program_does_not_load_its_commands() -> None:
    loaded = modules_after("from whisper_api.cli.main import main; assert main(['--help']) == 0")
    assert {name for name in loaded if name.startswith("whisper_api.cli.")} == {"whisper_api.cli.main"}
    assert "msgspec" not in loaded
