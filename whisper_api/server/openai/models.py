"""Models by the names that OpenAI's clients ask for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_api.errors import UnknownModel
from whisper_api.schema import TranscriptionOptions
from whisper_api.server.openai.bodies import Model
from whisper_api.server.state import ServerState

if TYPE_CHECKING:
    from whisper_api.engine.models.names import ModelNames
    from whisper_api.engine.models.store import LocalModel

__all__ = ["chosen_model", "model_named", "models_here"]


def chosen_model(name: str | None, state: ServerState) -> str | None:
    """The model that a job uses when it is asked for by this name.

    Args:
        name: one of OpenAI's names, ``auto``, or None mean the configured model, as does its own name; an alias of the
            configuration means what stands there; any name of a Whisper model of the catalogue means that model.
        state: the server's.

    Returns:
        What :class:`~whisper_api.schema.TranscriptionOptions` names; None for the engine's own choice.

    Raises:
        UnknownModel: the name means no model of this server. No other model is used in its place.
    """
    from whisper_api.engine.models.names import AUTO

    names = _names(state)
    model = names.meaning(name)
    if model == _configured_id(state):
        model = names.configured
    if not names.trusts(model) and model not in _whisper_names():
        raise _unknown(name or "", state)
    return None if model == AUTO else model


def models_here(state: ServerState) -> tuple[Model, ...]:
    """The configured model under its own name and OpenAI's, the aliases, and the Whisper models on the disk.

    Looks at the disk.
    """
    from whisper_api.engine.models.files import list_models
    from whisper_api.engine.models.names import OPENAI_NAMES
    from whisper_api.engine.models.store import ModelStore

    store = ModelStore(state.config.models_dir)
    there = {
        each.name: each.local
        for each in list_models(store.root)
        if each.local is not None and each.entry.kind == "whisper" and each.name in _whisper_names()
    }
    names = dict.fromkeys((_configured_id(state), *OPENAI_NAMES, *_names(state).aliases, *there))
    return tuple(model_named(name, state) for name in names)


def model_named(name: str, state: ServerState) -> Model:
    """The model that transcriptions get when they ask for this name. Looks at the disk.

    Raises:
        UnknownModel: there is none.
    """
    from whisper_api.engine.models.store import ModelStore

    options = TranscriptionOptions(model=chosen_model(name, state))
    files = ModelStore(state.config.models_dir).find(state.service.model_name(options))
    return Model(id=name, created=_created(files))


def _names(state: ServerState) -> ModelNames:
    from whisper_api.engine.models.names import ModelNames

    return ModelNames.of(state.config.model, state.config.model_aliases)


def _whisper_names() -> frozenset[str]:
    from whisper_api.engine.models.catalog import CATALOGUE

    return frozenset(entry.name for entry in CATALOGUE.values() if entry.kind == "whisper")


def _configured_id(state: ServerState) -> str:
    """The configured model's usual name; of one that is a directory, that directory's, since the rest is private."""
    name = state.service.facts().model
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _created(files: LocalModel | None) -> int:
    try:
        return 0 if files is None else int(files.path.stat().st_mtime)
    except OSError:
        return 0


def _known_names(state: ServerState) -> Iterator[str]:
    """Every name that somebody may have meant."""
    from whisper_api.engine.models.catalog import ALIASES
    from whisper_api.engine.models.names import OPENAI_NAMES

    yield _configured_id(state)
    yield from _names(state).aliases
    yield from OPENAI_NAMES
    yield from sorted(_whisper_names())
    yield from ALIASES


def _unknown(name: str, state: ServerState) -> UnknownModel:
    from whisper_api.engine.models.names import near_names

    near = near_names(name, _known_names(state))
    hint = f"did you mean {near}?" if near else "GET /v1/models lists those that are here"
    return UnknownModel(f"The model {name[:80]!r} does not exist here; {hint}")
