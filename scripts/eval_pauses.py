#!/usr/bin/env python3
"""Speech that Silero loses after a pause.

    scripts/eval_pauses.py FOLDER [--minutes N ...] [--level DB] [--noise NAME ...]

FOLDER holds a manifest.json: a list of {"file"}. Each recording is heard by itself, and again after minutes of digital
silence and of noise, which end where the recording begins. Lost is each frame that is in a span of speech when the
recording is heard by itself, and in none after the pause. Such a frame is mostly in a window all the same, because
windows go over pauses: Whisper hears it. So each row has both shares, of all recordings together and of those that
lose most: lost from the spans, and lost from the windows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from eval_invented import SOUNDS, made
from measuring import needs
from msgspec.structs import replace
from numpy.typing import NDArray

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.options import resolve
from whisper_api.engine.silero import SILERO_FRAME, silero_probabilities
from whisper_api.engine.silero_again import heard_again
from whisper_api.engine.vad import SpeechFrames, speech_spans, windows
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import SAMPLE_RATE

# As the options have them by default. The spans are compared without padding, which would hide lost frames.
SETTINGS = resolve(TranscriptionOptions(), model="base", language="auto")
UNPADDED = replace(SETTINGS, vad_padding=0.0)
# Shares of less speech say nothing.
LEAST_SECONDS = 2.0
SHOWN = 3

Samples = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", nargs="+", type=float, default=[0.0, 1.0, 5.0, 30.0])
    parser.add_argument("--level", type=float, default=-45.0, help="dBFS of the noise")
    parser.add_argument("--noise", nargs="+", choices=[*SOUNDS], default=["silence", "white", "pink", "room"])
    arguments = needs.parsed(parser)
    files = [item["file"] for item in json.loads((arguments.folder / "manifest.json").read_text())]
    clips = {file: decode(arguments.folder / file).audio for file in files}
    alone = {file: heard(audio)[0] for file, audio in clips.items()}
    clips = {file: audio for file, audio in clips.items() if alone[file].sum() >= LEAST_SECONDS * SAMPLE_RATE}
    for minutes in arguments.minutes:
        for name in arguments.noise if minutes else ["silence"]:
            pause = made(name, arguments.level, 60 * minutes) if minutes else np.zeros(0, np.float32)
            lost = {file: losing(pause, audio, alone[file]) for file, audio in clips.items()}
            print(f"{minutes:g} minutes of {name}, {len(clips)} recordings:", flush=True)
            for number, what in enumerate(("spans", "windows")):
                total = sum(int(alone[file].sum()) for file in clips)
                shares = {file: 100 * counts[number] / int(alone[file].sum()) for file, counts in lost.items()}
                worst = sorted(shares, key=lambda file: -shares[file])[:SHOWN]
                share = 100 * sum(counts[number] for counts in lost.values()) / max(1, total)
                print(f"  lost from the {what}: {share:.2f} %;", ", ".join(f"{f} {shares[f]:.1f} %" for f in worst))


def heard(audio: Samples) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each sample is in a span of speech, and whether it is in a window."""
    frames = SpeechFrames(heard_again(audio, silero_probabilities(audio)), SILERO_FRAME)
    padded = speech_spans(frames, SETTINGS, len(audio))
    found = []
    for spans in (speech_spans(frames, UNPADDED, len(audio)), windows(padded, frames, audio)):
        inside = np.zeros(len(audio), bool)
        for span in spans:
            inside[span.start : span.end] = True
        found.append(inside)
    return found[0], found[1]


def losing(pause: Samples, audio: Samples, alone: NDArray[np.bool_]) -> tuple[int, int]:
    """Samples of speech that are in no span, and in no window, when the audio comes after the pause."""
    spans, inside = (each[len(pause) :] for each in heard(np.concatenate([pause, audio])))
    return int(np.count_nonzero(alone & ~spans)), int(np.count_nonzero(alone & ~inside))


if __name__ == "__main__":
    main()
