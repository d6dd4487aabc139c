"""Known voices: embeddings of recordings, and the speakers that a server keeps for its callers.

A voice is kept as vectors, one for each recording, with the name and revision of the model that made them. Vectors of
different models cannot be compared. The recordings are not kept.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import msgspec

from whisper_api.errors import InvalidInput, InvalidOption
from whisper_api.records import Record
from whisper_api.schema import SPEAKER_LABEL

MAX_NAME_CHARACTERS = 255


class VoiceSample(msgspec.Struct, frozen=True, kw_only=True):
    """One recording of a voice.

    Attributes:
        seconds: seconds of speech in the recording.
        vector: embedding of length 1.
        telephone_vector: embedding of the recording in the band of a telephone; empty where it was not computed.
        telephone: whether the recording was made over a telephone.
    """

    seconds: float
    vector: tuple[float, ...]
    telephone_vector: tuple[float, ...] = ()
    telephone: bool = False


class VoiceEmbedding(Record, frozen=True, kw_only=True):
    """A person's voice, as :meth:`whisper_api.Engine.enroll` returns it.

    Attributes:
        model: name of the embedding model.
        revision: revision of the model's files; None for files that somebody copied into the models directory.
        samples: the recordings, at least one.
    """

    model: str
    revision: str | None = None
    samples: tuple[VoiceSample, ...]

    @property
    def vector(self) -> tuple[float, ...]:
        """The mean of the recordings' vectors, each weighted by its seconds of speech, with length 1.

        Recordings over a telephone count only where there are no others.
        """
        samples = [sample for sample in self.samples if not sample.telephone] or self.samples
        return _mean([(sample.seconds, sample.vector) for sample in samples])

    @property
    def telephone_vector(self) -> tuple[float, ...]:
        """The mean of the recordings' vectors in the band of a telephone; empty where none was computed."""
        vectors = [(sample.seconds, sample.telephone_vector) for sample in self.samples if sample.telephone_vector]
        return _mean(vectors) if vectors else ()

    @property
    def telephone(self) -> bool:
        """Whether all recordings were made over a telephone."""
        return all(sample.telephone for sample in self.samples)

    @property
    def seconds(self) -> float:
        """Seconds of speech in all recordings."""
        return math.fsum(sample.seconds for sample in self.samples)

    def is_comparable(self, model: str, revision: str | None) -> bool:
        """Whether vectors of a model can be compared with this voice.

        Args:
            model: name of the model.
            revision: revision of its files; None is compatible with every revision.
        """
        return self.model == model and (revision == self.revision or None in (revision, self.revision))

    def joined(self, other: VoiceEmbedding) -> VoiceEmbedding:
        """The voice with the recordings of another embedding of the same person added.

        Raises:
            InvalidInput: another model made the other embedding.
        """
        if not self.is_comparable(other.model, other.revision):
            raise InvalidInput(f"voices of {self.model} and {other.model} cannot be joined: enrol the recordings again")
        return msgspec.structs.replace(
            self, revision=self.revision or other.revision, samples=(*self.samples, *other.samples)
        )

    def similarity(self, other: VoiceEmbedding) -> float:
        """Cosine similarity of two voices of the same model, from -1 to 1.

        Where one of them was recorded over a telephone, both are compared in its band.
        """
        mine, theirs = self.vector, other.vector
        if (self.telephone or other.telephone) and self.telephone_vector and other.telephone_vector:
            mine, theirs = self.telephone_vector, other.telephone_vector
        return math.fsum(one * another for one, another in zip(mine, theirs, strict=True))


def _mean(vectors: Sequence[tuple[float, tuple[float, ...]]]) -> tuple[float, ...]:
    """The mean of vectors, each with its weight, with length 1."""
    sums = [math.fsum(weight * vector[index] for weight, vector in vectors) for index in range(len(vectors[0][1]))]
    length = math.sqrt(math.fsum(value * value for value in sums)) or 1.0
    return tuple(value / length for value in sums)


class Speaker(Record, frozen=True, kw_only=True):
    """A person whose voice a server knows. The vectors stay on the server.

    Attributes:
        speaker_id: a UUID.
        name: the label of the person in transcripts.
        model, model_revision: the embedding model of the voice.
        samples: number of recordings that the voice was computed from.
        seconds: seconds of speech in them.
        created_at, updated_at: RFC 3339, UTC.
        warnings: a sentence for each doubt about the recordings that this request has sent.
    """

    speaker_id: str
    name: str
    model: str
    model_revision: str | None
    samples: int
    seconds: float
    created_at: str
    updated_at: str
    warnings: tuple[str, ...] = ()


class SpeakerList(msgspec.Struct, frozen=True, kw_only=True):
    """The known speakers of a caller.

    Attributes:
        speakers: the oldest first.
    """

    speakers: tuple[Speaker, ...]


def checked_name(field: str, name: str) -> str:
    """The name of a person as it stands in transcripts: normalized, without surrounding spaces.

    Args:
        field: name of the option, for the error.
        name: the caller's name.

    Raises:
        InvalidOption: the name is empty or too long, would break subtitles, or looks like the label of an unknown
            speaker.
    """
    # Checked first, because normalizing a long row of combining characters takes for ever and blocks all threads.
    if not 1 <= len(name.strip()) <= MAX_NAME_CHARACTERS:
        raise InvalidOption(field, f"expected names of 1 to {MAX_NAME_CHARACTERS} characters")
    checked = unicodedata.normalize("NFC", name).strip()
    # These characters would break a line of subtitles, or begin a new one.
    if "-->" in checked or any(unicodedata.category(each)[0] == "C" or each in "\u2028\u2029" for each in checked):
        raise InvalidOption(field, "expected names without control characters, line breaks and arrows")
    if SPEAKER_LABEL.fullmatch(checked.upper()):
        raise InvalidOption(field, "names like SPEAKER_00 are reserved for unknown speakers")
    return checked
