#!/usr/bin/env python3
"""Time and memory of a short clip, in a process of its own and with the model resident, beside one `whisperx` process.

    scripts/bench_start.py [FILE] [--runs N] [--model NAME]

Without a file, ten seconds of the telephone call that pyannote.audio brings along. Both sides use the same weights,
int8, beam 5, no alignment and no diarization. whisperx needs an ffmpeg program, and is left out where there is none.
Prints medians; the machine should be quiet.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

OURS = """
import sys, time
from whisper_api import Engine, TranscriptionOptions
options = TranscriptionOptions(model=sys.argv[2], language="en", align=False, diarize=False)
with Engine(device="cpu", models_dir=sys.argv[3], offline=True) as engine:
    print(engine.transcribe(sys.argv[1], options).text, flush=True)
    for _ in range(int(sys.argv[4])):
        begun = time.perf_counter()
        engine.transcribe(sys.argv[1], options)
        print(time.perf_counter() - begun, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="base")
    arguments = parser.parse_args()
    models = Path(os.environ.get("WHISPER_MODELS_DIR") or Path(__file__).parent.parent / "models_cache").absolute()
    weights = models / "whisper" / arguments.model
    has_peer = shutil.which("ffmpeg") is not None
    with tempfile.TemporaryDirectory() as folder:
        clip = arguments.file or ten_seconds(Path(folder))
        ours = [sys.executable, "-c", OURS, str(clip), arguments.model, str(models)]
        peer = [sys.executable, "-m", "whisperx", str(clip), "--model", str(weights), "--language", "en", "--no_align"]
        peer += ["--compute_type", "int8", "--output_dir", folder, "--output_format", "txt", "--device", "cpu"]
        first, whole, theirs, memory, peer_memory = [], [], [], [], []
        for _ in range(arguments.runs):
            seconds, total, peak = run([*ours, "0"])
            first.append(seconds)
            whole.append(total)
            memory.append(peak)
            if has_peer:
                _, total, peak = run(peer)
                theirs.append(total)
                peer_memory.append(peak)
        output = subprocess.run([*ours, str(arguments.runs)], check=True, capture_output=True, text=True).stdout
        resident = [float(line) for line in output.split("\n")[-arguments.runs - 1 : -1]]
    print(f"{arguments.runs} runs, medians; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs\n")
    print("| | seconds | peak memory |\n|---|---|---|")
    print(f"| start of the process to the first word | {statistics.median(first):.2f} | |")
    print(f"| start of the process to its end | {statistics.median(whole):.2f} | {statistics.median(memory):.0f} MB |")
    print(f"| with the model resident | {statistics.median(resident):.2f} | |")
    if not has_peer:
        print("\nwhisperx was left out: there is no ffmpeg program here.")
    else:
        ratio = statistics.median(theirs) / statistics.median(whole)
        again = statistics.median(theirs) / statistics.median(resident)
        print(f"| one whisperx process | {statistics.median(theirs):.2f} | {statistics.median(peer_memory):.0f} MB |")
        print(
            f"\nwhisperx takes {ratio:.1f} times as long as one process of ours, {again:.1f} times as long as resident."
        )


def ten_seconds(folder: Path) -> Path:
    """Ten seconds of real speech as a file."""
    spec = importlib.util.find_spec("pyannote.audio")
    assert spec is not None
    assert spec.submodule_search_locations
    sample = Path(next(iter(spec.submodule_search_locations))) / "sample" / "sample.wav"
    path = folder / "clip.wav"
    with wave.open(str(sample)) as whole, wave.open(str(path), "wb") as clip:
        clip.setparams(whole.getparams())
        whole.setpos(int(12.5 * whole.getframerate()))
        clip.writeframes(whole.readframes(10 * whole.getframerate()))
    return path


def run(command: list[str]) -> tuple[float, float, float]:
    """Seconds to the first line on standard output, seconds to the end, and peak memory in MB."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    first = time.perf_counter() - begun
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with status {process.returncode}: {' '.join(command[:4])} ...")
    return first, time.perf_counter() - begun, peak_megabytes(usage)


def peak_megabytes(usage: resource.struct_rusage) -> float:
    """Peak resident memory; Linux counts it in kilobytes, macOS in bytes."""
    return usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    main()
