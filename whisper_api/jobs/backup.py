"""Backup and restore of a server's data directory: the database, and on request the audio of unfinished jobs."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from whisper_api.access.audit import record_command
from whisper_api.config import Config
from whisper_api.errors import StorageError, UploadMissing
from whisper_api.jobs.retention import UPLOAD_FILES
from whisper_api.store.backup import OpenUpload, Written, open_backup, write_backup
from whisper_api.store.database import sync_directory
from whisper_api.store.jobs import DATABASE_NAME, JobStore
from whisper_api.store.locks import locked_directories
from whisper_api.store.migrations import MIGRATIONS

AUDIO = "audio"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PARTS = ("", "-wal", "-shm")


class Restored(msgspec.Struct, frozen=True):
    """The outcome of a restore.

    Attributes:
        waiting: jobs that run after the next start.
        failed: jobs that cannot run, because their audio is not on this machine.
        replaced: the database that was there before, under its new name; None when there was none.
    """

    waiting: int
    failed: int
    replaced: Path | None


def back_up(config: Config, target: Path, *, audio: bool) -> Written:
    """Copy the job database, while a server may use it.

    Args:
        config: names the directories.
        target: path of the backup, which must not exist.
        audio: also copy the audio of jobs that have not ended.

    Raises:
        StorageError: the database or the target cannot be used.
    """

    def open_uploads(job_ids: list[str]) -> list[OpenUpload]:
        return [each for job_id in job_ids for each in _open_upload(config.tmp_dir / job_id)]

    database = config.data_dir / DATABASE_NAME
    written = write_backup(database, target, open_uploads if audio else None)
    # Before an upgrade, the database has no table for the entry, and must not be brought up to date by a backup.
    if written.version == len(MIGRATIONS):
        with contextlib.closing(JobStore(database)) as store:
            record_command(store, config, "backup.create")
    return written


def restore(config: Config, source: Path) -> Restored:
    """Put a backup in the place of the job database. The database that was there stays under another name.

    Jobs whose audio is neither in the backup nor in the upload directory are Failed with
    :class:`~whisper_api.errors.UploadMissing`. A backup of an earlier version is brought up to date.

    Args:
        config: names the directories, which no server may use.
        source: path of the backup.

    Raises:
        StorageLocked: a server uses the directories.
        StorageError: the backup cannot be used, or something cannot be written; the database is as before.
    """
    database = config.data_dir / DATABASE_NAME
    coming = database.with_name(f"{DATABASE_NAME}.restoring")
    with (
        open_backup(source) as backup,
        locked_directories(config.data_dir, config.tmp_dir),
        contextlib.ExitStack() as stack,
    ):
        stack.callback(_remove, coming)
        _remove(coming)
        for job_id, name, content in backup.uploads():
            _write_upload(config.tmp_dir, job_id, name, content)
        backup.copy_database(coming)
        waiting, failed = _bring_up_to_date(config, coming)
        try:
            replaced = _put_aside(database)
            coming.rename(database)
            sync_directory(config.data_dir)
        except OSError as error:
            raise StorageError(f"Cannot put {coming} in the place of {database}: {error.strerror}") from error
    return Restored(waiting, failed, replaced)


def _open_upload(directory: Path) -> list[OpenUpload]:
    """Open the files of an upload; none when the job has just ended, and its upload is being removed."""
    with contextlib.ExitStack() as stack:
        try:
            found = [
                OpenUpload(directory.name, path.name, stack.enter_context(path.open("rb")))
                for path in directory.iterdir()
                if UPLOAD_FILES.fullmatch(path.name) and path.suffix != ".part"
            ]
        except FileNotFoundError:
            return []
        except OSError as error:
            help = ": raise the limit on open files (ulimit -n)" if error.errno == errno.EMFILE else ""
            raise StorageError(f"Cannot read {directory}: {error.strerror}{help}") from error
        if all(each.name != AUDIO for each in found):
            return []
        stack.pop_all()
    return found


def _write_upload(uploads_dir: Path, job_id: str, name: str, content: Iterator[bytes]) -> None:
    if not _UUID.fullmatch(job_id) or not UPLOAD_FILES.fullmatch(name):
        raise StorageError(f"The backup has a file that is no upload: {job_id!r}, {name!r}")
    directory = uploads_dir / job_id
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = directory / f"{AUDIO}.part"
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        part.rename(directory / name)
    except OSError as error:
        raise StorageError(f"Cannot write an upload to {directory}: {error.strerror}") from error


def _bring_up_to_date(config: Config, database: Path) -> tuple[int, int]:
    """Migrate a database, and fail the jobs without audio. Returns the numbers of waiting and of failed jobs."""
    with contextlib.closing(JobStore(database)) as store:
        unfinished = store.in_state("Queued", "Processing")
        missing = [job for job in unfinished if not (config.tmp_dir / job.job_id / AUDIO).is_file()]
        for job in missing:
            error = UploadMissing(
                job.job_id, "The database was restored from a backup without the audio of this job: send it again"
            )
            store.fail(job.job_id, type(error).__name__, str(error), time.time())
        record_command(store, config, "backup.restore")
    return len(unfinished) - len(missing), len(missing)


def _put_aside(database: Path) -> Path | None:
    """Rename a database together with its log. If the process ends meanwhile, a new restore goes on from there."""
    if not database.exists():
        return None
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    aside = database.with_name(f"{database.name}.replaced-{moment}")
    # The log first, so that no database is ever opened with the log of another one.
    for suffix in reversed(_PARTS):
        path = database.with_name(database.name + suffix)
        if path.exists():
            path.rename(aside.with_name(aside.name + suffix))
    return aside


def _remove(database: Path) -> None:
    for suffix in _PARTS:
        database.with_name(database.name + suffix).unlink(missing_ok=True)
