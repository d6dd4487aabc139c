"""Diarization: who speaks when.

pyannote's community-1 pipeline is used where it can be had (it needs an account). Otherwise open models are: two
segmentation models find speech, overlap and changes of speaker; CAM++ embeds spans of up to two seconds; the spans are
clustered into speakers; each frame of speech goes to the speaker that its spans resemble most. The local speakers of
the segmentation are only used within a span, because a whole window often mixes two similar voices; in a recording of
one window, their number is also the least number of speakers.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whisper_api.engine.diarize.analysis import analyze, embedding_dtype, speaker_label
from whisper_api.engine.diarize.clustering import SpeakerBounds
from whisper_api.engine.diarize.open_models import ECAPA, VoiceModel
from whisper_api.schema import Turn

if TYPE_CHECKING:
    from whisper_api.engine.context import JobContext
    from whisper_api.engine.diarize.community import CommunitySource
    from whisper_api.engine.models.files import LocalModel
    from whisper_api.options import TranscriptionOptions

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

COMMUNITY = "community-1"
# As with ECAPA-TDNN; not measured, since the pipeline needs an account.
SAME_PERSON = ECAPA.same_person


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


def _open_diarization(ctx: JobContext, audio: Floats) -> Diarization:
    analysis = analyze(ctx, audio)
    bounds = bounds_of(ctx.options)
    centroids = analysis.speakers(bounds, check=ctx.check)
    ctx.check()
    vectors = {speaker_label(number): row for number, row in enumerate(centroids)}
    return _in_time_order(
        analysis.turns(centroids, two_voices=bounds.maximum > 1),
        vectors,
        f"pyannote segmentation, {analysis.voiceprint.name}",
        analysis.voiceprint.voice_model(analysis.revision),
        word_turns=analysis.turns(centroids, overlap=False),
    )


def unit(vector: Floats) -> Floats:
    """The vector with length 1."""
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


def _in_time_order(
    turns: list[Turn], vectors: dict[str, Any], model: str, voice_model: VoiceModel, *, word_turns: list[Turn]
) -> Diarization:
    """Sort turns by time, and number the speakers by their first appearance."""
    names: dict[str, str] = {}

    def sorted_and_renamed(given: list[Turn]) -> tuple[Turn, ...]:
        ordered = sorted(given, key=lambda turn: (turn.start, turn.end))
        return tuple(
            Turn(turn.start, turn.end, names.setdefault(turn.speaker, speaker_label(len(names)))) for turn in ordered
        )

    renamed = sorted_and_renamed(turns)
    of_words = sorted_and_renamed(word_turns)
    embeddings = {name: unit(vectors[old]) for old, name in names.items() if old in vectors}
    return Diarization(renamed, embeddings, model, of_words, voice_model)
