"""The sides of ``gpu_acceptance.py``. Each function runs in a child process, loads models and returns a job.

All sides of a comparison use the same randomly initialised weights, compute type, beam, windows and, by
``fixed_tokens``, the same number of tokens for each window. Each run returns its speed as a multiple of real time, and
the peak of the device memory that it added.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from fixed_tokens import FixedWhisper, Tally, our_tokens_fixed, words
from gpu_gauge import WINDOW, Floats, Gauge, Setting, speech

from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    from whisper_api import Engine

Job = Callable[..., dict[str, Any]]

_LASTING = contextlib.ExitStack()


# --- recognition: windows of 30 s, the same on all sides ------------------------------------------------------------


def ours(windows: int, **settings: Any) -> Job:
    """The engine with a number of windows, from features to text."""
    from whisper_api.engine import vad

    setting = Setting(**settings)
    size = round(WINDOW * SAMPLE_RATE)
    spans = [vad.Span(i * size, (i + 1) * size) for i in range(windows)]
    vad.detect = lambda ctx, audio: vad.Detection(spans[: len(audio) // size], [])
    return _ours(setting, speech(windows * WINDOW))


def ours_hour(seconds: float, **settings: Any) -> Job:
    """The engine through all stages: voice activity, recognition, alignment, diarization."""
    return _ours(Setting(**settings), speech(seconds), align=True, diarize=True)


def _ours(setting: Setting, audio: Floats, *, align: bool = False, diarize: bool = False) -> Job:
    gauge, tally = Gauge(setting.device), Tally()
    engine = _engine(setting, tally)
    options = _options(setting, align=align, diarize=diarize)
    engine.preload(options)
    if align:
        engine.preload_rest(options)
    gauge.loaded()

    def job(beam: int = setting.beam) -> dict[str, Any]:
        values: dict[str, float] = {}
        with gauge.run(len(audio) / SAMPLE_RATE, values):
            transcript = engine.transcribe(audio, msgspec.structs.replace(options, beam_size=beam))
        values |= tally.take()
        if align:
            values |= {f"{stage} s": seconds for stage, seconds in transcript.timings.items()}
        return {"values": values, "warnings": list(transcript.warnings)}

    return job


def whisperx(windows: int, **settings: Any) -> Job:
    """Resident WhisperX with the same windows."""
    setting = Setting(**settings)
    gauge, tally = Gauge(setting.device), Tally()
    pipeline = _whisperx(setting, tally, _given_windows())
    audio = speech(windows * WINDOW)
    gauge.loaded()

    def job() -> dict[str, Any]:
        values: dict[str, float] = {}
        with gauge.run(len(audio) / SAMPLE_RATE, values):
            pipeline.transcribe(audio, batch_size=setting.batch)
        return {"values": values | tally.take()}

    return job


def whisperx_hour(seconds: float, **settings: Any) -> Job:
    """Resident WhisperX with its own voice activity, recognition and alignment. Its diarization needs an account."""
    import peers
    import whisperx as peer

    setting = Setting(**settings)
    gauge, tally = Gauge(setting.device), Tally()
    pipeline = _whisperx(setting, tally, None)
    peers.spare_nltk()
    aligner = peer.load_align_model("en", setting.device, model_dir=str(peers.alignment_dir(Path(setting.models))))
    audio = speech(seconds)
    gauge.loaded()

    def job() -> dict[str, Any]:
        values: dict[str, float] = {}
        with gauge.run(seconds, values):
            begun = time.perf_counter()
            found = pipeline.transcribe(audio, batch_size=setting.batch)
            values["asr s"] = time.perf_counter() - begun
            peer.align(found["segments"], *aligner, audio, setting.device)
            values["align s"] = time.perf_counter() - begun - values["asr s"]
        return {"values": values | tally.take()}

    return job


# --- clients --------------------------------------------------------------------------------------------------------


def whisperx_clients(clients: int, seconds: float, **settings: Any) -> Job:
    """Resident WhisperX behind a lock: clients in sequence, because its shared state allows no more."""
    setting = Setting(**settings)
    gauge, tally = Gauge(setting.device), Tally()
    pipeline = _whisperx(setting, tally, None)
    gauge.loaded()
    clips = [speech(seconds, start=number) for number in range(clients)]

    def job() -> dict[str, Any]:
        values: dict[str, float] = {}
        with gauge.run(seconds * clients, values):
            for clip in clips:
                pipeline.transcribe(clip, batch_size=setting.batch)
        return {"values": values | tally.take()}

    return job


# --- alignment ------------------------------------------------------------------------------------------------------


def ours_align(segments: int, seconds: float, **settings: Any) -> Job:
    """The alignment stage over so many segments, with a hundred words in 30 s."""
    from whisper_api.engine.align.align import align
    from whisper_api.engine.context import JobContext
    from whisper_api.engine.worker.worker import GpuWorker
    from whisper_api.schema import Segment

    setting = Setting(**settings)
    gauge = Gauge(setting.device)
    engine = _engine(setting, Tally())
    worker = GpuWorker(lanes=engine.whisper.lanes, scope=engine.device.scope)
    audio = speech(segments * seconds)
    spoken = [Segment(id=i, **segment) for i, segment in enumerate(_segments(setting, segments, seconds))]

    def job() -> dict[str, Any]:
        values: dict[str, float] = {}
        ctx = JobContext(
            options=_options(setting, align=True, diarize=False),
            device=engine.device,
            worker=worker,
            models=engine.models,
            store=engine.store,
        )
        with gauge.run(len(audio) / SAMPLE_RATE, values):
            found = align(ctx, audio, spoken, "en")
        ctx.close()
        words = [word for segment in found.segments for word in segment.words]
        values["words"] = len(words)
        values["with times"] = sum(not word.interpolated for word in words)
        return {"values": values}

    job()  # loads the model
    gauge.loaded()
    return job


def whisperx_align(segments: int, seconds: float, **settings: Any) -> Job:
    """``whisperx.align`` over the same segments, with the same weights."""
    import peers
    import whisperx as peer

    setting = Setting(**settings)
    gauge = Gauge(setting.device)
    peers.spare_nltk()
    aligner = peer.load_align_model("en", setting.device, model_dir=str(peers.alignment_dir(Path(setting.models))))
    audio = speech(segments * seconds)
    spoken = _segments(setting, segments, seconds)
    gauge.loaded()

    def job() -> dict[str, Any]:
        values: dict[str, float] = {}
        with gauge.run(len(audio) / SAMPLE_RATE, values):
            found = peer.align(spoken, *aligner, audio, setting.device)
        words = [word for segment in found["segments"] for word in segment["words"]]
        values["words"] = len(words)
        values["with times"] = sum("score" in word for word in words)
        return {"values": values}

    return job


# --- shared code ----------------------------------------------------------------------------------------------------


def _engine(setting: Setting, tally: Tally) -> Engine:
    from whisper_api import Engine

    # Stays in force until this process ends.
    _LASTING.enter_context(our_tokens_fixed(setting.tokens, tally))
    return Engine(
        model=setting.whisper,
        language="en",
        device=setting.device,
        compute_type=setting.compute_type,
        batch_size=setting.batch,
        models_dir=setting.models,
        offline=True,
    )


def _options(setting: Setting, *, align: bool, diarize: bool) -> Any:
    from whisper_api import TranscriptionOptions

    return TranscriptionOptions(language="en", beam_size=setting.beam, align=align, diarize=diarize)


def _whisperx(setting: Setting, tally: Tally, vad: Any) -> Any:
    import whisperx as peer

    pipeline = peer.load_model(
        setting.weights,
        compute_type=setting.compute_type,
        language="en",
        vad_model=vad,
        asr_options={"beam_size": setting.beam},
        **setting.place,
    )
    model = pipeline.model
    model.model = FixedWhisper(model.model, _end(model), setting.tokens, tally)
    return pipeline


def _given_windows() -> Any:
    """A voice activity detection for whisperx that finds speech in every window of 30 s."""
    from whisperx.vads import Vad

    class FixedSegments(Vad):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(0.5)

        @staticmethod
        def preprocess_audio(audio: Floats) -> Floats:
            return audio

        def __call__(self, audio: dict[str, Any]) -> int:
            return len(audio["waveform"])

        @staticmethod
        def merge_chunks(samples: int, *_: Any, **__: Any) -> list[dict[str, float]]:
            count = round(samples / SAMPLE_RATE / WINDOW)
            return [{"start": i * WINDOW, "end": (i + 1) * WINDOW} for i in range(count)]

    return FixedSegments()


def _end(model: Any) -> int:
    return int(model.hf_tokenizer.token_to_id("<|endoftext|>"))


def _segments(setting: Setting, count: int, seconds: float) -> list[dict[str, Any]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(setting.weights) / "tokenizer.json"))
    text = tokenizer.decode(words(round(100 * seconds / WINDOW))).strip()
    return [{"start": i * seconds, "end": (i + 1) * seconds, "text": text} for i in range(count)]
