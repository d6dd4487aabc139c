"""The configuration of a running server, some of whose values can change without a restart.

The table of settings declares such a key by ``_live``. A part that keeps a value of the configuration registers a
function with the server's :class:`LiveConfig`. A part that reads the value from ``LiveConfig.config`` for each request
needs no function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from whisper_api.config.settings import RELOADABLE, Config, format_value, settings
from whisper_api.config.sources import Setting


@dataclass(frozen=True)
class Change:
    """The differences of a new configuration.

    Attributes:
        applied: a sentence for each value that is in force now: the key, the old value and the new one.
        waiting: the keys whose new values need a restart.
    """

    applied: tuple[str, ...]
    waiting: tuple[str, ...]


class LiveConfig:
    """The configuration in force.

    Args:
        config: the configuration of the start.

    Attributes:
        config: the configuration in force.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._parts: list[Callable[[Config], None]] = []

    def register(self, take: Callable[[Config], None]) -> None:
        """Call a function with every new configuration.

        Args:
            take: does not block and does not fail, since the configuration was checked; runs on the server's event
                loop, whenever the configuration was read again.
        """
        self._parts.append(take)

    def unregister(self, take: Callable[[Config], None]) -> None:
        """Call a function no more."""
        self._parts.remove(take)

    def change(self, new: Config) -> Change:
        """Use the new values of the keys that a running server can change.

        Args:
            new: a configuration that was checked.
        """
        change = self.difference(new)
        self.config = with_new_values(self.config, new)
        for take in self._parts:
            take(self.config)
        return change

    def difference(self, new: Config) -> Change:
        """What :meth:`change` would change now.

        Args:
            new: a configuration that was checked.
        """
        old = self.config
        changed = [each for each in settings() if getattr(old, each.attribute) != getattr(new, each.attribute)]
        return Change(
            tuple(_told(each, old, new) for each in changed if each.key in RELOADABLE),
            tuple(each.key for each in changed if each.key not in RELOADABLE),
        )


def with_new_values(config: Config, new: Config) -> Config:
    """A configuration with the values of another one under the keys that a running server can change.

    Args:
        config: gives all other values.
        new: gives the values of :data:`RELOADABLE`.
    """
    return msgspec.structs.replace(
        config, **{each.attribute: getattr(new, each.attribute) for each in settings() if each.key in RELOADABLE}
    )


def _told(setting: Setting, old: Config, new: Config) -> str:
    was, now = (format_value(setting, getattr(config, setting.attribute)) for config in (old, new))
    return f"{setting.key}: {was} -> {now}"
