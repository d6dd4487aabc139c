"""Resolves names of Whisper models: configured aliases, names of OpenAI's models, and names of repositories."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

from whisper_api.engine.models.catalog import ALIASES, CATALOGUE

AUTO = "auto"
# Model names that applications for OpenAI have in their code.
OPENAI_NAMES = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
    "gpt-4o-transcribe-diarize",
)
# Matches the same names with a date, with a gateway's provider prefix, and of later generations. Azure's own examples
# call the deployment "whisper".
_OPENAI = re.compile(
    r"(?:openai/)?(?:whisper(?:-1)?|gpt(?:-[a-z0-9.]+)*-transcribe(?P<speakers>-diarize)?)"
    r"(?:-latest|-\d{4}-\d{2}-\d{2})?"
)
# Names of repositories and services that offer a catalogue model's weights and that `_names_of` cannot derive.
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
    """Resolves model names by one configuration.

    Args:
        configured: the model of jobs that name no model; ``auto`` lets the engine choose.
        aliases: alias to model; an alias wins over every other meaning of its name. The model is a catalogue name, a
            repository, a directory or ``auto``.
    """

    def __init__(self, configured: str, aliases: Mapping[str, str] | None = None) -> None:
        self._aliases = {alias.casefold(): target for alias, target in (aliases or {}).items()}
        self.aliases = tuple(aliases or ())
        self.configured = AUTO
        self.configured = self.meaning(configured)
        # Only the configuration may name a directory or an arbitrary repository; a caller may not.
        self._trusted = frozenset((self.configured, *map(self._plain_meaning, self._aliases.values())))

    @classmethod
    def of(cls, configured: str, aliases: str | None) -> ModelNames:
        """Read the names from two configuration keys.

        Args:
            configured: the key ``WHISPER_MODEL``.
            aliases: the key ``MODEL_ALIASES``: ``name=model`` pairs, separated by commas.
        """
        return cls(configured, parse_aliases(aliases))

    def meaning(self, name: str | None) -> str:
        """The model that a name means.

        Args:
            name: a name from a form, a flag or the configuration; None is the same as ``auto``.

        Returns:
            The catalogue name; ``auto`` when the engine chooses; an unknown name unchanged.
        """
        target = self._aliases.get((name or "").casefold())
        return self._plain_meaning(name if target is None else target)

    def trusts(self, model: str) -> bool:
        """Whether the configuration itself names a model.

        Args:
            model: a return value of :meth:`meaning`.
        """
        return model in self._trusted

    def _plain_meaning(self, name: str | None) -> str:
        if name is None or name.casefold() in ("", AUTO) or is_openai_name(name):
            return self.configured
        return catalogue_name(name) or name


def parse_aliases(text: str | None) -> dict[str, str]:
    """Parse the configuration's ``name=model, name=model`` into alias to model; None gives no aliases."""
    pairs = (pair.partition("=") for pair in (text or "").split(",") if pair.strip())
    return {name.strip(): model.strip() for name, _, model in pairs}


def catalogue_name(name: str) -> str | None:
    """The catalogue's name for a model; None when the catalogue does not know the name.

    Args:
        name: a catalogue name, a name of OpenAI's Python package or repositories (``whisper-base``,
            ``openai/whisper-base``), or a repository with the same weights for CTranslate2
            (``Systran/faster-whisper-base``).
    """
    if name in CATALOGUE:
        return name
    return ALIASES.get(name) or _FURTHER_NAMES.get(name.casefold())


def is_openai_name(name: str) -> bool:
    """Whether a name belongs to an OpenAI transcription model. Such a name means the configured model."""
    return _OPENAI.fullmatch(name.casefold()) is not None


def asks_for_speakers(name: str | None) -> bool:
    """Whether a name belongs to an OpenAI model with diarization."""
    match = _OPENAI.fullmatch((name or "").casefold())
    return match is not None and match["speakers"] is not None


def near_names(name: str, known: Iterable[str]) -> str:
    """The known names that resemble a mistyped name, as ``a or b``; empty when no known name resembles it.

    Args:
        name: the mistyped name.
        known: valid names; may repeat.
    """
    return " or ".join(difflib.get_close_matches(name.lower(), dict.fromkeys(known), n=3, cutoff=0.5))


def _names_of(name: str, repo_id: str) -> Iterator[str]:
    """Other names under which a catalogue model is published.

    Args:
        name: the model's catalogue name or an alias.
        repo_id: the model's repository.
    """
    yield repo_id
    if name.startswith("distil-"):
        size = name.removeprefix("distil-")
        yield from (f"distil-whisper/{name}", f"distil-whisper/{name}-ct2", f"distil-whisper-{size}")
        yield from (f"Systran/faster-distil-whisper-{size}", f"faster-distil-whisper-{size}")
        return
    yield from (f"openai/whisper-{name}", f"whisper-{name}", f"faster-whisper-{name}")
    # guillaumekln, the author of faster-whisper, published these repositories before Systran did.
    yield from (f"Systran/faster-whisper-{name}", f"guillaumekln/faster-whisper-{name}")


def _further_names() -> Iterator[tuple[str, str]]:
    """Pairs of another name and the catalogue name. Other names are in lower case, because the hub ignores case."""
    yield from _OTHER_NAMES.items()
    for entry in CATALOGUE.values():
        if entry.kind == "whisper" and entry.hub is not None:
            for known in (entry.name, *entry.aliases):
                yield from ((each.casefold(), entry.name) for each in _names_of(known, entry.hub.repo_id))


_FURTHER_NAMES = dict(_further_names())
