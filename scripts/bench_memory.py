#!/usr/bin/env python3
"""Peak memory of a long and a short recording: the difference should be the decoded audio only.

    scripts/bench_memory.py [--minutes N] [--audio-memory MB] [--align] [--diarize] [--json FILE] [--plot FILE.png]

Each recording repeats the sample call as FLAC, and a new process transcribes it. Decoded audio
beyond --audio-memory goes to a mapped file, as on a server with MAX_AUDIO_MEMORY. The system can drop the pages of that
file, so a machine needs the anonymous memory only.
"""

from __future__ import annotations

import sys
import tempfile
from fractions import Fraction
from pathlib import Path

from measuring import (
    Comparison,
    Report,
    Sample,
    arguments,
    models_dir,
    needs,
    one_process,
    sample_call,
)

OURS = """
import sys, threading, time
from whisper_api import Engine, TranscriptionOptions
options = TranscriptionOptions(
    model=sys.argv[3], language="en", align="align" in sys.argv, diarize="diarize" in sys.argv, beam_size=1
)
peak = 0
def watch():
    global peak
    while True:
        with open("/proc/self/status") as status:
            peak = max(peak, *(int(line.split()[1]) for line in status if line.startswith("RssAnon")))
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()
with Engine(device="cpu", models_dir=sys.argv[2], offline=True, audio_memory=int(sys.argv[4]) << 20) as engine:
    transcript = engine.transcribe(sys.argv[1], options)
print(len(transcript.words), len(transcript.speakers), peak / 1024)
"""


def main() -> int:
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--audio-memory", type=int, default=512, metavar="MB")
    parser.add_argument("--align", action="store_true")
    parser.add_argument("--diarize", action="store_true")
    options = needs.parsed(parser, needs.MODEL)
    report = Report("memory", options)
    stages = [name for name in ("align", "diarize") if getattr(options, name)]
    samples: dict[str, list[Sample]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for minutes in (1, 2 if options.quick else options.minutes):
            path = repeated_call(Path(folder), minutes)
            command = [sys.executable, "-c", OURS, str(path), str(models_dir()), options.model]
            command += [str(options.audio_memory), *stages]
            audio = minutes * 60 * 16_000 * 4 / (1 << 20)
            runs = samples[f"{minutes} min"] = []
            for _ in range(options.runs):
                run = one_process(command)
                run.values = {"decoded audio MB": audio, "MB over it": run.peak_mb - audio}
                words, speakers, anonymous = map(float, (run.text or "0 0 0").split())
                run.values |= {"anonymous MB": anonymous, "timed words": words, "speakers": speakers}
                runs.append(run)
    title = f"memory of one process, greedy{''.join(f', {stage}' for stage in stages)}"
    report.add(Comparison(title, samples))
    return report.finish()


def repeated_call(folder: Path, minutes: int) -> Path:
    """Make a FLAC file that repeats the sample call of pyannote.audio."""
    import av
    import numpy as np

    with av.open(str(sample_call())) as container:
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
    sys.exit(main())
