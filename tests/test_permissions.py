"""Directories and files that other users of the machine can open are named, with what to do about them."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
from fakes import config_in, new_service

from whisper_api.cli.main import main
from whisper_api.permissions import exposed_files, exposure
from whisper_api.store.jobs import JobStore

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")


@pytest.mark.parametrize(
    ("mode", "exposed"), [(0o700, False), (0o600, False), (0o500, False), (0o750, True), (0o701, True), (0o755, True)]
)
def test_a_directory_that_group_or_others_can_open_is_named(tmp_path: Path, mode: int, exposed: bool) -> None:
    place = tmp_path / "data"
    place.mkdir()
    place.chmod(mode)
    warning = exposure(place)
    assert (warning is not None) == exposed
    if warning is not None:
        assert str(place) in warning
        assert f"chmod 700 {place}" in warning


def test_data_uploads_and_the_database_are_looked_at(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    assert exposed_files(config) == []
    for directory in (config.data_dir, config.tmp_dir):
        directory.mkdir()
        directory.chmod(0o755)
    database = config.data_dir / "jobs.db"
    database.touch()
    database.chmod(0o640)
    said = exposed_files(config)
    assert len(said) == 3
    for place in (config.data_dir, config.tmp_dir, database):
        assert any(str(place) in each.split() for each in said)


def test_the_start_warns_of_open_directories_and_closes_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_in(tmp_path)
    JobStore(config.data_dir / "jobs.db").close()
    (config.data_dir / "jobs.db").chmod(0o644)
    config.tmp_dir.mkdir()
    for directory in (config.data_dir, config.tmp_dir):
        directory.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        service = new_service(tmp_path)
        service.start()
        service.close()
    for name in ("data", "uploads", "data/jobs.db"):
        assert any(f"{tmp_path / name} " in record.getMessage() for record in caplog.records), name
    assert stat.S_IMODE((config.data_dir / "jobs.db").stat().st_mode) == 0o600


def test_only_the_user_of_the_server_can_open_its_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    previous = os.umask(0)
    try:
        service = new_service(tmp_path)
        service.start()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data", tmp_path / "uploads")} | {
            path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()
        }
        service.close()
    finally:
        os.umask(previous)
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}
    assert "open to other users" not in caplog.text


@pytest.mark.parametrize("exposed", [False, True])
def test_the_check_command_shows_the_warning_and_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exposed: bool
) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    if exposed:
        data.chmod(0o755)
    uploads = tmp_path / "uploads"
    assert main(["serve", "--check", "--data-dir", str(data), "--tmp-dir", str(uploads)]) == 0
    out, err = capsys.readouterr()
    assert "WHISPER_DATA_DIR" in out
    assert ("open to other users" in err) == exposed
