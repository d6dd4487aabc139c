"""Known speakers: enrolment, names, deletion. Jobs with the option ``identify`` look for the voices of their owner."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from whisper_api.errors import DeviceLost, EngineClosed, InvalidAudio, InvalidOption, SpeakerLimit, SpeakerNotFound
from whisper_api.jobs.executor import Executor
from whisper_api.records import made_of
from whisper_api.store.jobs import JobStore
from whisper_api.store.speakers import KnownVoice
from whisper_api.voices import Speaker, VoiceEmbedding, checked_name

log = logging.getLogger("whisper_api.jobs")

NAME_FIELD, SAMPLES_FIELD = "name", "samples"
MAX_SAMPLES = 20
"""Recordings of one speaker."""
# Least cosine similarity of a recording and the others of the same speaker, without a warning.
ALIKE = 0.4


class KnownSpeakers:
    """The known speakers in a job database. Any thread may call any method.

    In every method ``viewer`` is the id of the key whose speakers the caller may see; None sees all. A method with a
    ``viewer`` and a ``speaker_id`` raises SpeakerNotFound when there is no such speaker, or the viewer may not see it.

    Args:
        store: the store of the speakers.
        executor: computes voices.
        most: speakers that one owner may have; 0 for any number.
        on_device_lost: called when the device has failed under an enrolment.
    """

    def __init__(
        self, store: JobStore, executor: Executor, most: int, on_device_lost: Callable[[DeviceLost], None]
    ) -> None:
        self._on_device_lost = on_device_lost
        self._store = store
        self._executor = executor
        self._most = most

    def enroll(self, owner: str, name: str, recordings: Sequence[bytes]) -> Speaker:
        """Add a speaker.

        Args:
            owner: id of the caller's key; empty without authorization.
            name: label of the person in transcripts.
            recordings: files, in each of which only this person speaks. They are not kept.

        Raises:
            InvalidOption: the name or a recording cannot be used.
            SpeakerExists, SpeakerLimit: the owner may not have this speaker.
            ModelError: no embedding model is available.
        """
        name = checked_name(NAME_FIELD, name)
        self._store.check_speaker(owner, name, self._most)
        voice = self._voice(recordings)
        now = time.time()
        speaker = KnownVoice(
            speaker_id=str(uuid.uuid4()), owner=owner, name=name, voice=voice, created_at=now, updated_at=now
        )
        self._store.add_speaker(speaker, self._most)
        log.info("speaker enrolled", extra={"speaker_id": speaker.speaker_id, "samples": len(recordings)})
        return _shown(speaker, doubts(voice, 0))

    def add_samples(self, speaker_id: str, viewer: str | None, recordings: Sequence[bytes]) -> Speaker:
        """Add recordings to a speaker. They replace those that another model has embedded.

        Args:
            speaker_id: id of the speaker.
            viewer: owner whose speakers the caller may see; None for all.
            recordings: files, in each of which only this person speaks.

        Raises:
            InvalidOption: a recording cannot be used.
            SpeakerLimit: the speaker has too many recordings.
            ModelError: no embedding model is available.
        """
        self._speaker(speaker_id, viewer)
        voice = self._voice(recordings)
        warnings: tuple[str, ...] = ()

        def change(speaker: KnownVoice) -> KnownVoice:
            nonlocal warnings
            before = speaker.voice
            if not before.is_comparable(voice.model, voice.revision):
                warnings = (
                    f"the {len(before.samples)} earlier recordings were dropped, because another model than "
                    f"{voice.model} had embedded them",
                    *doubts(voice, 0),
                )
                return replace(speaker, voice=voice, updated_at=time.time())
            joined = before.joined(voice)
            if len(joined.samples) > MAX_SAMPLES:
                raise SpeakerLimit(
                    f"A speaker may have {MAX_SAMPLES} recordings, and this one has {len(before.samples)}: delete the "
                    "speaker and enrol it anew"
                )
            warnings = doubts(joined, len(before.samples))
            return replace(speaker, voice=joined, updated_at=time.time())

        speaker = self._store.change_speaker(speaker_id, change)
        log.info("speaker changed", extra={"speaker_id": speaker_id, "samples": len(recordings)})
        return _shown(speaker, warnings)

    def rename(self, speaker_id: str, viewer: str | None, name: str) -> Speaker:
        """Give a speaker another name. Earlier transcripts keep the old one.

        Args:
            speaker_id: id of the speaker.
            viewer: owner whose speakers the caller may see; None for all.
            name: the new name.

        Raises:
            InvalidOption: the name cannot be used.
            SpeakerExists: the owner has another speaker of this name.
        """
        name = checked_name(NAME_FIELD, name)
        self._speaker(speaker_id, viewer)
        return _shown(
            self._store.change_speaker(speaker_id, lambda each: replace(each, name=name, updated_at=time.time()))
        )

    def delete(self, speaker_id: str, viewer: str | None) -> None:
        """Delete a speaker's name and voice. Waiting jobs no longer find it; transcripts keep the name.

        Args:
            speaker_id: id of the speaker.
            viewer: owner whose speakers the caller may see; None for all.
        """
        self._speaker(speaker_id, viewer)
        self._store.delete_speaker(speaker_id)
        log.info("speaker deleted", extra={"speaker_id": speaker_id})

    def get(self, speaker_id: str, viewer: str | None) -> Speaker:
        """A speaker.

        Args:
            speaker_id: id of the speaker.
            viewer: owner whose speakers the caller may see; None for all.
        """
        return _shown(self._speaker(speaker_id, viewer))

    def list(self, viewer: str | None) -> tuple[Speaker, ...]:
        """The speakers that a caller may see, the oldest first."""
        return tuple(_shown(speaker) for speaker in self._store.speakers(viewer))

    def _speaker(self, speaker_id: str, viewer: str | None) -> KnownVoice:
        speaker = self._store.speaker(speaker_id)
        if speaker is None or (viewer is not None and speaker.owner != viewer):
            raise SpeakerNotFound(speaker_id)
        return speaker

    def _voice(self, recordings: Sequence[bytes]) -> VoiceEmbedding:
        if not 1 <= len(recordings) <= MAX_SAMPLES:
            raise InvalidOption(SAMPLES_FIELD, f"expected 1 to {MAX_SAMPLES} recordings")
        try:
            return self._executor.enroll(recordings)
        except InvalidAudio as error:
            raise InvalidOption(SAMPLES_FIELD, str(error)) from None
        except DeviceLost as error:
            self._on_device_lost(error)
            raise EngineClosed("the device has failed, and the server starts anew: try again later") from None


def doubts(voice: VoiceEmbedding, known: int) -> tuple[str, ...]:
    """A warning for each new recording that does not sound like the others.

    Args:
        voice: all recordings.
        known: the number of first recordings that are not new.
    """
    found = []
    for number, sample in enumerate(voice.samples[known:], start=1):
        others = tuple(each for each in voice.samples if each is not sample)
        if others and replace(voice, samples=(sample,)).similarity(replace(voice, samples=others)) < ALIKE:
            found.append(
                f"recording {number} does not sound like the others: unless only the microphone is another one, delete "
                "the speaker and enrol it anew"
            )
    return tuple(found)


def _shown(speaker: KnownVoice, warnings: tuple[str, ...] = ()) -> Speaker:
    return made_of(
        speaker,
        Speaker,
        model=speaker.voice.model,
        model_revision=speaker.voice.revision,
        samples=len(speaker.voice.samples),
        seconds=round(speaker.voice.seconds, 1),
        warnings=warnings,
    )
