"""The messages between the front, the driver process and the actors."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec

from whisper_api.jobs.executor import EngineFacts
from whisper_api.schema import PartialSegments, Progress, Transcript
from whisper_api.store.rows import Job
from whisper_api.voices import VoiceEmbedding

# Kinds of messages about a job, most of which come from an actor as they are. BEGAN: the engine of this name has it.
# LOST: the engine or its device has ended.
BEGAN, PROGRESS, PARTIAL, MISSING = "began", "progress", "partial", "missing"
DONE, RAISED, LOST = "done", "raised", "lost"
# An answer to Ask; the state of the cluster; the driver process itself has ended.
ANSWER, STATE, GONE = "answer", "state", "gone"


class Setup(msgspec.Struct, frozen=True):
    """The first message to a driver process.

    Attributes:
        address: address of the cluster's head; None to start Ray on this machine.
        config: the pickled configuration of the front. Only an actor of the same version unpickles it.
        engine: module and class of the executor inside each actor.
        workers: number of engines; None for as many as the machines have room for.
        resources: resource to amount that an engine takes.
        jobs_per_engine: number of jobs that an engine runs at a time.
        revisions: model to revision of the models that the front has itself.
    """

    address: str | None
    config: bytes
    engine: str
    workers: int | None
    resources: dict[str, float]
    jobs_per_engine: int
    revisions: dict[str, str]


class RunJob(msgspec.Struct, frozen=True, tag=True):
    """Run a job.

    Attributes:
        call: number of the call.
        job: the encoded job.
        files: names and paths of the upload and of the recordings of known speakers.
        voices: the encoded voices of known speakers.
        audio_seconds: length of the audio, or an estimate.
        model: name of the Whisper model.
        needs: what the job's models depend on, for :class:`Ask` with ``missing_models``.
        alone: whether the engine runs no other job meanwhile.
    """

    call: int
    job: bytes
    files: dict[str, str]
    voices: bytes
    audio_seconds: float
    model: str
    needs: str
    alone: bool


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Call a method of engines.

    Attributes:
        call: number of the call.
        method: name of a method of the actor's table.
        arguments: its pickled arguments.
        of: ``one`` engine, ``every`` engine, or engines until one is ``content``, with an empty answer.
        needs: as in :class:`RunJob`.
    """

    call: int
    method: str
    arguments: bytes
    of: str = "one"
    needs: str = ""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop a call."""

    call: int


class Proceed(msgspec.Struct, frozen=True, tag=True):
    """Go on without the model that was missing."""

    call: int


Request = RunJob | Ask | Cancel | Proceed
# Kind and payload.
Message = tuple[str, bytes]
# Number of the call (0 for the state of the cluster), and messages about it.
Frame = tuple[int, list[Message]]


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the cluster.

    Attributes:
        connected: whether the driver process is part of a cluster.
        reason: why there are fewer engines than wanted; empty when there is nothing to say.
        wanted: number of engines that the configuration and the machines ask for.
        nodes: number of machines.
        engines: the engines.
        device, model, compute_type: of jobs that name no model, from an engine that is ready; empty before.
        failure: why no engine can load its models; empty when one has.
        activity: what an engine does besides jobs.
        statistics: what the devices have done, as built-in values.
    """

    connected: bool = False
    reason: str = ""
    wanted: int = 0
    nodes: int = 0
    engines: tuple[EngineFacts, ...] = ()
    device: str = ""
    model: str = ""
    compute_type: str = ""
    failure: str = ""
    activity: str = ""
    statistics: tuple[dict[str, Any], ...] = ()


job_decoder = msgspec.msgpack.Decoder(Job)
voices_decoder = msgspec.msgpack.Decoder(dict[str, VoiceEmbedding])
progress_decoder = msgspec.msgpack.Decoder(Progress)
partial_decoder = msgspec.msgpack.Decoder(PartialSegments)
transcript_decoder = msgspec.msgpack.Decoder(Transcript)


def encode_error(error: BaseException) -> bytes:
    """The error without its traceback, whose frames hold audio and text."""
    try:
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:
        return pickle.dumps((type(error).__name__, str(error)))
    return content


def decode_error(content: bytes) -> BaseException:
    """The error of :func:`encode_error`; one that cannot be pickled becomes another of the same name and message."""
    found = pickle.loads(content)
    if isinstance(found, BaseException):
        return found
    name, message = found
    error: BaseException = type(name, (Exception,), {})(message)
    return error
