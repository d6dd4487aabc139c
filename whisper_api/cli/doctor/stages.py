"""A real run of each transcription stage, with the models on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whisper_api.cli.doctor.check import Check, failure
from whisper_api.cli.doctor.sound import SOUND_SECONDS, as_wav
from whisper_api.engine.audio.sample import speech
from whisper_api.engine.context import JobContext
from whisper_api.engine.languages import AUTO, MULTI
from whisper_api.engine.models.files import LocalModel
from whisper_api.engine.models.store import ModelStore
from whisper_api.errors import ModelUnavailable
from whisper_api.schema import SAMPLE_RATE, Segment

if TYPE_CHECKING:
    from whisper_api.config import Config
    from whisper_api.engine.diarize.pipeline import Diarization

COMMUNITY = "community-1"

Samples = NDArray[np.float32]


def try_stages(config: Config) -> tuple[Check, ...]:
    """Run every stage once on a few seconds of sound. Downloads nothing and raises nothing.

    Args:
        config: the model, language and device to try, and the models directory.

    Returns:
        A check for each stage, in the order of a transcription.
    """
    sound = speech(SOUND_SECONDS)
    decoding = _run("decode", partial(_decode, sound))
    try:
        bench = _Bench(config, sound)
    except Exception as error:
        return (decoding, *(failure(name, error) for name in STAGES))
    try:
        return (decoding, *(_run(name, partial(stage, bench)) for name, stage in STAGES.items()))
    finally:
        bench.close()


class _NotInstalled(Exception):
    """Models of the catalogue are not on this machine; the message names them."""


class _Bench:
    """The engine, the sound and the jobs with which the stages are run."""

    def __init__(self, config: Config, sound: Samples) -> None:
        from whisper_api.engine.engine import Engine
        from whisper_api.engine.worker.worker import GpuWorker

        self.sound = sound
        self.engine = Engine.from_config(config, offline=True)
        self._worker = GpuWorker("doctor", scope=self.engine.device.scope)

    def job(self, store: ModelStore | None = None) -> JobContext:
        """A context for one stage.

        Args:
            store: the models; None for the engine's store.
        """
        return JobContext(
            options=self.engine.resolve(None),
            device=self.engine.device,
            worker=self._worker,
            models=self.engine.models,
            store=store or self.engine.store,
        )

    def close(self) -> None:
        self._worker.close()
        self.engine.close()

    def find(self, *names: str) -> list[LocalModel]:
        """Models by their names.

        Raises:
            _NotInstalled: with the names of the models that are not on this machine.
            UnknownModel: no model has this name.
        """
        from whisper_api.engine.models.files import resolve

        store = self.engine.store
        found = [store.find(name) if resolve(name) is not None else store.ensure(name) for name in names]
        missing = [name for name, model in zip(names, found, strict=True) if model is None]
        if missing:
            raise _NotInstalled(" ".join(missing))
        return [model for model in found if model is not None]

    def recognize(self, *, word_times: bool) -> tuple[str, list[Segment]]:
        """Transcribe the whole sound.

        Returns:
            The language, and the segments.
        """
        from whisper_api.engine.vad import Span
        from whisper_api.engine.whisper.recognizer import Recognizer

        (local,) = self.find(self.engine.default_model)
        with self.engine.models.lease(self.engine.whisper.source(local)) as whisper:
            spans = [Span(0, len(self.sound))]
            recognizer = Recognizer(self.job(), whisper, local.name, self.sound, spans, self.engine.whisper.batching())
            language, _ = recognizer.resolve_language(self.engine.default_language)
            return language, list(recognizer.transcribe(language, word_times=word_times))


def _decode(sound: Samples) -> str:
    from whisper_api.engine.audio.decode import decode

    return f"{decode(as_wav(sound)).duration:.1f} s of WAV"


def _voice_activity(bench: _Bench) -> str:
    from whisper_api.engine.vad import detect

    seconds = sum(window.seconds for window in detect(bench.job(), bench.sound).windows)
    return f"Silero, {seconds:.1f} s of speech"


def _transcription(bench: _Bench) -> str:
    language, segments = bench.recognize(word_times=False)
    words = sum(len(segment.text.split()) for segment in segments)
    engine = bench.engine
    return (
        f"{engine.default_model} in {engine.compute_type} on {engine.device.torch_name}, {words} words of {language!r}"
    )


def _attention(bench: _Bench) -> str:
    _, segments = bench.recognize(word_times=True)
    return f"{sum(len(segment.words) for segment in segments)} words"


def _alignment(bench: _Bench) -> Check | str:
    from whisper_api.engine.align.align import align, has_model

    language = bench.engine.default_language
    segments = [Segment(id=0, start=0.0, end=len(bench.sound) / SAMPLE_RATE, text="la la la")]
    if language in (AUTO, MULTI):
        language, recognized = bench.recognize(word_times=False)
        segments = recognized or segments
    if not has_model(language):
        return Check("", "missing", f"there is no model for {language!r}; attention gives the times")
    bench.find(f"align-{language}")
    aligned = align(bench.job(), bench.sound, segments, language)
    return f"{aligned.model}, {sum(len(segment.words) for segment in aligned.segments)} words"


def _open_diarization(bench: _Bench) -> str:
    bench.find("segmentation-3.0", "campplus")
    from whisper_api.engine.diarize.pipeline import diarize

    # The engine's own store may have community-1, which diarize() would prefer.
    found = diarize(bench.job(_OpenModels(bench.engine.store.root, offline=True)), bench.sound)
    return f"{found.model}, {_speakers(found)}"


def _community_diarization(bench: _Bench) -> Check | str:
    try:
        bench.find(COMMUNITY)
    except _NotInstalled as missing:
        remedy = f"accept its conditions on the hub, set HF_TOKEN, then whisper-api models pull {COMMUNITY}"
        return Check("", "missing", f"not installed: {missing}", remedy)
    from whisper_api.engine.diarize.pipeline import diarize

    return _speakers(diarize(bench.job(), bench.sound))


def _speakers(found: Diarization) -> str:
    count = len({turn.speaker for turn in found.turns})
    return f"{count} speaker{'' if count == 1 else 's'}"


class _OpenModels(ModelStore):
    """A store without the diarization model that needs an account."""

    def find(self, name: str) -> LocalModel | None:
        return None if name == COMMUNITY else super().find(name)

    def ensure(self, name: str, **options: Any) -> LocalModel:
        if name == COMMUNITY:
            raise ModelUnavailable(f"{name} is not used in this check")
        return super().ensure(name, **options)


STAGES: dict[str, Callable[[_Bench], Check | str]] = {
    "voice activity": _voice_activity,
    "transcription": _transcription,
    "word times, attention": _attention,
    "word times, alignment": _alignment,
    "speakers, open models": _open_diarization,
    "speakers, community-1": _community_diarization,
}


def _run(name: str, stage: Callable[[], Check | str]) -> Check:
    """Run a stage and report its time, or its error as a failed check."""
    begun = time.perf_counter()
    try:
        found = stage()
    except _NotInstalled as missing:
        return Check(name, "missing", f"not installed: {missing}", f"whisper-api models pull {missing}")
    except Exception as error:
        return failure(name, error)
    if isinstance(found, Check):
        return Check(name, found.state, found.detail, found.remedy)
    return Check(name, "ok", f"{found}, {time.perf_counter() - begun:.1f} s")
