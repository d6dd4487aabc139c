#!/usr/bin/env python3
"""Runs the steps of deploy/Dockerfile in a fresh Debian root, for machines without a container engine.

    scripts/try_image.py FOLDER [--target cpu] [--python PREFIX] [--bind PATH]... [--plan]

FOLDER becomes the root of the last stage; those of the stages before are beside it. The base image is a minimal Debian
by debootstrap with the Python of PREFIX in /usr/local. Steps run in a chroot, so this needs root; each PATH of the
host, such as a mirror of packages or pip's configuration, is seen there, too. At the end the server starts as the
image's user with a read-only root file system, answers its health check, and is stopped. --plan only prints the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
SUITE = "bookworm"
# What the Python of an image needs from Debian.
LIBRARIES = "ca-certificates,libbz2-1.0,libffi8,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,zlib1g"
MOUNTS = ("/proc", "/dev", "/etc/resolv.conf")
STARTS_WITHIN = 120.0


@dataclass
class Stage:
    """One stage of a Dockerfile.

    Attributes:
        base: the stage or image that it begins with.
        steps: instruction and argument.
    """

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages_of(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name, in order.

    Args:
        text: uses FROM ... AS, COPY, RUN, ARG, ENV, USER, WORKDIR and instructions that run nothing.
    """
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    stages: dict[str, Stage] = {}
    for line in re.sub(r"\\\n", " ", lines).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            stages[stage] = current = Stage(base)
        elif name:
            current.steps.append((name, rest.strip()))
    return stages


def steps_of(stages: dict[str, Stage], target: str) -> list[tuple[str, str, str]]:
    """Stage, instruction and argument of all that is run to build a target; FROM begins each stage."""
    stage = stages[target]
    needed = re.findall(r"--from=(\S+)", " ".join(rest for _, rest in stage.steps))
    found = []
    for name in (stage.base, *needed):
        if name in stages:
            found += steps_of(stages, name)
    found += [(target, "FROM", stage.base), *((target, name, rest) for name, rest in stage.steps)]
    return list(dict.fromkeys(found))


class Builder:
    """Runs the steps of stages.

    Args:
        folder: root directory of the target; the other stages' are beside it.
        target: name of the last stage.
        python: prefix of the Python that the base image has.
        binds: paths of this machine that the steps see.
    """

    def __init__(self, folder: Path, target: str, python: Path, binds: list[str]) -> None:
        self.folder, self.target, self.python, self.binds = folder, target, python, binds
        self.environments: dict[str, dict[str, str]] = {}
        self.users: dict[str, str] = {}

    def root_of(self, stage: str) -> Path:
        return self.folder if stage == self.target else self.folder.with_name(f"{self.folder.name}-{stage}")

    def run(self, stage: str, instruction: str, rest: str) -> None:
        """Run one step."""
        root, environment = self.root_of(stage), self.environments.setdefault(stage, {})
        if instruction == "FROM":
            self._begin(stage, rest)
        elif instruction in ("ENV", "ARG"):
            for assignment in shlex.split(rest):
                name, _, value = assignment.partition("=")
                environment[name] = value.replace("$PATH", environment.get("PATH", ""))
        elif instruction == "WORKDIR":
            (root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            environment["PWD"] = rest
        elif instruction == "USER":
            self.users[stage] = rest
        elif instruction == "COPY":
            self._copy(stage, rest)
        elif instruction == "RUN":
            with mounted(root, self.binds):
                command = f"cd {environment.get('PWD', '/')} && {rest}"
                subprocess.run(["chroot", str(root), "/bin/sh", "-ec", command], env=environment, check=True)

    def _begin(self, stage: str, base: str) -> None:
        root = self.root_of(stage)
        if base in self.environments:
            self.environments[stage] = dict(self.environments[base])
            self.users[stage] = self.users.get(base, "root")
            copy_root(self.root_of(base), root)
            return
        self.environments[stage] = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
            "HOME": "/root",
        }
        image = self.folder.with_name(f"{self.folder.name}-image")
        if not image.exists():
            subprocess.run(
                ["debootstrap", "--variant=minbase", f"--include={LIBRARIES}", SUITE, str(image)], check=True
            )
            shutil.copytree(self.python, image / "usr/local", symlinks=True, dirs_exist_ok=True)
            subprocess.run(["chroot", str(image), "ldconfig"], check=True)
        copy_root(image, root)

    def _copy(self, stage: str, rest: str) -> None:
        *sources, target = rest.split()
        source_root = ROOT
        if sources[0].startswith("--from="):
            source_root = self.root_of(sources.pop(0).partition("=")[2])
        there = Path(self.environments[stage].get("PWD", "/")) / target
        for name in sources:
            source, into = source_root / name.lstrip("/"), self.root_of(stage) / str(there).lstrip("/")
            if source.is_dir():
                shutil.copytree(source, into, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(source, into / source.name if into.is_dir() else into)

    def check_server(self, entry: list[str], health: list[str]) -> None:
        """Start the server as the image's user on a read-only root, until its health check succeeds."""
        root, environment = self.folder, self.environments[self.target]
        user = self.users[self.target]
        inside = ["chroot", f"--userspec={user}:{user}", str(root)]
        with mounted(root, [], read_only=True, writable=("/data", "/models")):
            server = subprocess.Popen([*inside, *entry], env=environment)
            try:
                deadline = time.monotonic() + STARTS_WITHIN
                while subprocess.run([*inside, *health], env=environment, stderr=subprocess.DEVNULL).returncode:
                    if server.poll() is not None or time.monotonic() > deadline:
                        sys.exit("the server did not become healthy")
                    time.sleep(0.5)
                print("the server is healthy")
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(60)


def copy_root(source: Path, target: Path) -> None:
    """Copy a root directory with its device files, which Python would read."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(source), str(target)], check=True)


@contextlib.contextmanager
def mounted(root: Path, binds: list[str], *, read_only: bool = False, writable: tuple[str, ...] = ()) -> Iterator[None]:
    """Mount what a chroot needs, and unmount it at the end."""
    mounts = []

    def mount(source: str, target: Path) -> None:
        if Path(source).is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        subprocess.run(["mount", "--bind", source, str(target)], check=True)
        mounts.append(target)

    try:
        if read_only:
            mount(str(root), root)
            for path in (*MOUNTS, *(str(root / name.lstrip("/")) for name in writable)):
                mount(path, root / path.removeprefix(str(root)).lstrip("/"))
            subprocess.run(["mount", "-o", "remount,ro,bind", str(root)], check=True)
        else:
            for path in (*MOUNTS, *binds):
                mount(path, root / path.lstrip("/"))
        yield
    finally:
        for target in reversed(mounts):
            subprocess.run(["umount", "-l", str(target)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--python", type=Path, default=Path(sys.base_prefix), metavar="PREFIX")
    parser.add_argument("--bind", action="append", default=[], metavar="PATH")
    parser.add_argument("--plan", action="store_true")
    arguments = parser.parse_args()
    steps = steps_of(stages_of(DOCKERFILE.read_text(encoding="utf-8")), arguments.target)
    builder = Builder(arguments.folder.absolute(), arguments.target, arguments.python, arguments.bind)
    if not arguments.plan and os.geteuid() != 0:
        parser.error("a chroot needs root")
    for step in steps:
        print(*step, flush=True)
        if not arguments.plan:
            builder.run(*step)
    if arguments.plan:
        return
    said = {name: rest for _, name, rest in steps}
    entry = [*_words(said["ENTRYPOINT"]), *_words(said["CMD"])]
    builder.check_server(entry, _words(said["HEALTHCHECK"].partition("CMD ")[2]))


def _words(array: str) -> list[str]:
    import json

    words: list[str] = json.loads(array)
    return words


if __name__ == "__main__":
    main()
