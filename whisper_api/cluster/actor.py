"""The actor of an engine: runs jobs on an executor of its own, in one of Ray's processes.

The executor is the one that runs jobs without a cluster, so a job gives the same transcript. Errors and texts are
returned as values and never raised through Ray, which would log them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import queue
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from whisper_api import __version__
from whisper_api.cluster import messages
from whisper_api.errors import Canceled, DeviceLost, EngineLost
from whisper_api.records import made_of
from whisper_api.schema import PartialSegments, Progress

if TYPE_CHECKING:
    from whisper_api.config import Config
    from whisper_api.jobs.executor import Executor
    from whisper_api.jobs.preload import Preload

# Concurrency groups: a job, and what must not wait for one.
JOBS, CONTROL = "jobs", "control"
# A progress that says nothing new is sent on after this time, as a sign of life.
BEAT_SECONDS = 5.0
# Messages within this time travel together: each transfer costs the front's driver as much as many messages do.
TOGETHER_SECONDS = 0.1
# The driver takes the last messages of an actor whose device is lost within this time.
LAST_SECONDS = 1.0
ENDS = frozenset((messages.DONE, messages.RAISED, messages.LOST))
VOICE_MODELS = ("community-1", "segmentation-3.0", "campplus", "ecapa")


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine says of itself. The first four fields are the same in every version.

    Attributes:
        version, python: of the package, and of Python without its last number.
        incarnation: differs after each start of the actor.
        refusal: why the actor runs no jobs; empty when it does.
        ready: whether the models were loaded, or could not be; jobs may run.
        failure: why the models could not be loaded.
        device, model, compute_type: of jobs that name no model.
        models: names of the models in memory.
        resident_bytes: their approximate size.
        revisions: model to revision of the files on this machine.
        activity: what the engine does besides jobs.
        statistics: what the devices have done, as built-in values.
    """

    version: str = ""
    python: str = ""
    incarnation: str = ""
    refusal: str = ""
    ready: bool = False
    failure: str = ""
    device: str = ""
    model: str = ""
    compute_type: str = ""
    models: tuple[str, ...] = ()
    resident_bytes: int = 0
    revisions: dict[str, str] = {}
    activity: str = ""
    statistics: tuple[dict[str, Any], ...] = ()


def identity() -> dict[str, str]:
    """What the front and an engine must have in common."""
    return {"version": __version__, "python": ".".join(platform.python_version_tuple()[:2])}


def load_executor(name: str, config: Config) -> Executor:
    """An executor by the name of its module and class, as in ``package.module:Class``."""
    module, _, kind = name.partition(":")
    executor: Executor = getattr(import_module(module), kind)(config)
    return executor


class _Run:
    """A job that runs, or that was canceled before it came."""

    def __init__(self) -> None:
        self.cancel = threading.Event()
        self.go_on = threading.Event()


class EngineActor:
    """Holds the executor of one GPU or machine. Ray calls the methods in threads.

    Args:
        name: name of the engine.
        front: the identity of the front.
        config: the pickled configuration of the front; unpickled only when the identities agree.
        executor: name of the executor.
        gpu: whether the engine has a GPU.
    """

    def __init__(self, name: str, front: Mapping[str, str], config: bytes, executor: str, gpu: bool) -> None:
        self._incarnation = uuid.uuid4().hex
        # Set once, when no further job may come.
        self._ending = False
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._runs: dict[str, _Run] = {}
        own = identity()
        names = {"version": "whisper-api", "python": "Python"}
        differing = [f"{names[each]} {own[each]}" for each in own if front.get(each) != own[each]]
        self._refusal = ""
        if differing:
            wanted = " and ".join(f"{names[each]} {front.get(each)}" for each in own if front.get(each) != own[each])
            self._refusal = (
                f"This machine has {' and '.join(differing)}, the front has {wanted}: install the same on both"
            )
            return
        try:
            self._start(name, pickle.loads(config), executor, gpu)
        except Exception as error:
            self._refusal = f"The engine cannot start: {type(error).__name__}: {error}"

    def _start(self, name: str, config: Config, executor: str, gpu: bool) -> None:
        from whisper_api.cluster.directories import own_directory
        from whisper_api.config import Config as ConfigOfMachine
        from whisper_api.jobs.preload import Preload
        from whisper_api.logs import set_up

        here = ConfigOfMachine.load().config
        self._directory = own_directory(here.tmp_dir / "cluster", name)
        # All is as on the front, except what belongs to this machine.
        self._config = replace(
            config,
            executor="local",
            models_dir=here.models_dir,
            tmp_dir=self._directory,
            data_dir=here.data_dir,
            hf_token=config.hf_token or here.hf_token,
            device="cuda" if gpu else "cpu",
            device_index=0,
        )
        set_up(self._config)
        self._executor = load_executor(executor, self._config)
        self._preload: Preload = Preload(self._executor, idle=lambda: not self._runs, on_device_lost=self._end)
        self._preload.start()

    def status(self) -> dict[str, Any]:
        """The engine's :class:`EngineStatus` as built-in values, which every version reads."""
        status = replace(EngineStatus(incarnation=self._incarnation, refusal=self._refusal), **identity())
        if not self._refusal:
            facts = self._executor.facts()
            status = made_of(
                facts,
                EngineStatus,
                incarnation=self._incarnation,
                **identity(),
                ready=self._preload.tried and not self._ending,
                failure=self._preload.failure,
                device=self._device_name(facts.device),
                revisions=revisions(self._config.models_dir, facts.model),
                activity=self._executor.activity,
                statistics=tuple(
                    {**msgspec.to_builtins(each), "device": self._device_name(each.device)} for each in facts.devices
                ),
            )
        found: dict[str, Any] = msgspec.to_builtins(status)
        return found

    def call(self, call: str, method: str, arguments: bytes) -> tuple[bool, bytes]:
        """Call a method of the executor.

        Args:
            call: number of the call, for :meth:`cancel`.
            method: check, missing_models, download_model or enroll.
            arguments: the pickled arguments.

        Returns:
            Whether it returned, and its pickled value, or its encoded error.
        """
        run = self._run(call)
        try:
            if self._refusal:
                raise EngineLost(self._refusal)
            given = list(pickle.loads(arguments))
            if method == "download_model":
                given.insert(1, run.cancel)
            return True, pickle.dumps(getattr(self._executor, method)(*given))
        except DeviceLost as error:
            # The front must not take this for the failure of its own device.
            self._end(error)
            return False, messages.encode_error(EngineLost(str(error)))
        except BaseException as error:
            return False, messages.encode_error(error)
        finally:
            self._forget(call)

    def receive(self, call: str, name: str, offset: int, piece: Any) -> None:
        """Write a piece of a file.

        Args:
            call: number of the call.
            name: name of the file.
            offset: where the piece begins.
            piece: an array of bytes.
        """
        folder = self._directory / call
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
            file.seek(offset)
            file.write(piece)

    def run(
        self, call: str, job: bytes, pieces: dict[str, tuple[int, Any]], voices: bytes
    ) -> Iterator[list[messages.Message]]:
        """Run a job.

        Args:
            call: number of the call.
            job: the encoded job.
            pieces: file to the offset and the bytes of its last piece.
            voices: the encoded voices of known speakers.

        Yields:
            Messages: PROGRESS, PARTIAL and MISSING, at last DONE, RAISED or LOST.
        """
        sent: queue.SimpleQueue[messages.Message] = queue.SimpleQueue()
        threading.Thread(target=self._work, args=(call, job, pieces, voices, sent.put), name="job").start()
        yield from together(sent.get, TOGETHER_SECONDS)

    def cancel(self, call: str) -> None:
        """Stop a call within one work item, also one that has not come yet."""
        run = self._run(call)
        run.cancel.set()
        run.go_on.set()

    def proceed(self, call: str) -> None:
        """Let a job go on without the model that it was missing."""
        self._run(call).go_on.set()

    def _work(
        self,
        call: str,
        job: bytes,
        pieces: dict[str, tuple[int, Any]],
        voices: bytes,
        send: Callable[[messages.Message], None],
    ) -> None:
        run = self._run(call)
        last, sent_at = Progress(0.0, "load"), 0.0

        def on_progress(progress: Progress) -> None:
            nonlocal last, sent_at
            now = time.monotonic()
            if progress != last or now - sent_at > BEAT_SECONDS:
                last, sent_at = progress, now
                send((messages.PROGRESS, msgspec.msgpack.encode(progress)))

        def on_partial(partial: PartialSegments) -> None:
            send((messages.PARTIAL, msgspec.msgpack.encode(partial)))

        def on_missing_model(name: str) -> None:
            run.go_on.clear()
            send((messages.MISSING, name.encode()))
            run.go_on.wait()
            if run.cancel.is_set():
                raise Canceled("the job was canceled")

        try:
            if self._refusal:
                raise EngineLost(self._refusal)
            # Emptied, because Ray keeps the arguments of a call until the next one, and the store what they view.
            while pieces:
                self.receive(call, *_flat(pieces.popitem()))
            transcript = self._executor.run(
                messages.job_decoder.decode(job),
                self._directory / call / "audio",
                on_progress=on_progress,
                on_partial=on_partial,
                on_missing_model=on_missing_model,
                cancel=run.cancel,
                voices=messages.voices_decoder.decode(voices),
            )
            last_message = messages.DONE, msgspec.msgpack.encode(transcript)
        except DeviceLost as error:
            # The front must not take this for the failure of its own device.
            last_message = messages.LOST, str(error).encode()
            self._end(error)
        except BaseException as error:
            last_message = messages.RAISED, messages.encode_error(error)
        finally:
            self._forget(call)
            shutil.rmtree(self._directory / call, ignore_errors=True)
        # Last, so that nothing of a job is left when its outcome is known.
        send(last_message)

    def _end(self, error: DeviceLost) -> None:
        """End the process, whose device is lost; Ray starts it anew."""
        self._ending = True
        timer = threading.Timer(LAST_SECONDS, os._exit, (75,))
        timer.daemon = True
        timer.start()

    def _run(self, call: str) -> _Run:
        with self._lock:
            return self._runs.setdefault(call, _Run())

    def _forget(self, call: str) -> None:
        with self._lock:
            self._runs.pop(call, None)

    def _device_name(self, device: str) -> str:
        """The device with the number that the machine's GPU has outside of this process."""
        if device.startswith("cuda"):
            with contextlib.suppress(Exception):
                import ray

                ids = ray.get_gpu_ids()
                return f"cuda:{ids[0]}" if ids else device
        return device


def together(get: Callable[..., messages.Message], seconds: float) -> Iterator[list[messages.Message]]:
    """Group the messages of a job, until its last one.

    A message waits for others while the last group is younger than this time; the last message waits for nothing.

    Args:
        get: returns the next message; with ``timeout`` in seconds, raises ``queue.Empty`` when none comes in time.
        seconds: least time between two groups.
    """
    sent_at = time.monotonic()
    while True:
        group = [get()]
        with contextlib.suppress(queue.Empty):
            while group[-1][0] not in ENDS:
                group.append(get(timeout=max(0.0, sent_at + seconds - time.monotonic())))
        yield group
        sent_at = time.monotonic()
        if group[-1][0] in ENDS:
            return


def _flat(item: tuple[str, tuple[int, Any]]) -> tuple[str, int, Any]:
    name, (offset, piece) = item
    return name, offset, piece


def revisions(models_dir: Path, model: str) -> dict[str, str]:
    """Model to revision of the models that decide what a transcript says, as far as they are on this machine.

    Args:
        models_dir: the models directory.
        model: name of the default Whisper model.
    """
    from whisper_api.engine.models.store import ModelStore

    store = ModelStore(models_dir)
    found = ((name, store.find(name)) for name in (model, *VOICE_MODELS))
    return {name: local.revision for name, local in found if local is not None and local.revision}
