#!/usr/bin/env python3
"""Peak memory of a long recording, made by repetition, beside that of a short one: the decoded audio plus a constant.

    scripts/bench_memory.py [--minutes N] [--diarize] [--align]

Each recording is transcribed in a process of its own, as compressed audio in a file.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

OURS = """
import sys
from whisper_api import Engine, TranscriptionOptions
options = TranscriptionOptions(
    model="base", language="en", align="align" in sys.argv, diarize="diarize" in sys.argv, beam_size=1
)
with Engine(device="cpu", models_dir=sys.argv[2], offline=True) as engine:
    transcript = engine.transcribe(sys.argv[1], options)
counts = len(transcript.segments), len(transcript.words), len(transcript.speakers)
print(counts, transcript.timings, transcript.warnings)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--align", action="store_true")
    parser.add_argument("--diarize", action="store_true")
    arguments = parser.parse_args()
    models = Path(os.environ.get("WHISPER_MODELS_DIR") or Path(__file__).parent.parent / "models_cache").absolute()
    stages = [name for name in ("align", "diarize") if getattr(arguments, name)]
    print("| recording | decoded audio | peak memory | over the decoded audio | seconds |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (1, arguments.minutes):
            path = repeated_call(Path(folder), minutes)
            begun = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-c", OURS, str(path), str(models), *stages], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            summary = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{minutes} min failed with status {process.returncode}")
            peak = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
            audio = minutes * 60 * 16_000 * 4 / (1 << 20)
            seconds = time.perf_counter() - begun
            print(
                f"| {minutes} min | {audio:.0f} MB | {peak:.0f} MB | {peak - audio:.0f} MB | {seconds:.0f} |",
                flush=True,
            )
            print(f"segments, words, speakers, stages: {summary.strip()}", file=sys.stderr)


def repeated_call(folder: Path, minutes: int) -> Path:
    """The call that pyannote.audio brings along, over and over, as FLAC."""
    import av

    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    sample = Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"
    with av.open(str(sample)) as container:
        blocks = [frame.to_ndarray().reshape(1, -1) for frame in container.decode(audio=0)]
    call = np.concatenate(blocks, axis=1).astype(np.int16)
    path = folder / f"{minutes}.flac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        for index in range(minutes * 2):
            frame = av.AudioFrame.from_ndarray(call, format="s16", layout="mono")
            frame.sample_rate = 16_000
            frame.time_base = Fraction(1, 16_000)
            frame.pts = index * call.shape[1]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
