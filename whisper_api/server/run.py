"""Runs the server: in the main thread of a process (:func:`serve`), or in a thread (:class:`Server`).

Reads the configuration of a running server again when that is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whisper_api.config import Change, Config, LiveConfig, Loaded
from whisper_api.errors import ConfigError, ForkedProcess
from whisper_api.logs import Repeats, set_level
from whisper_api.server.signals import Asked, signals_handled
from whisper_api.server.sockets import listen, only_local, url_of
from whisper_api.server.systemd import Supervisor

if TYPE_CHECKING:
    from whisper_api.server.connections import Connections
    from whisper_api.server.state import ServerState


log = logging.getLogger(__name__)
log.addFilter(Repeats())
# Only the operator causes these lines, so none is left out.
reload_log = logging.getLogger("whisper_api.server.reloading")

LoadConfig = Callable[[], Loaded]

FIRST_KEY_NAME = "admin"
# Open responses have this long to end after the last job has stopped.
LAST_ANSWERS_SECONDS = 10.0


@dataclass(frozen=True)
class Started:
    """A server that listens.

    Attributes:
        url: URL of the server, without a slash at the end.
        api_key: the administrator's key, when this start has made it because there was no key; else None.
    """

    url: str
    api_key: str | None


def serve(
    config: Config,
    *,
    insecure: bool = False,
    on_ready: Callable[[Started], None] | None = None,
    load: LoadConfig | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT. In the main thread, the first signal stops gracefully and the second at once.

    SIGHUP has the server read its configuration again, if ``load`` is given.

    Args:
        config: all settings.
        insecure: accept that authorization is off while others can reach the server.
        on_ready: called when the server listens. The models may still be loading.
        load: reads the configuration again; the log's level follows it too.

    Returns:
        Whether all threads have ended. False means that a model is still at work and would crash the process when the
        interpreter ends: end the process with ``os._exit``.

    Raises:
        ConfigError: this configuration cannot be served.
        DeviceLost: the GPU has failed. The jobs are back in the queue: end the process with ``os._exit``, and start a
            new one.
        StorageError: the job database cannot be used; StorageLocked when another server uses it.
    """
    stop, reload = Asked(), Asked()
    with signals_handled(stop, reload if load is not None else None):
        return _run(config, insecure, stop, on_ready, Supervisor(), load, reload)


class Server:
    """The server in a thread of this process: ``with whisper_api.Server(config) as url:``.

    If the GPU fails, the server stops by itself and the log says so. Its jobs run in the server of a new process.

    Args:
        config: the configuration; None reads it as the command line does. With port 0 any free one is taken.
        insecure: accept that authorization is off while others can reach the server.
    """

    def __init__(self, config: Config | None = None, *, insecure: bool = False) -> None:
        self._config = Config.load().config if config is None else config
        self._insecure = insecure
        self._stop = Asked()
        self._changed = threading.Event()
        self._started: Started | None = None
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    @property
    def url(self) -> str:
        """The server's URL, without a slash at the end."""
        return self._running().url

    @property
    def api_key(self) -> str | None:
        """The administrator's key, when this start has made it because there was no key."""
        return self._running().api_key

    def start(self) -> str:
        """Start, and wait until the server listens.

        Returns:
            The URL.

        Raises:
            ConfigError: this configuration cannot be served.
            StorageError: the job database cannot be used.
            ForkedProcess: the server was started before this process was forked.
        """
        if self._thread is not None:
            if self._process != os.getpid():
                raise ForkedProcess(
                    f"this server runs in process {self._process}, from which this one ({os.getpid()}) was forked: "
                    "use its url here, or make another Server"
                )
            raise RuntimeError("a server is started once")
        self._process = os.getpid()
        # A daemon thread, so that a program that forgets to close the server can end. Accepted jobs are on the disk.
        self._thread = threading.Thread(target=self._serve, name="whisper-api-server", daemon=True)
        self._thread.start()
        try:
            self._changed.wait()
        except BaseException:
            self.close()
            raise
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self.url

    def close(self) -> None:
        """Stop as a signal would: running jobs have the configured grace. Further calls do nothing.

        In a process that was forked after the start nothing is stopped: the server goes on in the parent.
        """
        if self._process != os.getpid():
            return
        self._stop.ask()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *ignored: object) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            # The service manager of this process waits for the program that embeds the server.
            _run(self._config, self._insecure, self._stop, self._on_ready, Supervisor({}))
        except BaseException as error:
            self._failure = error
            if self._started is not None:
                log.critical("the server has failed", exc_info=error)
        finally:
            self._changed.set()

    def _on_ready(self, started: Started) -> None:
        self._started = started
        self._changed.set()

    def _running(self) -> Started:
        if self._started is None:
            raise RuntimeError("the server was not started")
        return self._started


def _run(
    config: Config,
    insecure: bool,
    stop: Asked,
    on_ready: Callable[[Started], None] | None,
    supervisor: Supervisor,
    load: LoadConfig | None = None,
    reload: Asked | None = None,
) -> bool:
    """Run a server in this thread until it stops; whether all of its threads have ended."""
    if not config.enable_authorization and not insecure and not only_local(config.host):
        raise ConfigError(
            f"ENABLE_AUTHORIZATION is false, and others can reach WHISPER_API_HOST {config.host}: listen on 127.0.0.1, "
            "switch authorization on, or say --insecure"
        )
    with contextlib.ExitStack() as stack:
        sockets = listen(config.host, config.port, timeout_seconds=config.timeout_seconds)
        metrics_sockets = []
        if config.metrics_port is not None:
            metrics_sockets = listen(config.metrics_host, config.metrics_port, timeout_seconds=config.timeout_seconds)
        for sock in (*sockets, *metrics_sockets):
            stack.callback(sock.close)
        # Imported after the sockets listen: the imports take a while, and clients that connect meanwhile wait.
        from whisper_api.access.audit import server_record
        from whisper_api.jobs.service import JobService
        from whisper_api.server.app import create_app, create_metrics_app
        from whisper_api.server.connections import Connections, bounds_of, raise_open_files, settings_of
        from whisper_api.server.middleware.proxies import TrustedAddresses

        settings = settings_of(config)
        bounds = bounds_of(config, raise_open_files())
        # Many clients share a proxy's address.
        proxies = TrustedAddresses(config.trusted_proxies)
        service = JobService.open(config)
        stack.callback(service.close)
        service.on_fault(stop.ask)
        app = create_app(config, service=service, insecure=insecure)
        token = None
        keys = service.keys
        if config.enable_authorization and not keys.any():
            first, token = keys.create(FIRST_KEY_NAME, "admin")
            service.audit.write(server_record("key.create", first.key_id))
        scheme = "https" if settings.ssl_enabled else "http"
        started = Started(url_of(scheme, sockets[0]), token)

        async def serve_until_stopped() -> None:
            asyncio.get_running_loop().set_exception_handler(_log_loop_error)
            connections = Connections(app, settings, bounds, proxies=proxies)
            for_monitoring = Connections(create_metrics_app(app, config), settings, bounds)
            # A thread of its own, because running jobs may occupy all other threads.
            with ThreadPoolExecutor(1, thread_name_prefix="stop") as thread:
                async with app.router.lifespan_context(app):
                    try:
                        await _in(thread, service.start)
                        await connections.accept(sockets)
                        if metrics_sockets:
                            await for_monitoring.accept(metrics_sockets)
                            log.info("metrics", extra={"url": f"{url_of(scheme, metrics_sockets[0])}/metrics"})
                        if on_ready is not None:
                            on_ready(started)
                        supervisor.report("READY=1")
                        with contextlib.ExitStack() as running:
                            running.enter_context(supervisor.watched())
                            if load is not None and reload is not None:
                                service.settings.register(set_level)
                                parts = (connections, for_monitoring)
                                reloading = reload_when_asked(reload, load, service.settings, supervisor, parts)
                                running.callback(asyncio.create_task(reloading).cancel)
                            await stop.wait()
                            supervisor.report("STOPPING=1")
                            await _drain(app.state.server, thread)
                    finally:
                        await connections.close(LAST_ANSWERS_SECONDS)
                        await for_monitoring.close(0.0)

        asyncio.run(serve_until_stopped())
    log.info("stopped")
    if service.fault is not None:
        raise service.fault
    return not service.hangs


async def _drain(state: ServerState, thread: ThreadPoolExecutor) -> None:
    """Accept no new jobs, and wait for the running ones. Requests for the status of jobs still get a response."""
    grace = state.config.shutdown_grace_seconds
    log.info("stopping", extra={"grace_seconds": grace})
    state.draining.set()
    await _in(thread, state.service.drain)
    await _in(thread, state.service.stop, grace)
    state.stopped.set()


async def _in(thread: ThreadPoolExecutor, function: Callable[..., None], *args: object) -> None:
    await asyncio.get_running_loop().run_in_executor(thread, function, *args)


def _log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    from whisper_api.server.connections import log_lost

    error = context.get("exception")
    if error is None:
        log.warning("%s", context.get("message", "an error on the event loop"))
    else:
        log_lost(error)


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
            reload_log.exception("the configuration could not be read again: the old one stays in force")
        finally:
            supervisor.report("READY=1")


async def _reload(load: LoadConfig, settings: LiveConfig, connections: Sequence[Connections]) -> None:
    from whisper_api.server.app import checked

    try:
        loaded = await asyncio.to_thread(load)
        checked(loaded.config)
    except ConfigError as error:
        reload_log.error("the configuration cannot be used, and the old one stays in force: %s", error)
        return
    for warning in loaded.warnings:
        reload_log.warning("%s", warning)
    change = settings.difference(loaded.config)
    # Told before or after the change: a new level of the log must not hide what has changed.
    told = reload_log.isEnabledFor(logging.INFO)
    if told:
        _tell(change)
    settings.change(loaded.config)
    if not told:
        _tell(change)
    try:
        for each in connections:
            each.renew_certificate()
    except OSError as error:
        reload_log.error("the certificate cannot be used, and the old one stays in force: %s", error)


def _tell(change: Change) -> None:
    reload_log.info("configuration read again", extra={"changed": "; ".join(change.applied) or "nothing"})
    if change.waiting:
        reload_log.warning("these keys have new values that need a restart: %s", ", ".join(change.waiting))
