"""Reads the configuration of a running server again, and gives its parts the new values."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from whisper_api.config import Change, LiveConfig, Loaded
from whisper_api.errors import ConfigError
from whisper_api.server.signals import Asked
from whisper_api.server.systemd import Supervisor

if TYPE_CHECKING:
    from whisper_api.server.connections import Connections

log = logging.getLogger(__name__)

LoadConfig = Callable[[], Loaded]


async def reload_when_asked(
    reload: Asked, load: LoadConfig, settings: LiveConfig, supervisor: Supervisor, connections: Sequence[Connections]
) -> None:
    """Read the configuration again whenever that is asked for, until the task is canceled.

    Args:
        reload: the request to do so.
        load: reads the configuration.
        settings: the configuration in force.
        supervisor: hears of the reload and of its end.
        connections: read their certificate again.
    """
    while True:
        await reload.wait()
        reload.asked = False
        supervisor.report("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            await _reload(load, settings, connections)
        except Exception:
            log.exception("the configuration could not be read again: the old one stays in force")
        finally:
            supervisor.report("READY=1")


async def _reload(load: LoadConfig, settings: LiveConfig, connections: Sequence[Connections]) -> None:
    from whisper_api.server.app import checked

    try:
        loaded = await asyncio.to_thread(load)
        checked(loaded.config)
    except ConfigError as error:
        log.error("the configuration cannot be used, and the old one stays in force: %s", error)
        return
    for warning in loaded.warnings:
        log.warning("%s", warning)
    change = settings.difference(loaded.config)
    # Told before or after the change: a new level of the log must not hide what has changed.
    told = log.isEnabledFor(logging.INFO)
    if told:
        _tell(change)
    settings.change(loaded.config)
    if not told:
        _tell(change)
    try:
        for each in connections:
            each.renew_certificate()
    except OSError as error:
        log.error("the certificate cannot be used, and the old one stays in force: %s", error)


def _tell(change: Change) -> None:
    log.info("configuration read again", extra={"changed": "; ".join(change.applied) or "nothing"})
    if change.waiting:
        log.warning("these keys have new values that need a restart: %s", ", ".join(change.waiting))
