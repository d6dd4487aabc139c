"""Models by the names that OpenAI's clients ask for them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_api.errors import UnknownModel
from whisper_api.schema import TranscriptionOptions
from whisper_api.server.openai.bodies import Model
from whisper_api.server.state import ServerState

if TYPE_CHECKING:
    from whisper_api.engine.catalog import LocalModel, ModelStore

__all__ = ["OPENAI_NAME", "chosen_model", "model_named", "models_here"]

# Clients that were written for OpenAI alone know no other.
OPENAI_NAME = "whisper-1"
AUTO = "auto"


def chosen_model(name: str | None, state: ServerState) -> str | None:
    """The model that a job uses when it is asked for by this name.

    Args:
        name: ``whisper-1``, ``auto``, or None mean the configured model, as do its own name and aliases; the name of
            another Whisper model of the catalogue means that one.
        state: the server's.

    Returns:
        What :class:`~whisper_api.schema.TranscriptionOptions` names; None for the engine's own choice.

    Raises:
        UnknownModel: it is none of these. No other model is used in its place.
    """
    configured = state.config.model
    if name is None or name in (OPENAI_NAME, AUTO, configured) or _canonical(name) == _configured_id(state):
        return None if configured.lower() == AUTO else configured
    canonical = _canonical(name)
    if canonical not in _whisper_names():
        raise _unknown(name, state)
    return canonical


def models_here(state: ServerState) -> tuple[Model, ...]:
    """The configured model, under both its names, and the Whisper models on the disk. Looks at the disk."""
    from whisper_api.engine.catalog import ModelStore, list_models

    store = ModelStore(state.config.models_dir)
    configured = _configured_id(state)
    there = {
        each.name: each.local
        for each in list_models(store)
        if each.local is not None and each.entry.kind == "whisper" and each.name in _whisper_names()
    }
    created = _created(_configured_files(state, store))
    first = [Model(id=configured, created=created), Model(id=OPENAI_NAME, created=created)]
    return (*first, *(Model(id=name, created=_created(local)) for name, local in there.items() if name != configured))


def model_named(name: str, state: ServerState) -> Model:
    """The model that transcriptions get when they ask for this name. Looks at the disk.

    Raises:
        UnknownModel: there is none.
    """
    from whisper_api.engine.catalog import ModelStore

    store = ModelStore(state.config.models_dir)
    chosen = chosen_model(name, state)
    configured = None if state.config.model.lower() == AUTO else state.config.model
    files = _configured_files(state, store) if chosen == configured else store.find(chosen or "")
    return Model(id=name, created=_created(files))


def _canonical(name: str) -> str:
    from whisper_api.engine.model_table import ALIASES

    return ALIASES.get(name, name)


def _whisper_names() -> frozenset[str]:
    from whisper_api.engine.model_table import CATALOGUE

    return frozenset(entry.name for entry in CATALOGUE.values() if entry.kind == "whisper")


def _configured_id(state: ServerState) -> str:
    """The configured model's usual name; of one that is a directory, that directory's, since the rest is private."""
    name = state.service.executor.model_name(TranscriptionOptions())
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _configured_files(state: ServerState, store: ModelStore) -> LocalModel | None:
    return store.find(state.service.executor.model_name(TranscriptionOptions()))


def _created(files: LocalModel | None) -> int:
    try:
        return 0 if files is None else int(files.path.stat().st_mtime)
    except OSError:
        return 0


def _unknown(name: str, state: ServerState) -> UnknownModel:
    from whisper_api.engine.model_table import ALIASES

    known = [_configured_id(state), OPENAI_NAME, *sorted(_whisper_names()), *ALIASES]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "GET /v1/models lists those that are here"
    return UnknownModel(f"The model {name[:80]!r} does not exist here; {hint}")
