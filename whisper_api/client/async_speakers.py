"""The methods of the asynchronous client for known speakers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from whisper_api.client.async_transport import AsyncMethods
from whisper_api.client.calls import path_of
from whisper_api.client.speakers import EMBED_SECONDS, SpeakerList, data_urls
from whisper_api.client.upload import Source
from whisper_api.voices import Speaker

__all__ = ["AsyncSpeakerMethods"]


class AsyncSpeakerMethods(AsyncMethods):
    """The methods of :class:`~whisper_api.AsyncClient` for known speakers."""

    async def enroll(self, name: str, samples: Sequence[Source]) -> Speaker:
        """Add a person whose voice jobs with ``identify`` recognise. The person must have agreed to that.

        Args:
            name: as in :meth:`Client.enroll <whisper_api.Client.enroll>`.
            samples: as in :meth:`Client.enroll <whisper_api.Client.enroll>`.

        Raises:
            WhisperApiError: as in :meth:`Client.enroll <whisper_api.Client.enroll>`.
        """
        value = {"name": name, "samples": await asyncio.to_thread(data_urls, samples)}
        return await self._transport.run(
            self._calls.value("POST", "/speakers", Speaker, value, held_seconds=EMBED_SECONDS)
        )

    async def add_samples(self, speaker_id: str, samples: Sequence[Source]) -> Speaker:
        """Add recordings to a known speaker; they replace those that another model has embedded.

        Args:
            speaker_id: as in :meth:`Client.add_samples <whisper_api.Client.add_samples>`.
            samples: as in :meth:`Client.add_samples <whisper_api.Client.add_samples>`.

        Raises:
            WhisperApiError: as in :meth:`Client.add_samples <whisper_api.Client.add_samples>`.
        """
        path, value = (
            path_of("speakers", speaker_id, "samples"),
            {"samples": await asyncio.to_thread(data_urls, samples)},
        )
        return await self._transport.run(self._calls.value("POST", path, Speaker, value, held_seconds=EMBED_SECONDS))

    async def speakers(self) -> tuple[Speaker, ...]:
        """The caller's known speakers, the oldest first.

        Raises:
            WhisperApiError: as in :meth:`Client.speakers <whisper_api.Client.speakers>`.
        """
        return (await self._transport.run(self._calls.value("GET", "/speakers", SpeakerList))).speakers

    async def rename_speaker(self, speaker_id: str, name: str) -> Speaker:
        """Rename a known speaker. Earlier transcripts keep the old name.

        Args:
            speaker_id: as in :meth:`Client.rename_speaker <whisper_api.Client.rename_speaker>`.
            name: as in :meth:`Client.rename_speaker <whisper_api.Client.rename_speaker>`.

        Raises:
            WhisperApiError: as in :meth:`Client.rename_speaker <whisper_api.Client.rename_speaker>`.
        """
        path, value = path_of("speakers", speaker_id), {"name": name}
        return await self._transport.run(self._calls.value("PATCH", path, Speaker, value, held_seconds=EMBED_SECONDS))

    async def delete_speaker(self, speaker_id: str) -> None:
        """Delete a known speaker: the name and the voice.

        Args:
            speaker_id: as in :meth:`Client.delete_speaker <whisper_api.Client.delete_speaker>`.

        Raises:
            WhisperApiError: as in :meth:`Client.delete_speaker <whisper_api.Client.delete_speaker>`.
        """
        await self._transport.run(self._calls.delete(path_of("speakers", speaker_id)))
