"""What the keeper knows of one engine."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

from whisper_api.cluster.actor import EngineStatus
from whisper_api.cluster.fleet import Post
from whisper_api.cluster.placement import Seat
from whisper_api.jobs.executor import EngineFacts
from whisper_api.records import made_of

__all__ = ["Engine", "difference"]

# The speed of an engine is the mean of this time.
SPEED_SECONDS = 300.0


def difference(status: EngineStatus, version: str, revisions: dict[str, str]) -> str:
    """Why an engine must not be used beside the front and the other engines; empty when it may.

    Args:
        status: what the engine says of itself.
        version: the front's version.
        revisions: model to revision of the front and of the engines before; the engine's further models are added.
    """
    if status.version != version:
        return f"This machine has whisper-api {status.version}, the front has {version}"
    for name, revision in status.revisions.items():
        if revisions.setdefault(name, revision) != revision:
            return (
                f"This machine has revision {revision[:20]} of the model {name}, the others have "
                f"{revisions[name][:20]}: `whisper-api models pull {name}` on all of them"
            )
    return ""


@dataclass(eq=False)
class Engine:
    """An actor and what is known of it.

    Attributes:
        post: its place.
        actor: Ray's handle.
        seat: what the placement knows.
        status: its last status; None until it answers, and again when its process has ended.
        heard_at: when it answered last.
        question: the reference of the status that it was asked for.
        refusal: why it is not used.
        draining: whether it gets no further jobs and ends when it has none.
        done: times and lengths of the jobs that it has completed lately.
        audio_seconds: seconds of audio of all jobs that it has completed.
    """

    post: Post
    actor: Any
    seat: Seat
    status: EngineStatus | None = None
    heard_at: float = 0.0
    question: Any = None
    refusal: str = ""
    draining: bool = False
    done: collections.deque[tuple[float, float]] = field(default_factory=collections.deque)
    audio_seconds: float = 0.0

    def facts(self, now: float) -> EngineFacts:
        """What people see of it."""
        status = self.status or EngineStatus()
        while self.done and now - self.done[0][0] > SPEED_SECONDS:
            self.done.popleft()
        reason = self.refusal or status.failure
        return made_of(
            status,
            EngineFacts,
            name=self.post.name,
            node=self.post.node.name,
            state="refused"
            if self.refusal
            else "draining"
            if self.draining
            else "lost"
            if self.status is None and self.heard_at
            else "ready"
            if self.seat.open
            else "starting",
            reason=reason,
            running_jobs=len(self.seat.loads),
            queued_audio_seconds=round(self.seat.queued if self.seat.loads else 0.0, 1),
            resident_models=status.models,
            audio_seconds=round(self.audio_seconds, 1),
            audio_seconds_per_second=round(sum(seconds for _, seconds in self.done) / SPEED_SECONDS, 2),
        )
