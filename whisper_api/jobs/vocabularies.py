"""Vocabularies: lists of names and terms that a key stores, and that its jobs use by name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from msgspec.structs import replace

from whisper_api.errors import InvalidOption, VocabularyNotFound
from whisper_api.job_values import Vocabulary
from whisper_api.options import TranscriptionOptions
from whisper_api.store.jobs import JobStore

MAX_VOCABULARIES = 100
MAX_TERMS = 2000
MAX_TERM_CHARACTERS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Vocabularies:
    """The vocabularies of all keys. Each key sees its own only; without authorization all callers share one set.

    Args:
        store: the store of the vocabularies.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def put(self, owner: str, name: str, terms: Sequence[str]) -> Vocabulary:
        """Store a vocabulary instead of the earlier one of this name. Jobs that were submitted before do not change.

        Args:
            owner: id of the key.
            name: 1 to 64 letters, digits, dots, hyphens and underscores, with a letter or digit first.
            terms: names and terms.

        Returns:
            The vocabulary as stored: without spaces around terms, each term once.

        Raises:
            InvalidOption: the name or the terms cannot be used, or the owner has the most vocabularies already.
        """
        if not _NAME.fullmatch(name):
            raise InvalidOption(
                "name", "expected 1 to 64 letters, digits, dots, hyphens and underscores, a letter or digit first"
            )
        vocabulary = Vocabulary(name=name, terms=checked_terms("terms", terms))
        if not self._store.put_vocabulary(owner, vocabulary, most=MAX_VOCABULARIES):
            raise InvalidOption("name", f"there are {MAX_VOCABULARIES} vocabularies already: delete one first")
        return vocabulary

    def get(self, owner: str, name: str) -> Vocabulary:
        """A vocabulary.

        Args:
            owner: id of the key.
            name: name of the vocabulary.

        Raises:
            VocabularyNotFound: the owner has no vocabulary of this name.
        """
        found = self._store.vocabulary(owner, name)
        if found is None:
            raise _not_found(name)
        return found

    def list(self, owner: str) -> list[Vocabulary]:
        """All vocabularies of an owner, in the order of their names."""
        return self._store.vocabularies(owner)

    def delete(self, owner: str, name: str) -> None:
        """Delete a vocabulary. Jobs that were submitted before keep its terms until they are deleted.

        Args:
            owner: id of the key.
            name: name of the vocabulary.

        Raises:
            VocabularyNotFound: the owner has no vocabulary of this name.
        """
        if not self._store.delete_vocabulary(owner, name):
            raise _not_found(name)

    def resolved(self, owner: str, options: TranscriptionOptions) -> TranscriptionOptions:
        """Options with the terms of the vocabulary that they name, as they are now.

        Args:
            owner: id of the key.
            options: options of a job.

        Raises:
            InvalidOption: the owner has no vocabulary of this name.
        """
        if not isinstance(options.vocabulary, str):
            return options
        try:
            return replace(options, vocabulary=self.get(owner, options.vocabulary).terms)
        except VocabularyNotFound as error:
            raise InvalidOption("vocabulary", str(error)) from None


def checked_terms(field: str, terms: Sequence[str]) -> tuple[str, ...]:
    """Terms without spaces around them, each once.

    Args:
        field: the field that errors name.
        terms: names and terms.

    Raises:
        InvalidOption: there are none or too many, or one is empty, too long or has control characters.
    """
    if not 1 <= len(terms) <= MAX_TERMS:
        raise InvalidOption(field, f"expected 1 to {MAX_TERMS} terms")
    terms = [term.strip() for term in terms]
    for term in terms:
        if not 1 <= len(term) <= MAX_TERM_CHARACTERS or any(unicodedata.category(each) == "Cc" for each in term):
            raise InvalidOption(
                field, f"expected terms of 1 to {MAX_TERM_CHARACTERS} characters without control characters"
            )
    return tuple(dict.fromkeys(terms))


def _not_found(name: str) -> VocabularyNotFound:
    return VocabularyNotFound(f"Vocabulary not found: {name[:64]}")
