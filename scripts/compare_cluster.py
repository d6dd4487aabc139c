#!/usr/bin/env python3
"""Whether jobs on a cluster give what they give without one, file by file.

    scripts/compare_cluster.py DIRECTORY [--model base] [--models-dir DIR] [--json FILE]

Each recording of the directory runs with the default options (words, speakers) on an engine of this process and on an
engine of a cluster on loopback. Compared are text, segments, words, speakers and turns, warnings, the names of the
timings, and the events in their order: each partial segment, and the beginning of each stage; how often a stage tells
its share depends on the machine's speed. Exits with 1 when something differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from loopback_cluster import cluster, environment

ENDINGS = (".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".webm")
ASPECTS = ("text", "words", "speakers", "events", "warnings", "rest")


@dataclass(frozen=True)
class Outcome:
    """What a job gave.

    Attributes:
        transcript: the transcript as built-in values; with only ``error`` when the job has failed.
        events: partial segments and names of stages in their order.
    """

    transcript: dict[str, Any]
    events: tuple[Any, ...]

    def aspects(self) -> dict[str, Any]:
        """The parts that are compared, by :data:`ASPECTS`."""
        rest = {**self.transcript, "timings": sorted(self.transcript.get("timings", ()))}
        segments = self.transcript.get("segments", [])
        words = [segment.get("words") for segment in segments]
        speakers = rest.pop("speakers", None), rest.pop("turns", None), [each.get("speaker") for each in segments]
        found = ([each["text"] for each in segments], words, speakers, self.events, rest.pop("warnings", None), rest)
        return dict(zip(ASPECTS, found, strict=True))


def outcome(executor: Any, audio: Path, options: Any, **fields: Any) -> Outcome:
    """Run a job on an executor.

    Args:
        executor: the executor.
        audio: the upload; recordings of known speakers are beside it.
        options: the job's options.
        fields: further fields of the job.
    """
    from whisper_api.schema import Progress
    from whisper_api.store.rows import Job

    job = Job(
        job_id="a",
        owner="",
        options=options,
        output_format="json",
        audio_bytes=audio.stat().st_size,
        created_at=0.0,
        **fields,
    )
    events: list[Any] = []
    stages = [""]

    def progress(found: Progress) -> None:
        if found.stage not in ("load", stages[-1]):
            stages.append(found.stage)
            events.append(found.stage)

    try:
        transcript = executor.run(
            job,
            audio,
            on_progress=progress,
            on_partial=events.append,
            on_missing_model=lambda name: None,
            cancel=threading.Event(),
        ).to_dict()
    except Exception as error:
        transcript = {"error": f"{type(error).__name__}: {error}"}
    return Outcome(transcript, tuple(events))


def differing(here: Outcome, there: Outcome) -> list[str]:
    """The aspects in which two outcomes differ."""
    one, other = here.aspects(), there.aspects()
    return [name for name in ASPECTS if one[name] != other[name]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default="base")
    parser.add_argument("--models-dir", type=Path, default=os.environ.get("WHISPER_MODELS_DIR", "models_cache"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    sys.path.insert(0, str(Path(__file__).parents[1]))
    files = sorted(each for each in arguments.directory.iterdir() if each.suffix.lower() in ENDINGS)
    variables = environment(WHISPER_MODELS_DIR=str(arguments.models_dir.absolute()))
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, variables):
        figures = compared(Path(folder), files, arguments.model, arguments.models_dir.absolute())
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    equal = sum(not each["differing"] for each in figures)
    print(f"{equal} of {len(figures)} files are equal")
    return int(equal < len(figures) or not figures)


def compared(folder: Path, files: Sequence[Path], model: str, models_dir: Path) -> list[dict[str, Any]]:
    """Run all files here, then there, so that one engine is in memory at a time."""
    from whisper_api.cluster.executor import RayExecutor
    from whisper_api.config import Config
    from whisper_api.jobs.local_executor import LocalExecutor
    from whisper_api.options import TranscriptionOptions

    settings: dict[str, Any] = {"model": model, "models_dir": models_dir, "device": "cpu", "preload_models": False}

    def config(name: str, **more: Any) -> Config:
        return Config(data_dir=folder / name / "data", tmp_dir=folder / name / "uploads", **settings, **more)

    def run(executor: Any, path: Path) -> Outcome:
        return outcome(executor, Path(shutil.copy(path, folder / "audio")), TranscriptionOptions())

    local = LocalExecutor(config("local"))
    here = {path: run(local, path) for path in files}
    local.close()
    with cluster(folder / "machines", machines=1) as loopback:
        remote = RayExecutor(config("front", executor="ray", ray_address=loopback.address))
        try:
            remote.preload()
            return [row(path.name, here[path], run(remote, path)) for path in files]
        finally:
            remote.close()


def row(name: str, here: Outcome, there: Outcome) -> dict[str, Any]:
    """Compare the outcomes of a file, and print them."""
    found = differing(here, there)
    words = sum(len(each or ()) for each in there.aspects()["words"])
    said = f"DIFFERS in {', '.join(found)}" if found else "equal"
    errors = [each.transcript["error"] for each in (here, there) if "error" in each.transcript]
    print(f"{name:28} {words:5} words {len(there.events):4} events  {'; '.join([said, *errors])}", flush=True)
    return {"file": name, "words": words, "events": len(there.events), "differing": found, "errors": errors}


if __name__ == "__main__":
    sys.exit(main())
