"""Given names, surnames and common words, from Faker's lists."""

from __future__ import annotations

import functools
import pkgutil
import unicodedata
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from whisper_api.engine.redaction import vocabulary

__all__ = ["NOT_ALONE", "common_words", "given_names", "plain", "surnames"]


def plain(word: str) -> str:
    """A word in lower case without accents, as the lists have it."""
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return "".join(each for each in decomposed if not unicodedata.combining(each))


NOT_ALONE = frozenset(plain(word) for word in vocabulary.NOT_ALONE)


@functools.lru_cache(maxsize=16)
def given_names(language: str | None) -> frozenset[str]:
    """Given names of the countries of a language, or of all countries that write in Latin letters.

    Args:
        language: code of a language; None for all.
    """
    return frozenset(_names("person", "first_names", language) | _names("person", "first_names_", language))


@functools.lru_cache(maxsize=16)
def surnames(language: str | None) -> frozenset[str]:
    """Surnames of the countries of a language; None for all languages."""
    return frozenset(_names("person", "last_names", language))


@functools.lru_cache(maxsize=16)
def common_words(language: str) -> frozenset[str]:
    """Words of a language that begin sentences, although some are names too."""
    return frozenset({plain(word) for word in vocabulary.STARTS} | NOT_ALONE | _names("lorem", "word_list", language))


def _names(provider: str, attribute: str, language: str | None) -> set[str]:
    """The values of an attribute, or of all attributes whose name begins so, of a provider's countries."""
    found: set[str] = set()
    for values in _attributes(provider, attribute, language):
        for value in values:
            found |= {plain(part) for part in str(value).replace("-", " ").split() if len(part) > 1}
    return found


def _attributes(provider: str, attribute: str, language: str | None) -> Iterator[Iterable[Any]]:
    package = import_module(f"faker.providers.{provider}")
    for module in pkgutil.iter_modules(package.__path__):
        if language is None or module.name.split("_")[0] == language:
            country = import_module(f"{package.__name__}.{module.name}").Provider
            for name in (name for name in dir(country) if name.startswith(attribute)):
                value = getattr(country, name)
                if isinstance(value, (tuple, list, dict)):
                    yield value
