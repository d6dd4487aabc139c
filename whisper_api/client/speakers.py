"""The methods of the clients for known speakers."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from whisper_api.client.calls import Methods, Steps, Work, api_call, path_of
from whisper_api.client.upload import Source, whole
from whisper_api.voices import Speaker, SpeakerList

# Seconds that the server may take to compute a voice, which waits for other voices and for models.
EMBED_SECONDS = 300.0


class SpeakerMethods(Methods):
    """The methods of the clients for known speakers."""

    @api_call
    def enroll(self, name: str, samples: Sequence[Source]) -> Steps[Speaker]:
        """Add a person whose voice jobs with ``identify`` recognise. The person must have agreed to that.

        Args:
            name: the label of the person in transcripts.
            samples: recordings of 2 to 10 seconds each, in which only this person speaks; as ``source`` of
                :meth:`submit`. The server does not keep them.

        Raises:
            OSError: a file cannot be read.
            InvalidOption: the server cannot use the name or a recording.
            SpeakerExists, SpeakerLimit: the caller has a speaker of this name, or as many as one may have.
            ModelUnavailable: the server has no model for voices.
            RequestError: the server refused, or cannot be reached.
        """
        value = {"name": name, "samples": (yield Work(lambda: _data_urls(samples)))}
        return (yield from self._calls.value("POST", "/speakers", Speaker, value, held_seconds=EMBED_SECONDS))

    @api_call
    def add_samples(self, speaker_id: str, samples: Sequence[Source]) -> Steps[Speaker]:
        """Add recordings to a known speaker; they replace those that another model has embedded.

        Args:
            speaker_id: id of the speaker.
            samples: as with :meth:`enroll`.

        Raises:
            SpeakerNotFound: there is no such speaker, or it belongs to another key.
            WhisperApiError: as with :meth:`enroll`.
        """
        path, value = path_of("speakers", speaker_id, "samples"), {"samples": (yield Work(lambda: _data_urls(samples)))}
        return (yield from self._calls.value("POST", path, Speaker, value, held_seconds=EMBED_SECONDS))

    @api_call
    def speakers(self) -> Steps[tuple[Speaker, ...]]:
        """The caller's known speakers, the oldest first.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return (yield from self._calls.value("GET", "/speakers", SpeakerList)).speakers

    @api_call
    def rename_speaker(self, speaker_id: str, name: str) -> Steps[Speaker]:
        """Rename a known speaker. Earlier transcripts keep the old name.

        Args:
            speaker_id: id of the speaker.
            name: the new name.

        Raises:
            InvalidOption: the server cannot use the name.
            SpeakerNotFound, SpeakerExists: there is no such speaker, or another one of this name.
            RequestError: the server refused, or cannot be reached.
        """
        path, value = path_of("speakers", speaker_id), {"name": name}
        return self._calls.value("PATCH", path, Speaker, value, held_seconds=EMBED_SECONDS)

    @api_call
    def delete_speaker(self, speaker_id: str) -> Steps[None]:
        """Delete a known speaker: the name and the voice.

        Args:
            speaker_id: id of the speaker.

        Raises:
            SpeakerNotFound: there is no such speaker, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return self._calls.delete(path_of("speakers", speaker_id))


def _data_urls(samples: Sequence[Source]) -> list[str]:
    """Recordings as the server takes them in JSON; blocks while they are read."""
    return [f"data:;base64,{base64.b64encode(sample).decode()}" for sample in whole(samples)]
