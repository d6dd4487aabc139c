"""Which open models tell speakers apart: the preferred ones, and those of earlier versions where they cannot be had."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from whisper_api.engine.context import JobContext
from whisper_api.engine.diarize.campplus import CampplusSource
from whisper_api.engine.diarize.clustering import ClusteringOptions
from whisper_api.engine.diarize.ecapa import EcapaSource
from whisper_api.engine.diarize.segmentation import CheckpointSource, SegmentationSource
from whisper_api.errors import ModelUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Voiceprint:
    """A kind of embedding, and the numbers that fit its similarities.

    Attributes:
        name: of the network, for people.
        model: its name in the catalogue.
        clustering: thresholds of the clustering.
        same_person: cosine similarity from which a speaker and a recording count as the same person.
        same_person_telephone: the same where one of them is heard over a telephone; None where that was not measured.
    """

    name: str
    model: str
    clustering: ClusteringOptions
    same_person: float
    same_person_telephone: float | None = None

    def voice_model(self, revision: str | None) -> VoiceModel:
        """The model whose files have this revision."""
        return VoiceModel(self.model, revision, self.same_person, self.same_person_telephone)


# Measured on 37 voices of readings and films, enrolled from up to 10 s and compared with pieces of 1.5 to 8 s of their
# other speech and of that of 43 more readers, as recorded, in noise, and over two telephones. Of 20,000 pairs of
# different voices, none reached 0.51; of one voice, all pieces of 3 s reached 0.55, and 34 of 37 in noise. In the band
# of a telephone, 2 of 33,000 pairs of different voices reached 0.79, and up to 1 % of them 0.72; of one voice, 30 to 32
# of 33 pieces of 8 s reached 0.79, and 20 to 23 of 37 of 3 s. It is so high because a wrong name is worse than none.
CAMPPLUS = Voiceprint("CAM++", "campplus", ClusteringOptions(), 0.55, 0.79)
# Measured on meetings and a telephone call: 255 pairs of different people reached 0.41 at most; 27 pairs of one person
# were at 0.33 to 0.78 with 2 s, and at 0.65 to 0.86 with 4 s or more.
ECAPA = Voiceprint(
    "ECAPA-TDNN",
    "ecapa",
    ClusteringOptions(max_gap=0.16, small_gap=0.0, initial_distance=0.5, duplicate_similarity=0.8, min_apart_spans=4),
    0.45,
)


@dataclass(frozen=True)
class VoiceModel:
    """The model of embeddings; embeddings of different models cannot be compared.

    Attributes:
        name: name in the catalogue.
        revision: of its files; None when it is not known.
        same_person: cosine similarity from which embeddings count as those of one person.
        same_person_telephone: the same where one of them is heard over a telephone; None where that was not measured.
    """

    name: str
    revision: str | None
    same_person: float
    same_person_telephone: float | None = None


@dataclass(frozen=True)
class OpenModels:
    """The open models that a job uses.

    Attributes:
        segmentation: name in the catalogue to source; the first model tells local speakers apart.
        embedding: source of the embedding network.
        voiceprint: the kind of embedding.
        revision: of the files of the embedding network.
    """

    segmentation: dict[str, SegmentationSource]
    embedding: CheckpointSource
    voiceprint: Voiceprint
    revision: str | None = None

    @property
    def voice_model(self) -> VoiceModel:
        """The model of the embeddings."""
        return self.voiceprint.voice_model(self.revision)

    @property
    def sources(self) -> tuple[CheckpointSource, ...]:
        """All models, in the order in which they are used."""
        return (*self.segmentation.values(), self.embedding)


def open_models(ctx: JobContext) -> OpenModels:
    """The open models, fetched when they are not installed.

    Where segmentation-3.0 or CAM++ cannot be had, the models of earlier versions are used, and a warning says so.

    Raises:
        ModelUnavailable: a model cannot be fetched.
    """
    device = ctx.device.torch_name
    segmentation = {}
    try:
        segmentation["segmentation-3.0"] = SegmentationSource(str(ctx.fetch_model("segmentation-3.0").path), device)
    except ModelUnavailable as error:
        log.info("no segmentation-3.0: %s", error)
        ctx.warn(
            "overlapping speech was heard less well, because segmentation-3.0 cannot be had here; "
            "`whisper-api models pull segmentation-3.0` fetches it or says why not"
        )
    segmentation["segmentation"] = SegmentationSource(str(ctx.fetch_model("segmentation").path), device)
    try:
        campplus = ctx.fetch_model("campplus")
    except ModelUnavailable as error:
        ecapa = ctx.store.find("ecapa")
        if ecapa is None:
            raise
        log.info("no CAM++: %s", error)
        ctx.warn(
            "the speakers were told apart by ECAPA-TDNN, because the better CAM++ cannot be had here; "
            "`whisper-api models pull campplus` fetches it or says why not"
        )
        return OpenModels(segmentation, EcapaSource(str(ecapa.path), device), ECAPA, ecapa.revision)
    return OpenModels(segmentation, CampplusSource(str(campplus.path), device), CAMPPLUS, campplus.revision)
