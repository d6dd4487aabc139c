#!/usr/bin/env python3
"""Give the decoder damaged files: it must refuse or decode each of them, and never crash, hang or take all memory.

    scripts/fuzz_decoder.py [--mutants N] [--seed N] [--first N] [--keep FOLDER]

The seeds are generated sound in every container and codec that this build of libav writes, and the sample call. A
mutant is a seed with bytes flipped, numbers overwritten, parts cut out, doubled or taken from another seed, or its end
missing. Mutant N of a seed number is always the same. The engine's decoder process reads them. A mutant that ends this
process, makes it hang, raises an unnamed error or takes more than 2 s of CPU time is saved, and the exit code is 1.
Prints the counts, the longest time and the most memory of a decoder process.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from measuring.speech import sample_call

SLOW_SECONDS = 2.0
MAX_SECONDS = 12 * 3600.0
MEMORY = 512 << 20
RATES = {
    **dict.fromkeys(("libopus", "ac3", "eac3"), 48000),
    **dict.fromkeys(("libmp3lame", "mp2", "vorbis", "wmav2"), 44100),
    "libopencore_amrnb": 8000,
}
FILES: dict[str, tuple[str, ...]] = {
    "wav": ("pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_mulaw", "adpcm_ima_wav", "adpcm_ms"),
    "w64": ("pcm_s16le",),
    "aiff": ("pcm_s16be",),
    "caf": ("pcm_s16le",),
    "au": ("pcm_s16be",),
    "flac": ("flac",),
    "mp3": ("libmp3lame",),
    "mp2": ("mp2",),
    "adts": ("aac",),
    "ac3": ("ac3",),
    "eac3": ("eac3",),
    "amr": ("libopencore_amrnb",),
    "ogg": ("libopus", "flac", "vorbis", "libvorbis"),
    "webm": ("libopus", "vorbis"),
    "matroska": ("aac", "flac", "pcm_s16le"),
    "ipod": ("aac",),
    "mp4": ("aac", "alac", "flac", "libopus"),
    "mov": ("pcm_s16le",),
    "3gp": ("aac",),
    "mpegts": ("aac", "mp2"),
    "flv": ("aac",),
    "avi": ("libmp3lame", "pcm_s16le"),
    "nut": ("pcm_s16le",),
    "asf": ("wmav2",),
    "tta": ("tta",),
    "wv": ("wavpack",),
    "voc": ("pcm_u8",),
    "rm": ("ac3",),
}
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="where mutants that failed are saved")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        found = Findings(options.keep, read_seeds(Path(folder)), options.seed)
    for number in range(options.first, options.first + options.mutants):
        found.note(number, attempt(mutant(found.seeds, options.seed, number)))
    print(found.report())
    return 1 if found.failed else 0


# ---- seeds


def write_seeds(folder: Path) -> None:
    """Write a file of each kind. The files are the same in every run."""
    time_ = np.arange(48000) / 48000
    sound = 0.3 * np.sin(2 * np.pi * 220 * time_) + 0.05 * np.random.default_rng(0).standard_normal(len(time_))
    for container, codecs in FILES.items():
        for codec in codecs:
            content = encoded(sound.astype(np.float32), container, codec)
            if content is not None:
                (folder / f"{container}-{codec}").write_bytes(content)
    for name, content in wav_seeds((folder / "wav-pcm_s16le").read_bytes()).items():
        (folder / name).write_bytes(content)
    (folder / "call").write_bytes(sample_call().read_bytes()[:100_000])


def encoded(sound: np.ndarray[Any, Any], container: str, codec: str) -> bytes | None:
    """The sound, (samples,) at 48 kHz, as a file; None when this build of libav cannot write this kind."""
    import av
    from av.error import FFmpegError

    rate, layout = RATES.get(codec, 16000), "stereo" if codec in ("vorbis", "wmav2") else "mono"
    settings = {"strict": "experimental", **({"b": "64000"} if codec == "wmav2" else {})}
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=container, options={"fflags": "+bitexact"}) as output:
            streams: list[Any] = [output.add_stream(codec, rate=rate, layout=layout, options=settings)]
            if container in ("matroska", "mp4"):
                streams.append(output.add_stream(codec, rate=rate, layout="mono"))
            output.metadata["title"] = "noise"
            for stream in streams:
                size = stream.codec_context.frame_size or 4096
                resampler = av.AudioResampler(stream.codec_context.format.name, layout, rate, size)
                frame = av.AudioFrame.from_ndarray(sound[None], "flt", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
                for piece in (*resampler.resample(frame), *resampler.resample(None)):
                    output.mux(stream.encode(piece))
                output.mux(stream.encode(None))
    except (FFmpegError, ValueError, KeyError):
        return None
    return file.getvalue() or None


def wav_seeds(plain: bytes) -> dict[str, bytes]:
    """WAV files with an unusual structure: a second file at the end, a size that is too small, many chunks."""
    place = plain.index(b"data") + 4
    small = plain[:place] + (1000).to_bytes(4, "little") + plain[place + 4 :]
    return {"wav-twice": plain + plain, "wav-small": small, "wav-chunks": plain + 2000 * b"note\0\0\0\0"}


def read_seeds(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


# ---- mutants


def mutant(seeds: list[tuple[str, bytes]], seed: int, number: int) -> bytes:
    """Mutant ``number``, always the same for the same seeds."""
    chance = random.Random(f"{seed}:{number}")
    _, content = chance.choice(seeds)
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        # Headers are small, and most faults are in them.
        reach = min(len(data), 512) if chance.random() < 0.5 else len(data)
        if reach < 2:
            break
        chance.choice(MUTATIONS)(data, reach, chance, seeds)
    return bytes(data)


def flip_bytes(data: bytearray, reach: int, chance: random.Random, _seeds: Any) -> None:
    for _ in range(chance.choice((1, 2, 8, 64))):
        data[chance.randrange(reach)] = chance.randrange(256)


def write_number(data: bytearray, reach: int, chance: random.Random, _seeds: Any) -> None:
    size = chance.choice((1, 2, 4, 4, 8))
    value = chance.choice(NUMBERS) % (1 << 8 * size)
    place = chance.randrange(reach)
    data[place : place + size] = value.to_bytes(size, chance.choice(("little", "big")))


def cut_end(data: bytearray, reach: int, chance: random.Random, _seeds: Any) -> None:
    del data[chance.randrange(1, reach) :]


def cut_out(data: bytearray, reach: int, chance: random.Random, _seeds: Any) -> None:
    place = chance.randrange(reach)
    del data[place : place + chance.choice((1, 4, 100, 4000))]


def double(data: bytearray, reach: int, chance: random.Random, _seeds: Any) -> None:
    place = chance.randrange(reach)
    piece = data[place : place + chance.choice((4, 100, 4000))]
    data[place:place] = piece * chance.choice((1, 1, 50))


def splice(data: bytearray, reach: int, chance: random.Random, seeds: list[tuple[str, bytes]]) -> None:
    _, other = chance.choice(seeds)
    place = chance.randrange(reach)
    begin = chance.randrange(len(other))
    data[place:] = other[begin:] if chance.random() < 0.5 else other[begin : begin + 2000] + data[place:]


MUTATIONS = (flip_bytes, flip_bytes, write_number, write_number, cut_end, cut_out, double, splice)


# ---- one mutant

# The beginnings of the error messages about the end of the decoder process.
ENDS = ("it brings libav down", "libav has hung", "too much processor time")


def attempt(content: bytes) -> dict[str, Any]:
    """Decode a file in the decoder process and return the outcome."""
    from whisper_api.engine.audio.decode import decode, probe
    from whisper_api.engine.audio.process import DECODERS
    from whisper_api.engine.audio.track import AudioMemory
    from whisper_api.errors import InvalidAudio

    DECODERS.prestart()
    pids = DECODERS.pids
    began, cpu = time.perf_counter(), sum(map(cpu_seconds, pids))
    outcome = "decoded"
    try:
        probe(content, max_seconds=MAX_SECONDS)
        if not np.isfinite(decode(content, max_seconds=MAX_SECONDS, memory=AudioMemory(MEMORY)).audio).all():
            outcome = "not finite"
    except InvalidAudio as error:
        outcome = f"refused: {type(error).__name__}"
        outcome += next((f", {end}" for end in ENDS if end in str(error)), "")
    except Exception as error:
        outcome = f"raised: {type(error).__name__}: {error}"
    same = DECODERS.pids == pids
    return {
        "outcome": outcome,
        "seconds": time.perf_counter() - began,
        "cpu": sum(map(cpu_seconds, pids)) - cpu if same else 0.0,
        "memory": max(map(peak_memory, pids)) if same else 0,
    }


def cpu_seconds(pid: int) -> float:
    """Processor time of a process; 0 on systems without /proc."""
    if not Path("/proc/self/stat").exists():
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def peak_memory(pid: int) -> int:
    """Peak memory of a process in bytes; 0 on systems without /proc."""
    if not Path("/proc/self/status").exists():
        return 0
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


# ---- all mutants


@dataclass
class Findings:
    """The outcomes of the mutants."""

    keep: Path
    seeds: list[tuple[str, bytes]]
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    longest: float = 0.0
    longest_cpu: float = 0.0
    memory: int = 0

    def note(self, number: int, line: dict[str, Any]) -> None:
        outcome = str(line["outcome"])
        self.outcomes[outcome.split(":")[0] if outcome.startswith("raised") else outcome] += 1
        self.longest = max(self.longest, line["seconds"])
        self.longest_cpu = max(self.longest_cpu, line["cpu"])
        self.memory = max(self.memory, line["memory"])
        if line["cpu"] > SLOW_SECONDS:
            self.fail(number, f"took {line['cpu']:.1f} s of CPU time")
        if not outcome.startswith(("decoded", "refused")) or outcome.endswith(ENDS):
            self.fail(number, outcome)

    def fail(self, number: int, why: str) -> None:
        self.keep.mkdir(parents=True, exist_ok=True)
        (self.keep / f"mutant-{self.seed}-{number}").write_bytes(mutant(self.seeds, self.seed, number))
        self.failed.append(f"mutant {number} {why}")
        print(self.failed[-1], file=sys.stderr, flush=True)

    def report(self) -> str:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()))
        return (
            f"{sum(self.outcomes.values())} mutants of {len(self.seeds)} seeds: {counts}\n"
            f"longest: {self.longest:.2f} s, {self.longest_cpu:.2f} s of CPU time; "
            f"most memory of a decoder process: {self.memory / 1e6:.0f} MB\n"
            f"failed: {len(self.failed)}"
        )


if __name__ == "__main__":
    sys.exit(main())
