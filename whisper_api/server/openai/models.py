"""The models of the server under the names that OpenAI's clients use."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from whisper_api.errors import UnknownModel
from whisper_api.options import TranscriptionOptions
from whisper_api.server.openai.bodies import Model
from whisper_api.server.state import ServerState

if TYPE_CHECKING:
    from whisper_api.engine.models.names import ModelNames


def chosen_model(name: str | None, state: ServerState) -> str | None:
    """The model that a job uses for a name in a request.

    Args:
        name: None, ``auto``, a name of OpenAI or the configured model's own name for the configured model; an alias
            from the configuration; or any name of a Whisper model in the catalogue.
        state: the server's state.

    Returns:
        The model for :class:`~whisper_api.schema.TranscriptionOptions`; None for the engine's own choice.

    Raises:
        UnknownModel: no model has this name.
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
    """The configured model under its own name and OpenAI's names, the aliases, and the Whisper models on the disk.

    Blocks on the disk.
    """
    from whisper_api.engine.models.files import list_models
    from whisper_api.engine.models.names import OPENAI_NAMES

    listed = list_models(state.config.models_dir)
    installed = [each.name for each in listed if each.local is not None and each.name in _whisper_names()]
    names = dict.fromkeys((_configured_id(state), *OPENAI_NAMES, *_names(state).aliases, *installed))
    return tuple(model_named(name, state) for name in names)


def model_named(name: str, state: ServerState) -> Model:
    """The model that a transcription uses for this name. Blocks on the disk.

    Args:
        name: name in the request.
        state: the server's state.

    Raises:
        UnknownModel: no model has this name.
    """
    from whisper_api.engine.models.store import ModelStore

    options = TranscriptionOptions(model=chosen_model(name, state))
    files = ModelStore(state.config.models_dir).find(state.service.model_name(options))
    created = 0
    if files is not None:
        with contextlib.suppress(OSError):
            created = int(files.path.stat().st_mtime)
    return Model(id=name, created=created)


def _names(state: ServerState) -> ModelNames:
    from whisper_api.engine.models.names import ModelNames

    return ModelNames.of(state.config.model, state.config.model_aliases)


def _whisper_names() -> frozenset[str]:
    from whisper_api.engine.models.catalog import CATALOGUE

    return frozenset(entry.name for entry in CATALOGUE.values() if entry.kind == "whisper")


def _configured_id(state: ServerState) -> str:
    """The configured model's name; for a path only the directory's name, because the rest of the path is private."""
    name = state.service.facts().model
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _unknown(name: str, state: ServerState) -> UnknownModel:
    from whisper_api.engine.models.catalog import ALIASES
    from whisper_api.engine.models.names import OPENAI_NAMES, near_names

    known = (_configured_id(state), *_names(state).aliases, *OPENAI_NAMES, *sorted(_whisper_names()), *ALIASES)
    near = near_names(name, known)
    hint = f"did you mean {near}?" if near else "GET /v1/models lists the models of the server"
    return UnknownModel(f"The model {name[:80]!r} does not exist here; {hint}")
