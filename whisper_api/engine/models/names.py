"""Names of Whisper models: the configured aliases, the names of OpenAI's models, and the names of repositories."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

from whisper_api.engine.models.catalog import ALIASES, CATALOGUE

__all__ = [
    "AUTO",
    "OPENAI_NAMES",
    "ModelNames",
    "asks_for_speakers",
    "catalogue_name",
    "is_openai_name",
    "near_names",
    "parse_aliases",
]

AUTO = "auto"
# Model names that applications for OpenAI have in their code.
OPENAI_NAMES = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-transcribe-diarize",
)
# The same names with a date, with the provider in front as gateways write it, and of later generations. Azure's own
# examples call the deployment "whisper".
_OPENAI = re.compile(
    r"(?:openai/)?(?:whisper(?:-1)?|gpt(?:-[a-z0-9.]+)*-transcribe(?P<speakers>-diarize)?)"
    r"(?:-latest|-\d{4}-\d{2}-\d{2})?"
)
# Repositories and services that offer the weights of a catalogue model under a name that follows no rule.
_OTHER_NAMES = {
    "deepdml/faster-whisper-large-v3-turbo-ct2": "large-v3-turbo",
    "dropbox-dash/faster-whisper-large-v3-turbo": "large-v3-turbo",
    "h2oai/faster-whisper-large-v3-turbo": "large-v3-turbo",
    "deepdml/faster-distil-whisper-large-v3.5": "distil-large-v3.5",
    "distil-whisper-large-v3-en": "distil-large-v3",
    "whisper-v3": "large-v3",
    "whisper-v3-turbo": "large-v3-turbo",
}


class ModelNames:
    """Resolves the names of models.

    Args:
        configured: the model of jobs that name none; ``auto`` for the engine's own choice.
        aliases: alias to model; an alias wins over every other meaning of its name. The model is a name of the
            catalogue, a repository, a directory or ``auto``.
    """

    def __init__(self, configured: str, aliases: Mapping[str, str] | None = None) -> None:
        self._aliases = {alias.casefold(): target for alias, target in (aliases or {}).items()}
        self.aliases = tuple(aliases or ())
        self.configured = AUTO
        self.configured = self.meaning(configured)
        # The configuration may name a directory or any repository; a caller may not.
        self._trusted = frozenset((self.configured, *map(self._plain_meaning, self._aliases.values())))

    @classmethod
    def of(cls, configured: str, aliases: str | None) -> ModelNames:
        """The names of a configuration.

        Args:
            configured: the key ``WHISPER_MODEL``.
            aliases: the key ``MODEL_ALIASES``: ``name=model``, with commas between.
        """
        return cls(configured, parse_aliases(aliases))

    def meaning(self, name: str | None) -> str:
        """The model that a name means.

        Args:
            name: of a form, a flag or the configuration; None is the same as ``auto``.

        Returns:
            A name of the catalogue; ``auto`` where the engine chooses; any other name unchanged.
        """
        target = self._aliases.get((name or "").casefold())
        return self._plain_meaning(name if target is None else target)

    def trusts(self, model: str) -> bool:
        """Whether the configuration itself names a model, given as :meth:`meaning` returns it."""
        return model in self._trusted

    def _plain_meaning(self, name: str | None) -> str:
        if name is None or name.casefold() in ("", AUTO) or is_openai_name(name):
            return self.configured
        return catalogue_name(name) or name


def parse_aliases(text: str | None) -> dict[str, str]:
    """Alias to model, of the configuration's ``name=model, name=model``; empty for None."""
    pairs = (pair.partition("=") for pair in (text or "").split(",") if pair.strip())
    return {name.strip(): model.strip() for name, _, model in pairs}


def catalogue_name(name: str) -> str | None:
    """The catalogue's name of a model; None when the catalogue knows no model by a name.

    Args:
        name: of the catalogue, of OpenAI's Python package or repositories (``whisper-base``, ``openai/whisper-base``),
            of a repository with the same weights for CTranslate2 (``Systran/faster-whisper-base``).
    """
    if name in CATALOGUE:
        return name
    return ALIASES.get(name) or _FURTHER_NAMES.get(name.casefold())


def is_openai_name(name: str) -> bool:
    """Whether a name is that of an OpenAI transcription model, and so means the configured model."""
    return _OPENAI.fullmatch(name.casefold()) is not None


def asks_for_speakers(name: str | None) -> bool:
    """Whether a name is that of an OpenAI model that tells speakers apart."""
    match = _OPENAI.fullmatch((name or "").casefold())
    return match is not None and match["speakers"] is not None


def near_names(name: str, known: Iterable[str]) -> str:
    """The known names that are most similar to a name, as ``a or b``; empty when none is similar.

    Args:
        name: that means nothing.
        known: names that mean something; may repeat.
    """
    return " or ".join(difflib.get_close_matches(name.lower(), dict.fromkeys(known), n=3, cutoff=0.5))


def _names_of(name: str, repo_id: str) -> Iterator[str]:
    """Further names of a catalogue model that has this name or alias."""
    yield repo_id
    if name.startswith("distil-"):
        size = name.removeprefix("distil-")
        yield from (f"distil-whisper/{name}", f"distil-whisper/{name}-ct2", f"distil-whisper-{size}")
        yield from (f"Systran/faster-distil-whisper-{size}", f"faster-distil-whisper-{size}")
        return
    yield from (f"openai/whisper-{name}", f"whisper-{name}", f"faster-whisper-{name}")
    # The author of faster-whisper had the repositories before the company did.
    yield from (f"Systran/faster-whisper-{name}", f"guillaumekln/faster-whisper-{name}")


def _further_names() -> Iterator[tuple[str, str]]:
    """Pairs of a further name, in lower case since the hub ignores case, and the catalogue's name."""
    yield from _OTHER_NAMES.items()
    for entry in CATALOGUE.values():
        if entry.kind == "whisper" and entry.hub is not None:
            for known in (entry.name, *entry.aliases):
                yield from ((each.casefold(), entry.name) for each in _names_of(known, entry.hub.repo_id))


_FURTHER_NAMES = dict(_further_names())
