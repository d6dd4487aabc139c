"""Files made from a model: the record of them, and what is found when they are damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from whisper_api.engine.models.derived_files import (
    RECORD,
    cache_directory,
    damaged_files,
    derived_directories,
    is_current,
    read_record,
    write_record,
)

SOURCE = {"format": 1, "bytes": 10}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "onnx-int8"
    directory.mkdir()
    (directory / "graph").write_bytes(b"graph")
    (directory / "weights").write_bytes(b"weights" * 100)
    write_record(directory, SOURCE, {"shape": [1, 2]})
    return directory


def test_whole_files_of_the_same_source_are_current(directory: Path) -> None:
    assert is_current(directory, SOURCE)
    assert damaged_files(directory) == []
    assert not is_current(directory, {**SOURCE, "bytes": 11})
    record = read_record(directory)
    assert record is not None
    assert record["shape"] == [1, 2]


@pytest.mark.parametrize("name", ["graph", "weights", RECORD])
@pytest.mark.parametrize("left", [0, 3, None])
def test_a_file_that_is_cut_short_or_missing_is_noticed_without_hashing(
    directory: Path, name: str, left: int | None
) -> None:
    path = directory / name
    content = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(content[:left])
    assert not is_current(directory, SOURCE)
    assert damaged_files(directory) == [name]


def test_changed_content_of_the_same_length_is_found_by_its_hash(directory: Path) -> None:
    (directory / "graph").write_bytes(b"Graph")
    assert is_current(directory, SOURCE)
    assert damaged_files(directory) == ["graph"]


@pytest.mark.parametrize(
    "record", ["[]", "null", "{}", '{"files": []}', '{"files": {"graph": {}}}', '{"files": {"a": 1}}']
)
def test_a_record_of_another_form_is_no_record(directory: Path, record: str) -> None:
    (directory / RECORD).write_text(record)
    assert read_record(directory) is None
    assert not is_current(directory, SOURCE)


def test_both_places_of_a_model_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "model"
    places = [model / "onnx-int8", cache_directory(model) / "onnx-float32"]
    for place in places:
        place.mkdir(parents=True)
        write_record(place, SOURCE, {})
    assert derived_directories(model) == places
