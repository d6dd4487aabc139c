"""Diarization: who speaks when.

pyannote's community-1 pipeline is used where it can be had (it needs an account). Otherwise open models are: two
segmentation models find speech, overlap and changes of speaker; CAM++ embeds spans of up to two seconds; the spans are
clustered into speakers; each frame of speech goes to the speaker that its spans resemble most. The local speakers of
the segmentation are only used within a span, because a whole window often mixes two similar voices; in a recording of
one window, their number is also the least number of speakers.
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
from whisper_api.engine.diarize.open_models import CAMPPLUS, ECAPA, VoiceModel, Voiceprint, open_models
from whisper_api.engine.diarize.segmentation import LOCAL_SPEAKERS, SegmentWindows, frame_count
from whisper_api.engine.worker.device import has_bfloat16
from whisper_api.errors import ModelUnavailable
from whisper_api.schema import SAMPLE_RATE, Turn

if TYPE_CHECKING:
    from whisper_api.engine.context import JobContext
    from whisper_api.engine.diarize.community import CommunitySource
    from whisper_api.engine.models.store import LocalModel
    from whisper_api.engine.worker.device import Device
    from whisper_api.schema import TranscriptionOptions

__all__ = [
    "COMMUNITY",
    "SAME_PERSON",
    "Analysis",
    "Diarization",
    "Turn",
    "analyze",
    "bounds_of",
    "community_model",
    "community_source",
    "diarize",
    "unit",
]

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

COMMUNITY = "community-1"
# As with ECAPA-TDNN; not measured, since the pipeline needs an account.
SAME_PERSON = ECAPA.same_person

# Seconds of a window, as each segmentation model was trained, and between windows. Smaller steps double the work for
# 0.01 less error.
WINDOWS = {"segmentation-3.0": (10.0, 2.0), "segmentation": (5.0, 1.0)}
# The longest span; 1.5 to 3 gave nearly the same.
SPAN_SECONDS = 2.0
SPAN_STEP = 0.5
MIN_SPAN_SECONDS = 0.3

# One pass of the embedding's trunk: seconds of audio, and seconds of context on both sides.
CHUNK = 20.0
MARGIN = 2.0
# The mean of the features is taken over at most this many windows, spread over the recording.
_MEAN_WINDOWS = 60
_SEGMENTATION_SHARE = 0.35


@dataclass(frozen=True)
class Diarization:
    """The turns of the speakers, and a voice vector for each.

    Attributes:
        turns: in order of time; turns of different speakers may overlap. Labels are ``SPEAKER_00``, ``SPEAKER_01`` ...
            in order of first appearance.
        embeddings: label to a vector of length 1, shape (dimension,).
        model: name of the models, for people.
        word_turns: turns that do not overlap, because a word gets one speaker; as ``turns`` otherwise.
        voice_model: the model of the embeddings.
        scores: name of each recognised speaker to the similarity with the known voice; None if none was looked for.
    """

    turns: tuple[Turn, ...]
    embeddings: dict[str, Floats]
    model: str
    word_turns: tuple[Turn, ...]
    voice_model: VoiceModel
    scores: dict[str, float] | None = None


def diarize(ctx: JobContext, audio: Floats) -> Diarization:
    """Tell the speakers of a recording apart.

    Args:
        ctx: the job. Its options bound the number of speakers; a number that is not reached becomes a warning.
        audio: shape (samples,), mono, 16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: no diarization model can be used.
        Canceled: the caller canceled.
    """
    audio = np.ascontiguousarray(audio, dtype=np.float32)
    result = _community_diarization(ctx, audio) or _open_diarization(ctx, audio)
    if result.turns:
        _warn_of_count(ctx, len({turn.speaker for turn in result.turns}))
    ctx.progress(1.0)
    return result


def embedding_dtype(device: Device) -> str:
    """Number format of the embeddings: half precision, where the device has it, finds the same speakers.

    The segmentation stays in float32, because rounding there can turn two similar voices into three.
    """
    if has_bfloat16(device):
        return "bfloat16"
    return "float16" if device.kind == "cuda" else "float32"


def bounds_of(options: TranscriptionOptions) -> SpeakerBounds:
    """How many speakers the options allow."""
    minimum = options.num_speakers or options.min_speakers or 1
    maximum = options.num_speakers or options.max_speakers or SpeakerBounds().maximum
    return SpeakerBounds(minimum, max(minimum, maximum))


def _warn_of_count(ctx: JobContext, found: int) -> None:
    bounds = bounds_of(ctx.options)
    if bounds.minimum <= found <= bounds.maximum:
        return
    if bounds.minimum == bounds.maximum:
        wanted = str(bounds.minimum)
    elif bounds.maximum == SpeakerBounds().maximum:
        wanted = f"at least {bounds.minimum}"
    else:
        wanted = f"{bounds.minimum} to {bounds.maximum}"
    ctx.warn(f"{wanted} speakers were asked for, {found} could be told apart")


# --- pyannote's pipeline ------------------------------------------------------------------------------------------


def _community_diarization(ctx: JobContext, audio: Floats) -> Diarization | None:
    """None when the pipeline is not installed and there is no token to fetch it with, or when it fails."""
    from whisper_api.engine.diarize.community import run_pipeline

    try:
        model = community_model(ctx)
        if model is None:
            return None
        with ctx.lease(community_source(ctx, model)) as pipeline:
            output = run_pipeline(ctx, audio, pipeline)
    except Exception as error:
        if ctx.is_fatal(error):
            raise
        # The pipeline has errors of its own (fewer windows than speakers, say); the open models still work.
        log.warning("%s cannot be used: %s", COMMUNITY, error)
        # Without the text of the error, which may hold paths of this machine: transcripts are shared.
        ctx.warn(f"the speakers were told apart with open models, because {COMMUNITY} cannot be used; the log says why")
        return None
    labels = output.speaker_diarization.labels()
    # A word gets one speaker, so turns that do not overlap fit better.
    turns, word_turns = (
        [Turn(float(turn.start), float(turn.end), str(label)) for turn, _, label in each.itertracks(yield_label=True)]
        for each in (output.speaker_diarization, output.exclusive_speaker_diarization)
    )
    vectors = {} if output.speaker_embeddings is None else dict(zip(labels, output.speaker_embeddings, strict=False))
    voice_model = VoiceModel(COMMUNITY, model.revision, SAME_PERSON)
    return _in_time_order(turns, vectors, f"pyannote {COMMUNITY}", voice_model, word_turns=word_turns)


def community_model(ctx: JobContext) -> LocalModel | None:
    """The files of pyannote's pipeline; None when they are not installed and there is no token to fetch them with.

    Raises:
        ModelUnavailable: there is a token, and the files cannot be fetched.
    """
    model = ctx.store.find(COMMUNITY)
    return ctx.fetch_model(COMMUNITY) if model is None and _has_token(ctx) else model


def community_source(ctx: JobContext, model: LocalModel) -> CommunitySource:
    """The source that loads pyannote's pipeline."""
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
    """Output of the open models for a recording.

    Attributes:
        activity: probabilities of speech.
        spans: short spans of one speaker each.
        embeddings: (spans, 192), each of length 1.
        voiceprint: the kind of embedding.
        revision: of the files of the embedding network.
    """

    activity: SpeakerActivity
    spans: SpeakerSpans
    embeddings: Floats
    voiceprint: Voiceprint = CAMPPLUS
    revision: str | None = None

    def speakers(
        self,
        bounds: SpeakerBounds,
        options: ClusteringOptions | None = None,
        check: Callable[[], None] = lambda: None,
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
            similarity = np.asarray(self.embeddings @ centroids.T, dtype=np.float64)
            speakers = frame_speakers(self.activity, self.spans, similarity, two_voices=two_voices)
            speakers = speakers if overlap else without_overlap(speakers)
        else:
            speakers = np.where(self.activity.speech, 0, -1).astype(np.int32)[:, None]
        return [Turn(start, end, _label(number)) for start, end, number in turns_of(self.activity, speakers)]


def analyze(ctx: JobContext, audio: Floats) -> Analysis:
    """Run the open models.

    Args:
        ctx: the job.
        audio: shape (samples,), mono, 16 kHz.

    Raises:
        ModelUnavailable, ModelCorrupt: a model cannot be used.
    """
    with contextlib.ExitStack() as stack:
        models = open_models(ctx)
        *networks, embedding = (stack.enter_context(ctx.lease(source)) for source in models.sources)
        activity = _segment(ctx, audio, dict(zip(models.segmentation, networks, strict=True)))
        spans = activity.spans(SPAN_SECONDS, SPAN_STEP, MIN_SPAN_SECONDS)
        embeddings = _embed(ctx, audio, embedding, activity, spans)
        return Analysis(activity, spans, embeddings, models.voiceprint, models.revision)


def _open_diarization(ctx: JobContext, audio: Floats) -> Diarization:
    analysis = analyze(ctx, audio)
    bounds = bounds_of(ctx.options)
    centroids = analysis.speakers(bounds, check=ctx.check)
    ctx.check()
    vectors = {_label(number): row for number, row in enumerate(centroids)}
    return _in_time_order(
        analysis.turns(centroids, two_voices=bounds.maximum > 1),
        vectors,
        f"pyannote segmentation, {analysis.voiceprint.name}",
        VoiceModel(analysis.voiceprint.model, analysis.revision, analysis.voiceprint.same_person),
        word_turns=analysis.turns(centroids, overlap=False),
    )


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
        items = ((operation, np.pad(window, (0, size - len(window))), length) for window in windows)
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


def _embed(ctx: JobContext, audio: Floats, model: Any, activity: SpeakerActivity, spans: SpeakerSpans) -> Floats:
    """Embeddings of the spans, shape (spans, 192)."""
    embeddings = np.empty((len(spans.times), DIMENSION), dtype=np.float32)
    if len(embeddings) == 0:
        return embeddings
    operation = EmbedSpans(model, ctx.device.torch_name, embedding_dtype(ctx.device) != "float32")
    speech = activity.speech_features()
    inputs = _embedding_inputs(audio, speech, _feature_mean(audio, speech, model), spans)
    done = 0
    for result in ctx.run(((operation, value, CHUNK) for value in inputs), window=4):
        embeddings[done : done + len(result)] = result
        done += len(result)
        ctx.progress(_SEGMENTATION_SHARE + (1 - _SEGMENTATION_SHARE) * done / len(embeddings))
    return embeddings


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


def _embedding_inputs(
    audio: Floats, speech: Floats, mean: Floats, spans: SpeakerSpans
) -> Iterator[tuple[Floats, Floats, Floats, list[npt.NDArray[np.int64]]]]:
    """Inputs of :class:`EmbedSpans`: the spans in order, grouped by the chunk of audio that they lie in."""
    chunk, margin = round(CHUNK * 100), round(MARGIN * 100)
    chunk_of = np.round(spans.times * 100).astype(np.int64) // chunk
    for number in np.unique(chunk_of):
        first = max(0, int(number) * chunk - margin)
        last = min(len(speech), int(number + 1) * chunk + margin)
        members = [spans.frames_of(int(index)) - first for index in np.flatnonzero(chunk_of == number)]
        members = [frames[frames < last - first] for frames in members]
        context = speech[first:last].copy()
        for frames in members:
            context[frames] = 1.0
        yield audio[first * HOP : (last - 1) * HOP], mean, context, members


def _label(number: int) -> str:
    return f"SPEAKER_{number:02d}"


def unit(vector: Floats) -> Floats:
    """The vector with length 1."""
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def _in_time_order(
    turns: list[Turn],
    vectors: dict[str, Any],
    model: str,
    voice_model: VoiceModel,
    *,
    word_turns: list[Turn] | None = None,
) -> Diarization:
    """Sort turns by time, and number the speakers by their first appearance."""
    names: dict[str, str] = {}

    def sorted_and_renamed(given: list[Turn]) -> tuple[Turn, ...]:
        ordered = sorted(given, key=lambda turn: (turn.start, turn.end))
        return tuple(Turn(turn.start, turn.end, names.setdefault(turn.speaker, _label(len(names)))) for turn in ordered)

    renamed = sorted_and_renamed(turns)
    of_words = renamed if word_turns is None else sorted_and_renamed(word_turns)
    embeddings = {name: unit(vectors[old]) for old, name in names.items() if old in vectors}
    return Diarization(renamed, embeddings, model, of_words, voice_model)
