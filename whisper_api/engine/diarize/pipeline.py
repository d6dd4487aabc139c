"""Diarization: who speaks when.

With pyannote's community-1 pipeline where it can be had (it needs an account), else with open models: the segmentation
that whisperx brings along says where speech, overlap and changes of speaker are, ECAPA-TDNN embeds spans of up to two
seconds, the spans are clustered into voices, and each frame of speech goes to the voice that its spans resemble most.
The segmentation's own idea of who speaks is not trusted beyond a span: it takes two voices that resemble each other for
one over a whole window.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whisper_api.engine.diarize.activity import WINDOW, Activity, Spans, turns_of, who_speaks, window_starts
from whisper_api.engine.diarize.assignment import Turn
from whisper_api.engine.diarize.clustering import Bounds, ClusteringOptions, Voices, find_voices
from whisper_api.engine.diarize.ecapa import DIMENSION, EcapaSource, EmbedSpans, features
from whisper_api.engine.diarize.segmentation import SegmentationSource, SegmentWindows
from whisper_api.engine.worker.device import has_bfloat16
from whisper_api.schema import SAMPLE_RATE

if TYPE_CHECKING:
    from whisper_api.engine.context import JobContext
    from whisper_api.engine.diarize.community import CommunitySource
    from whisper_api.engine.models.store import LocalModel
    from whisper_api.engine.worker.device import Device
    from whisper_api.schema import TranscriptionOptions

__all__ = ["Analysis", "Diarization", "Turn", "analyze", "bounds_of", "diarize", "open_sources", "voice_of"]

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

COMMUNITY = "community-1"

SPAN = 2.0
"""Seconds of a span at most. 1.5 to 3 gave nearly the same."""
SPAN_STEP = 0.5
SPAN_LEAST = 0.3

CLUSTERING = ClusteringOptions()

# One pass of the embedding's trunk: this much audio, and that much more on both sides, seconds.
CHUNK = 20.0
MARGIN = 2.0
# The features' mean is taken over at most so many windows, spread over the recording.
_MEAN_WINDOWS = 60
_SEGMENTATION_SHARE = 0.35


@dataclass(frozen=True)
class Diarization:
    """Who speaks when.

    Attributes:
        turns: in order of time; those of different speakers may overlap. Labels are ``SPEAKER_00``, ``SPEAKER_01`` ...
            in order of first appearance.
        embeddings: label to a vector of length 1, shape (dimension,).
        model: what it was done with, for people.
        community: whether that was pyannote's pipeline.
    """

    turns: tuple[Turn, ...]
    embeddings: dict[str, npt.NDArray[np.float32]]
    model: str
    community: bool = False


def diarize(ctx: JobContext, audio: Floats) -> Diarization:
    """Tell the speakers of a recording apart.

    Args:
        ctx: the job: its options bound the number of speakers; what could not be done as asked becomes a warning of it.
        audio: shape (samples,), mono, 16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: no diarization model can be used.
        Canceled: the caller canceled.
    """
    audio = np.ascontiguousarray(audio, dtype=np.float32)
    result = _community(ctx, audio) or _open(ctx, audio)
    found = len({turn.speaker for turn in result.turns})
    if result.turns:
        _warn_of_count(ctx, found)
    ctx.progress(1.0)
    return result


def voice_of(ctx: JobContext, audio: Floats, *, community: bool) -> Floats | None:
    """The embedding of the one person who speaks in a recording.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.
        community: whether to embed as pyannote's pipeline does, which must be here then; else as the open models do.

    Returns:
        A vector of length 1 that those of a :class:`Diarization` made the same way can be held against; None when
        nobody speaks.

    Raises:
        ModelUnavailable, ModelCorrupt: the model cannot be used.
    """
    audio = np.ascontiguousarray(audio, dtype=np.float32)
    if community:
        from whisper_api.engine.diarize.community import run_pipeline

        with ctx.lease(_community_source(ctx, ctx.fetch_model(COMMUNITY))) as pipeline:
            vectors = run_pipeline(ctx, audio, pipeline, alone=True).speaker_embeddings
        vector = None if vectors is None or len(vectors) == 0 else np.asarray(vectors[0], np.float32)
    else:
        analysis = analyze(ctx, audio)
        vector = analysis.spans.seconds.astype(np.float32) @ analysis.embeddings if len(analysis.embeddings) else None
    return _unit(vector) if vector is not None and vector.any() else None


def embedding_dtype(device: Device) -> str:
    """What the embeddings are computed in; the speakers found are the same in half precision.

    The segmentation stays in float32: its rounding is enough to turn two alike voices into three.
    """
    if has_bfloat16(device):
        return "bfloat16"
    return "float16" if device.kind == "cuda" else "float32"


def bounds_of(options: TranscriptionOptions) -> Bounds:
    """How many speakers there may be."""
    least = options.num_speakers or options.min_speakers or 1
    most = options.num_speakers or options.max_speakers or Bounds().most
    return Bounds(least, max(least, most))


def _warn_of_count(ctx: JobContext, found: int) -> None:
    bounds = bounds_of(ctx.options)
    if not bounds.least <= found <= bounds.most:
        wanted = str(bounds.least) if bounds.exact else f"{bounds.least} to {bounds.most}"
        wanted = f"at least {bounds.least}" if bounds.most == Bounds().most else wanted
        ctx.warn(f"{wanted} speakers were asked for, {found} could be told apart")


# --- pyannote's pipeline ------------------------------------------------------------------------------------------


def _community(ctx: JobContext, audio: Floats) -> Diarization | None:
    """None where that pipeline is neither here nor to be had with a token, or fails."""
    from whisper_api.engine.diarize.community import run_pipeline

    model = ctx.store.find(COMMUNITY)
    try:
        if model is None:
            if not _has_token(ctx):
                return None
            model = ctx.fetch_model(COMMUNITY)
        with ctx.lease(_community_source(ctx, model)) as pipeline:
            output = run_pipeline(ctx, audio, pipeline)
    except Exception as error:
        if ctx.is_fatal(error):
            raise
        # Whatever goes wrong in there (it asks for more speakers than it has windows, say), the open models still work.
        log.warning("%s cannot be used: %s", COMMUNITY, error)
        # Without the error's text: a transcript may go to people who have no business with the machine's paths.
        ctx.warn(f"the speakers were told apart with open models, because {COMMUNITY} cannot be used; the log says why")
        return None
    # Words are given to one speaker each, so turns that exclude each other serve them better.
    labels = output.speaker_diarization.labels()
    tracks = output.exclusive_speaker_diarization.itertracks(yield_label=True)
    turns = [Turn(float(turn.start), float(turn.end), str(label)) for turn, _, label in tracks]
    vectors = {} if output.speaker_embeddings is None else dict(zip(labels, output.speaker_embeddings, strict=False))
    return _in_order(turns, vectors, f"pyannote {COMMUNITY}", community=True)


def _community_source(ctx: JobContext, model: LocalModel) -> CommunitySource:
    from whisper_api.engine.diarize.community import CommunitySource

    return CommunitySource(str(model.path), ctx.device.torch_name, embedding_dtype(ctx.device))


def _has_token(ctx: JobContext) -> bool:
    if ctx.hf_token:
        return True
    from huggingface_hub import get_token

    return bool(get_token())


# --- open models --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Analysis:
    """What the open models gave for a recording.

    Attributes:
        activity: where speech is.
        spans: stretches of one speaker each.
        embeddings: (spans, 192), each of length 1.
    """

    activity: Activity
    spans: Spans
    embeddings: Floats

    def voices(
        self, bounds: Bounds, options: ClusteringOptions = CLUSTERING, check: Callable[[], None] = lambda: None
    ) -> Voices | None:
        """Who speaks; None when nobody speaks long enough to say. ``check`` is called now and then and may end it."""
        if len(self.embeddings) == 0:
            return None
        return find_voices(self.embeddings, self.spans.times, self.spans.seconds, bounds, options, check)

    def turns(self, voices: Voices | None) -> list[Turn]:
        """Who speaks when."""
        who = self.activity.speech[:, None]
        if voices is not None:
            who = who_speaks(self.activity, self.spans, voices.similarities(self.embeddings))
        return [Turn(start, end, _label(voice)) for start, end, voice in turns_of(self.activity, who)]


def analyze(ctx: JobContext, audio: Floats) -> Analysis:
    """Run the open models.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: one of them cannot be used.
    """
    with contextlib.ExitStack() as stack:
        segmentation, ecapa = (stack.enter_context(ctx.lease(source)) for source in open_sources(ctx))
        activity = _segment(ctx, audio, segmentation)
        spans = activity.spans(SPAN, SPAN_STEP, SPAN_LEAST)
        return Analysis(activity, spans, _embed(ctx, audio, ecapa, activity, spans))


def open_sources(ctx: JobContext) -> tuple[SegmentationSource, EcapaSource]:
    """The open models, fetched when they are not here: segmentation and embedding.

    Raises:
        ModelUnavailable: one of them cannot be had.
    """
    device = ctx.device.torch_name
    return (
        SegmentationSource(str(ctx.fetch_model("segmentation").path), device),
        EcapaSource(str(ctx.fetch_model("ecapa").path), device),
    )


def _open(ctx: JobContext, audio: Floats) -> Diarization:
    analysis = analyze(ctx, audio)
    voices = analysis.voices(bounds_of(ctx.options), check=ctx.check)
    ctx.check()
    turns = analysis.turns(voices)
    vectors = {} if voices is None else {_label(number): row for number, row in enumerate(voices.centroids)}
    return _in_order(turns, vectors, "pyannote segmentation 2, ECAPA-TDNN")


def _segment(ctx: JobContext, audio: Floats, model: Any) -> Activity:
    size = round(WINDOW * SAMPLE_RATE)
    starts = window_starts(len(audio))
    operation = SegmentWindows(model, ctx.device.torch_name)
    windows = (audio[start : start + size] for start in starts)
    items = ((operation, np.pad(window, (0, size - len(window))), WINDOW) for window in windows)
    results: list[npt.NDArray[np.float16]] = []
    for result in ctx.run(items, window=2 * operation.max_items):
        results.append(result)
        ctx.progress(_SEGMENTATION_SHARE * len(results) / len(starts))
    return Activity(np.stack(results), starts, len(audio))


def _embed(ctx: JobContext, audio: Floats, model: Any, activity: Activity, spans: Spans) -> Floats:
    """(spans, 192)."""
    if len(spans.times) == 0:
        return np.zeros((0, DIMENSION), dtype=np.float32)
    operation = EmbedSpans(model, ctx.device.torch_name, embedding_dtype(ctx.device) != "float32")
    speech = activity.speech_features()
    stretches = _stretches(audio, speech, _feature_mean(audio, speech), spans)
    results: list[Floats] = []
    for result in ctx.run(((operation, value, CHUNK) for value in stretches), window=4):
        results.append(result)
        done = sum(map(len, results)) / len(spans.times)
        ctx.progress(_SEGMENTATION_SHARE + (1 - _SEGMENTATION_SHARE) * done)
    return np.concatenate(results)


def _feature_mean(audio: Floats, speech: Floats) -> Floats:
    """(80,) mean of the features over speech."""
    import torch

    starts = range(0, max(1, len(audio)), round(WINDOW * SAMPLE_RATE))
    starts = starts[:: math.ceil(len(starts) / _MEAN_WINDOWS)]
    total, weight = np.zeros(80, dtype=np.float64), 0.0
    for start in starts:
        frames = speech[start // 160 : (start + round(WINDOW * SAMPLE_RATE)) // 160]
        if frames.any():
            window = torch.from_numpy(audio[start : start + round(WINDOW * SAMPLE_RATE)])
            energies = features(window[None])[0].numpy()[:, : len(frames)]
            total += energies @ frames[: energies.shape[1]]
            weight += float(frames[: energies.shape[1]].sum())
    return (total / max(weight, 1.0)).astype(np.float32)


def _stretches(
    audio: Floats, speech: Floats, mean: Floats, spans: Spans
) -> Iterator[tuple[Floats, Floats, Floats, list[npt.NDArray[np.int64]]]]:
    """The inputs of :class:`EmbedSpans`, which together hold all spans in order."""
    chunk, margin = round(CHUNK * 100), round(MARGIN * 100)
    owner = np.round(spans.times * 100).astype(np.int64) // chunk
    for number in np.unique(owner):
        first = max(0, int(number) * chunk - margin)
        last = min(len(speech), int(number + 1) * chunk + margin)
        members = [spans.frames_of(int(index)) - first for index in np.flatnonzero(owner == number)]
        members = [frames[frames < last - first] for frames in members]
        context = speech[first:last].copy()
        for frames in members:
            context[frames] = 1.0
        waveform = audio[first * 160 : (last - 1) * 160]
        yield waveform, mean, context, members


def _label(number: int) -> str:
    return f"SPEAKER_{number:02d}"


def _unit(vector: Floats) -> Floats:
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def _in_order(turns: list[Turn], vectors: dict[str, Any], model: str, *, community: bool = False) -> Diarization:
    """Turns by time, speakers renamed in order of first appearance."""
    turns = sorted(turns, key=lambda turn: (turn.start, turn.end))
    names: dict[str, str] = {}
    for turn in turns:
        names.setdefault(turn.speaker, _label(len(names)))
    embeddings = {name: _unit(vectors[old]) for old, name in names.items() if old in vectors}
    renamed = tuple(Turn(turn.start, turn.end, names[turn.speaker]) for turn in turns)
    return Diarization(renamed, embeddings, model, community)
