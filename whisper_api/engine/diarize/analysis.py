"""The open models of a diarization: segmentation of speech, and embeddings of short spans of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whisper_api.engine.context import JobContext
from whisper_api.engine.diarize.activity import (
    SpeakerActivity,
    SpeakerSpans,
    frame_speakers,
    turns_of,
    window_starts,
    without_overlap,
)
from whisper_api.engine.diarize.clustering import ClusteringOptions, SpeakerBounds, find_speakers
from whisper_api.engine.diarize.embedding import DIMENSION, HOP, EmbedSpans
from whisper_api.engine.diarize.open_models import CAMPPLUS, OpenModels, Voiceprint, open_models
from whisper_api.engine.diarize.segmentation import (
    FRAME_STEP,
    LOCAL_SPEAKERS,
    SegmentWindows,
    frame_count,
    whole_window,
)
from whisper_api.engine.worker.device import Device, has_bfloat16
from whisper_api.errors import ModelUnavailable
from whisper_api.schema import SAMPLE_RATE, Turn

Floats = npt.NDArray[np.float32]

# Seconds of a window, as each segmentation model was trained, and between windows. Smaller steps double the work for
# 0.01 less error.
WINDOWS = {"segmentation-3.0": (10.0, 2.0), "segmentation": (5.0, 1.0)}
# Spans that are clustered: length, step and least speech. 1.5 to 3 seconds gave nearly the same.
SPAN_SECONDS = 2.0
SPAN_STEP = 0.5
MIN_SPAN_SECONDS = 0.3
# Moments, the shorter spans that give each frame its speaker: a longer one blurs where the speaker changes.
MOMENT_SECONDS = 0.4
MOMENT_STEP = 0.25
MIN_MOMENT_SECONDS = 0.25

# One pass of the embedding's trunk: seconds of audio, and seconds of context on both sides.
CHUNK = 20.0
MARGIN = 2.0
# The mean of the features is taken over at most this many windows, spread over the recording.
_MEAN_WINDOWS = 60
_SEGMENTATION_SHARE = 0.35
# Moments whose similarities are computed at a time.
_ROWS = 1 << 14


@dataclass(frozen=True)
class Analysis:
    """Output of the open models for a recording.

    Attributes:
        activity: probabilities of speech.
        spans: spans of one speaker each, long enough to find the speakers.
        embeddings: (spans, 192), each of length 1.
        moments: shorter spans, which show where the speaker changes.
        moment_embeddings: (moments, 192), each of length 1, in float16, because hours have hundreds of thousands.
        voiceprint: the kind of embedding.
        revision: of the files of the embedding network.
    """

    activity: SpeakerActivity
    spans: SpeakerSpans
    embeddings: Floats
    moments: SpeakerSpans
    moment_embeddings: npt.NDArray[np.float16]
    voiceprint: Voiceprint = CAMPPLUS
    revision: str | None = None

    def speakers(
        self, bounds: SpeakerBounds, options: ClusteringOptions | None = None, check: Callable[[], None] = lambda: None
    ) -> npt.NDArray[np.float64]:
        """Centroids of the speakers, shape (speakers, 192); none when nobody speaks long enough for an embedding.

        Args:
            bounds: bounds of the number of speakers.
            options: other thresholds than those of the embedding.
            check: raises when the job was canceled.
        """
        if len(self.embeddings) == 0:
            return np.zeros((0, DIMENSION))
        chosen = options or self.voiceprint.clustering
        fewest = max(bounds.minimum, min(self.activity.local_speaker_count, bounds.maximum))
        bounds = SpeakerBounds(fewest, bounds.maximum)
        return find_speakers(self.embeddings, self.spans.times, self.spans.seconds, bounds, chosen, check)

    def turns(self, centroids: npt.NDArray[np.float64], *, two_voices: bool = True, overlap: bool = True) -> list[Turn]:
        """The turns of these speakers; without centroids, all speech is one speaker's.

        Args:
            centroids: from :meth:`speakers`.
            two_voices: whether overlapping speech may add a second speaker to the only one that was found.
            overlap: whether overlapping speech has two speakers; else it has the one who goes on.
        """
        if len(centroids):
            spans, embeddings = self.moments, self.moment_embeddings
            if len(embeddings) == 0:
                spans, embeddings = self.spans, self.embeddings.astype(np.float16)
            blocks = range(0, len(embeddings), _ROWS)
            similarity = np.concatenate([embeddings[row : row + _ROWS] @ centroids.T for row in blocks])
            speakers = frame_speakers(self.activity, spans, similarity, two_voices=two_voices)
            speakers = speakers if overlap else without_overlap(speakers)
        else:
            speakers = np.where(self.activity.speech, 0, -1).astype(np.int32)[:, None]
        return [Turn(start, end, speaker_label(number)) for start, end, number in turns_of(self.activity, speakers)]


def analyze(ctx: JobContext, audio: Floats) -> Analysis:
    """Run the open models.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: a model cannot be used.
    """
    with _segmented(ctx, audio) as (models, activity, embedding):
        spans = activity.spans(SPAN_SECONDS, SPAN_STEP, MIN_SPAN_SECONDS)
        moments = activity.spans(MOMENT_SECONDS, MOMENT_STEP, MIN_MOMENT_SECONDS)
        embedded = _embed(ctx, audio, embedding, activity, spans, moments)
        return Analysis(activity, spans, embedded[0], moments, embedded[1], models.voiceprint, models.revision)


def embed_one_voice(ctx: JobContext, audio: Floats) -> tuple[Floats, float] | None:
    """The embedding of a recording of one person, and its seconds of speech; None when nobody speaks.

    All of the speech is one span, as the networks were trained: the mean of embeddings of short spans resembles those
    of the same person less.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: a model cannot be used.
    """
    with _segmented(ctx, audio) as (_, activity, embedding):
        speech = activity.speech_features()
        if not speech.any():
            return None
        # Frames without speech are no context either.
        stretches = np.where(speech > 0, 0, -1).astype(np.int64)
        operation = _embedding_operation(ctx, embedding)
        inputs = (audio, _feature_mean(audio, speech, embedding), stretches, [np.flatnonzero(speech)])
        (vectors,) = ctx.run([(operation, inputs, len(audio) / SAMPLE_RATE)])
    return vectors[0], float(activity.speech.sum()) * FRAME_STEP


@contextlib.contextmanager
def _segmented(ctx: JobContext, audio: Floats) -> Iterator[tuple[OpenModels, SpeakerActivity, Any]]:
    """The open models, what the segmentation hears, and the embedding network."""
    with contextlib.ExitStack() as stack:
        models = open_models(ctx)
        *networks, embedding = (stack.enter_context(ctx.lease(source)) for source in models.sources)
        yield models, _segment(ctx, audio, dict(zip(models.segmentation, networks, strict=True))), embedding


def speaker_label(number: int) -> str:
    """The label of a speaker without a name, by its number from 0 on."""
    return f"SPEAKER_{number:02d}"


def embedding_dtype(device: Device) -> str:
    """Number format of the embeddings: half precision, where the device has it, finds the same speakers.

    The segmentation stays in float32, because rounding there can turn two similar voices into three.
    """
    if has_bfloat16(device):
        return "bfloat16"
    return "float16" if device.kind == "cuda" else "float32"


def _segment(ctx: JobContext, audio: Floats, models: dict[str, Any]) -> SpeakerActivity:
    """The activity by the first model, with the activity by the second model in ``second``."""
    starts = {name: window_starts(len(audio), *WINDOWS[name]) for name in models}
    total, done = sum(map(len, starts.values())), 0
    activity: SpeakerActivity | None = None
    for name, model in reversed(models.items()):
        length = WINDOWS[name][0]
        size = round(length * SAMPLE_RATE)
        operation = SegmentWindows(model, ctx.device.torch_name)
        windows = (audio[start : start + size] for start in starts[name])
        items = ((operation, whole_window(window, size), length) for window in windows)
        # One array for all windows: small results that stay among large temporary arrays would fragment the heap.
        probabilities = np.empty((len(starts[name]), frame_count(size), LOCAL_SPEAKERS), dtype=np.float16)
        for number, result in enumerate(ctx.run(items, window=2 * operation.max_items)):
            probabilities[number] = result
            done += 1
            ctx.progress(_SEGMENTATION_SHARE * done / total)
        activity = SpeakerActivity(probabilities, starts[name], len(audio), length, activity)
    if activity is None:
        raise ModelUnavailable("there is no segmentation model")
    return activity


def _embed(
    ctx: JobContext, audio: Floats, model: Any, activity: SpeakerActivity, spans: SpeakerSpans, moments: SpeakerSpans
) -> tuple[Floats, npt.NDArray[np.float16]]:
    """Embeddings of the spans, shape (spans, 192), and of the moments, (moments, 192)."""
    embeddings = np.empty((len(spans.times), DIMENSION), dtype=np.float32)
    of_moments = np.empty((len(moments.times), DIMENSION), dtype=np.float16)
    if len(embeddings) == 0:
        return embeddings, of_moments[:0]
    operation = _embedding_operation(ctx, model)
    mean = _feature_mean(audio, activity.speech_features(), model)
    inputs = _embedding_inputs(audio, activity.stretches(), mean, spans, moments)
    done, moments_done = 0, 0
    chunk_of, chunk_of_moment = _chunks(spans), _chunks(moments)
    chunks = np.union1d(chunk_of, chunk_of_moment)
    results = ctx.run(((operation, value, CHUNK) for value in inputs), window=4)
    for number, result in zip(chunks, results, strict=True):
        count = int((chunk_of == number).sum())
        embeddings[done : done + count] = result[:count]
        of_moments[moments_done : moments_done + len(result) - count] = result[count:]
        done, moments_done = done + count, moments_done + len(result) - count
        ctx.progress(_SEGMENTATION_SHARE + (1 - _SEGMENTATION_SHARE) * done / len(embeddings))
    return embeddings, of_moments


def _embedding_operation(ctx: JobContext, model: Any) -> EmbedSpans:
    return EmbedSpans(model, ctx.device.torch_name, embedding_dtype(ctx.device) != "float32")


def _feature_mean(audio: Floats, speech: Floats, model: Any) -> Floats:
    """Mean of the features over speech, shape (80,)."""
    import torch

    size = 5 * SAMPLE_RATE
    starts = range(0, max(1, len(audio)), size)
    total, weight = np.zeros(80, dtype=np.float64), 0.0
    for start in starts[:: math.ceil(len(starts) / _MEAN_WINDOWS)]:
        frames = speech[start // HOP : (start + size) // HOP]
        if frames.any():
            energies = model.features(torch.from_numpy(audio[start : start + size])[None])[0].numpy()[:, : len(frames)]
            total += energies @ frames[: energies.shape[1]]
            weight += float(frames[: energies.shape[1]].sum())
    return (total / max(weight, 1.0)).astype(np.float32)


def _chunks(spans: SpeakerSpans) -> npt.NDArray[np.int64]:
    """(spans,) number of the chunk of audio that the centre of each span lies in."""
    return np.asarray(np.round(spans.times * 100).astype(np.int64) // round(CHUNK * 100))


def _embedding_inputs(
    audio: Floats, stretches: npt.NDArray[np.int64], mean: Floats, spans: SpeakerSpans, moments: SpeakerSpans
) -> Iterator[tuple[Floats, Floats, npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]]:
    """Inputs of :class:`EmbedSpans`: for each chunk of audio the spans that lie in it, then the moments."""
    chunk, margin = round(CHUNK * 100), round(MARGIN * 100)
    parts = [(each, _chunks(each)) for each in (spans, moments)]
    for number in np.union1d(parts[0][1], parts[1][1]):
        first = max(0, int(number) * chunk - margin)
        last = min(len(stretches), int(number + 1) * chunk + margin)
        members = [
            part.frames_of(int(index)) - first for part, chunks in parts for index in np.flatnonzero(chunks == number)
        ]
        members = [frames[frames < last - first] for frames in members]
        # A voice is embedded in the context of itself: of the spans, without pauses and overlap.
        context = np.full(last - first, -1, dtype=np.int64)
        for frames in members:
            context[frames] = stretches[first + frames]
        yield audio[first * HOP : (last - 1) * HOP], mean, context, members
