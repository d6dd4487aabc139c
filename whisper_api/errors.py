"""The errors that Whisper API raises, by name. None of them knows about HTTP.

::

    WhisperApiError
    ├── InvalidInput               what the caller gave cannot be used
    │   ├── InvalidAudio           not audio that can be decoded; says what was found instead
    │   └── InvalidOption          an option's value is out of range or contradicts another
    ├── ConfigError                the configuration file or environment cannot be used
    ├── ModelError
    │   ├── UnknownModel           no such name in the catalogue, no such directory
    │   ├── ModelUnavailable       a known model that is not here and could not be fetched
    │   └── ModelCorrupt           files are here but are not the files the catalogue names
    ├── DeviceError
    │   ├── DeviceUnavailable      the device asked for does not exist on this machine
    │   └── OutOfMemory            one work item alone does not fit the device
    ├── Canceled                   the caller's ``cancel`` event was set
    └── EngineClosed               the engine was closed while, or before, the call ran
"""

from __future__ import annotations

__all__ = [
    "Canceled",
    "ConfigError",
    "DeviceError",
    "DeviceUnavailable",
    "EngineClosed",
    "InvalidAudio",
    "InvalidInput",
    "InvalidOption",
    "ModelCorrupt",
    "ModelError",
    "ModelUnavailable",
    "OutOfMemory",
    "UnknownModel",
    "WhisperApiError",
]


class WhisperApiError(Exception):
    """The root: catch this to catch everything that Whisper API raises on purpose."""


class InvalidInput(WhisperApiError):
    """What the caller gave cannot be used."""


class InvalidAudio(InvalidInput):
    """The input is not audio that can be decoded. The message says what was found."""


class InvalidOption(InvalidInput):
    """An option has a value that cannot be used.

    Args:
        field: the option's name, as in :class:`whisper_api.TranscriptionOptions`.
        message: what is wrong with the value and which values are accepted.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ConfigError(WhisperApiError):
    """The configuration cannot be used. The message names the key and where its value came from."""


class ModelError(WhisperApiError):
    """Something about a model."""


class UnknownModel(ModelError):
    """A name that is neither in the catalogue, nor a directory, nor a hub id."""


class ModelUnavailable(ModelError):
    """A known model that is not on this machine and could not be fetched. The message says why and what to do."""


class ModelCorrupt(ModelError):
    """A model's files differ from those the catalogue names (by SHA-256), or cannot be loaded."""


class DeviceError(WhisperApiError):
    """Something about the device that models run on."""


class DeviceUnavailable(DeviceError):
    """The device asked for does not exist here or cannot be used."""


class OutOfMemory(DeviceError):
    """A single work item does not fit into the device's memory."""


class Canceled(WhisperApiError):
    """The job was canceled by its caller."""


class EngineClosed(WhisperApiError):
    """The engine was closed."""
