"""The sides of ``bench_stages.py``: single stages of this project, of whisperx and of stock pyannote, each resident."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
from peers import Job

# The timed parts of a recognition: module and function. The first part runs alone; the others run at once on the
# worker's lanes, so each is timed by its lane's clock.
OUR_PARTS = {
    "vad": ("whisper_api.engine.vad", "detect"),
    "mel": ("whisper_api.engine.whisper.onnx.model", "log_mel"),
    "encoder": ("whisper_api.engine.whisper.onnx.sessions", "Sessions.encode"),
}


def ours(models: str, model: str, beam: int) -> Job:
    """Our stages.

    Args:
        models: the models directory, with an English alignment model.
        model: name of the Whisper model.
        beam: hypotheses.
    """
    from whisper_api import Engine, Segment, TranscriptionOptions
    from whisper_api.engine.align import align
    from whisper_api.engine.audio.decode import decode
    from whisper_api.engine.context import JobContext
    from whisper_api.engine.diarize import pipeline as diarize
    from whisper_api.engine.worker.worker import GpuWorker

    engine = Engine(device="cpu", models_dir=models, offline=True)
    worker = GpuWorker(lanes=engine.whisper.lanes)
    options = TranscriptionOptions(model=model, language="en", align=False, diarize=False, beam_size=beam)
    # A lane's clock does not include the work of other threads, so the parts are not reported then.
    alone = engine.whisper.threads == 1
    clocks = {"vad": time.process_time, "mel": time.thread_time, "encoder": time.thread_time}
    spent = {name: _timed(*part, clocks[name]) if alone else None for name, part in OUR_PARTS.items()}

    @contextlib.contextmanager
    def context() -> Iterator[JobContext]:
        ctx = JobContext(
            options=engine.resolve(options),
            device=engine.device,
            worker=worker,
            models=engine.models,
            store=engine.store,
        )
        try:
            yield ctx
        finally:
            ctx.close()

    def recognition(path: str, segments: str | None = None) -> dict[str, Any]:
        for seconds in filter(None, spent.values()):
            seconds.clear()
        begun = time.process_time()
        transcript = engine.transcribe(_samples(path), options)
        used = time.process_time() - begun
        parts: dict[str, float] = {name: sum(seconds) for name, seconds in spent.items() if seconds is not None}
        if set(parts) == set(OUR_PARTS) and parts["encoder"]:
            parts["decoder"] = used - sum(parts.values())
        found = [{"start": s.start, "end": s.end, "text": s.text} for s in transcript.segments]
        return {"text": transcript.text, "segments": found, "parts": parts}

    def alignment(path: str, segments: str) -> dict[str, Any]:
        given = [Segment(id=index, **one) for index, one in enumerate(json.loads(Path(segments).read_text()))]
        with context() as ctx:
            aligned = align.align(ctx, _samples(path), given, "en")
        words = [(word.word, None if word.interpolated else word.start) for s in aligned.segments for word in s.words]
        return {"words": words, "values": {"words": len(words)}}

    def diarization(paths: list[str]) -> dict[str, Any]:
        turns = {}
        for path in paths:
            with context() as ctx:
                found = diarize.diarize(ctx, _samples(path))
            turns[path] = [(turn.start, turn.end, turn.speaker) for turn in found.turns]
        return {"turns": turns}

    def to_samples(path: str) -> dict[str, Any]:
        return {"values": {"seconds of audio": decode(path).duration}}

    stages: dict[str, Callable[..., dict[str, Any]]] = {
        "decode": to_samples,
        "recognition": recognition,
        "alignment": alignment,
        "diarization": diarization,
    }
    return lambda stage, **job: stages[stage](**job)


def _timed(module: str, name: str, clock: Callable[[], float]) -> list[float] | None:
    """Record the seconds of each call of a function or method; None when the function does not exist."""
    try:
        owner: Any = importlib.import_module(module)
        *classes, last = name.split(".")
        for one in classes:
            owner = getattr(owner, one)
        function = getattr(owner, last)
    except (ImportError, AttributeError):
        return None
    seconds: list[float] = []

    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        begun = clock()
        try:
            return function(*arguments, **named)
        finally:
            seconds.append(clock() - begun)

    setattr(owner, last, timed)
    return seconds


def _samples(path: str) -> Any:
    from whisper_api.engine.audio.decode import decode

    return _kept(decode, path)


@functools.lru_cache(maxsize=16)
def _kept(decode: Callable[[str], Any], path: str) -> Any:
    """Decode once for all other stages, because decoding is measured separately."""
    return decode(path).audio


def whisperx(weights: str, align_dir: str, beam: int) -> Job:
    """Whisperx's stages: int8, batch 8, a thread for each core.

    Args:
        weights: directory of the Whisper model.
        align_dir: of the alignment model.
        beam: hypotheses.
    """
    import numpy as np
    import torch
    from faster_whisper.tokenizer import Tokenizer
    from whisperx import align, load_align_model, load_audio, load_model
    from whisperx.audio import N_SAMPLES, log_mel_spectrogram
    from whisperx.vads import Pyannote

    model = load_model(
        weights, "cpu", compute_type="int8", language="en", threads=peers.cores(), asr_options={"beam_size": beam}
    )
    peers.spare_nltk()
    aligner = load_align_model("en", "cpu", model_dir=align_dir)
    whisper, options = model.model, model.options
    tokenizer = Tokenizer(whisper.hf_tokenizer, whisper.model.is_multilingual, task="transcribe", language="en")
    audio_of = functools.lru_cache(maxsize=16)(load_audio)

    def recognition(path: str, segments: str) -> dict[str, Any]:
        audio = audio_of(path)
        clock = [time.process_time()]

        def since() -> float:
            clock.append(time.process_time())
            return clock[-1] - clock[-2]

        speech = model.vad_model({"waveform": Pyannote.preprocess_audio(audio), "sample_rate": 16_000})
        Pyannote.merge_chunks(speech, 30, onset=0.5, offset=0.363)
        parts = {"vad": since(), "mel": 0.0, "encoder": 0.0, "decoder": 0.0}
        # The next stage gets our windows; the result of whisperx's own detection is only timed.
        windows = [
            audio[int(one["start"] * 16_000) : int(one["end"] * 16_000)]
            for one in json.loads(Path(segments).read_text())
        ]
        texts: list[str] = []
        for begin in range(0, len(windows), 8):
            since()
            batch = windows[begin : begin + 8]
            mel = [log_mel_spectrogram(w, n_mels=80, padding=max(0, N_SAMPLES - len(w))) for w in batch]
            features = torch.stack(mel).numpy()
            parts["mel"] += since()
            encoded = whisper.encode(features)
            parts["encoder"] += since()
            prompt = whisper.get_prompt(tokenizer, [], without_timestamps=True)
            results = whisper.model.generate(
                encoded,
                [prompt] * len(batch),
                beam_size=beam,
                max_length=whisper.max_length,
                suppress_blank=options.suppress_blank,
                suppress_tokens=options.suppress_tokens,
                return_scores=True,
            )
            parts["decoder"] += since()
            texts += [tokenizer.decode(row.sequences_ids[0]).strip() for row in results]
        return {"text": "\n".join(texts), "parts": parts}

    def alignment(path: str, segments: str) -> dict[str, Any]:
        given = json.loads(Path(segments).read_text())
        found = align(given, *aligner, np.asarray(audio_of(path)), "cpu")
        words = [
            (word["word"], word["start"] if "score" in word else None) for s in found["segments"] for word in s["words"]
        ]
        return {"words": words, "values": {"words": len(words)}}

    def to_samples(path: str) -> dict[str, Any]:
        return {"values": {"seconds of audio": len(load_audio(path)) / 16_000}}

    stages: dict[str, Callable[..., dict[str, Any]]] = {
        "decode": to_samples,
        "recognition": recognition,
        "alignment": alignment,
    }
    return lambda stage, **job: stages[stage](**job)


def pyannote(models: str) -> Job:
    """Stock pyannote with our two models."""
    from whisper_api.engine.models.store import ModelStore

    store = ModelStore(Path(models), offline=True)
    diarize = peers.stock_diarization(str(store.ensure("segmentation-3.0").path), str(store.ensure("campplus").path))
    return lambda paths: {"turns": {path: diarize(path) for path in paths}}
