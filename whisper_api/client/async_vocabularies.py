"""The methods of the asynchronous client for stored vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

from whisper_api.client.async_transport import AsyncMethods
from whisper_api.client.calls import path_of
from whisper_api.client.vocabularies import VocabularyList
from whisper_api.job_values import Vocabulary

__all__ = ["AsyncVocabularyMethods"]


class AsyncVocabularyMethods(AsyncMethods):
    """The methods of :class:`~whisper_api.AsyncClient` for stored vocabularies."""

    async def put_vocabulary(self, name: str, terms: Sequence[str]) -> Vocabulary:
        """Store names and terms, and return them as the server keeps them.

        Args:
            name: as in :meth:`Client.put_vocabulary <whisper_api.Client.put_vocabulary>`.
            terms: as in :meth:`Client.put_vocabulary <whisper_api.Client.put_vocabulary>`.

        Raises:
            WhisperApiError: as in :meth:`Client.put_vocabulary <whisper_api.Client.put_vocabulary>`.
        """
        value = {"terms": list(terms)}
        return await self._transport.run(self._calls.value("PUT", path_of("vocabularies", name), Vocabulary, value))

    async def vocabulary(self, name: str) -> Vocabulary:
        """A stored vocabulary of the caller's key.

        Args:
            name: as in :meth:`Client.vocabulary <whisper_api.Client.vocabulary>`.

        Raises:
            WhisperApiError: as in :meth:`Client.vocabulary <whisper_api.Client.vocabulary>`.
        """
        return await self._transport.run(self._calls.value("GET", path_of("vocabularies", name), Vocabulary))

    async def vocabularies(self) -> tuple[Vocabulary, ...]:
        """All stored vocabularies of the caller's key, in the order of their names.

        Raises:
            WhisperApiError: as in :meth:`Client.vocabularies <whisper_api.Client.vocabularies>`.
        """
        return (await self._transport.run(self._calls.value("GET", "/vocabularies", VocabularyList))).vocabularies

    async def delete_vocabulary(self, name: str) -> None:
        """Delete a stored vocabulary.

        Args:
            name: as in :meth:`Client.delete_vocabulary <whisper_api.Client.delete_vocabulary>`.

        Raises:
            WhisperApiError: as in :meth:`Client.delete_vocabulary <whisper_api.Client.delete_vocabulary>`.
        """
        await self._transport.run(self._calls.delete(path_of("vocabularies", name)))
