"""The methods of the clients for stored vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from whisper_api.client.calls import Methods, Steps, api_call, path_of
from whisper_api.job_values import Vocabulary


class VocabularyList(msgspec.Struct):
    """All vocabularies of a key."""

    vocabularies: tuple[Vocabulary, ...]


class VocabularyMethods(Methods):
    """The methods of the clients for stored vocabularies."""

    @api_call
    def put_vocabulary(self, name: str, terms: Sequence[str]) -> Steps[Vocabulary]:
        """Store names and terms, which jobs use with ``TranscriptionOptions(vocabulary=name)``.

        Args:
            name: 1 to 64 letters, digits, dots, hyphens and underscores. A vocabulary of this name is replaced.
            terms: names and terms as they are to be written.

        Returns:
            The vocabulary as the server keeps it: each term once.

        Raises:
            InvalidOption: the name or the terms cannot be used, or there are too many.
            RequestError: the server refused, or cannot be reached.
        """
        value = {"terms": list(terms)}
        return self._calls.value("PUT", path_of("vocabularies", name), Vocabulary, value)

    @api_call
    def vocabulary(self, name: str) -> Steps[Vocabulary]:
        """A stored vocabulary of the caller's key.

        Args:
            name: name of the vocabulary.

        Raises:
            VocabularyNotFound: there is no such vocabulary, or it belongs to another key.
            RequestError: the server refused, or cannot be reached.
        """
        return self._calls.value("GET", path_of("vocabularies", name), Vocabulary)

    @api_call
    def vocabularies(self) -> Steps[tuple[Vocabulary, ...]]:
        """All stored vocabularies of the caller's key, in the order of their names.

        Raises:
            RequestError: the server refused, or cannot be reached.
        """
        return (yield from self._calls.value("GET", "/vocabularies", VocabularyList)).vocabularies

    @api_call
    def delete_vocabulary(self, name: str) -> Steps[None]:
        """Delete a stored vocabulary. Jobs that were submitted before keep its terms.

        Args:
            name: name of the vocabulary.

        Raises:
            VocabularyNotFound, RequestError: as with :meth:`vocabulary`.
        """
        return self._calls.delete(path_of("vocabularies", name))
