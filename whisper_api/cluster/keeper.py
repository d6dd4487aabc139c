"""Keeps an actor on each place for an engine, and knows which of them take jobs."""

from __future__ import annotations

import collections
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from whisper_api.cluster.actor import CONTROL, JOBS, EngineActor, EngineStatus, identity
from whisper_api.cluster.messages import ClusterState, Setup
from whisper_api.cluster.placement import Engine, Load, Node, Post, Seat, choose, difference, posts
from whisper_api.records import made_of

TICK_SECONDS = 0.5
# The state is sent on after this time, even when nothing has changed but numbers.
REPORT_SECONDS = 2.0
# An engine that says nothing for this time gets no jobs: a model that loads may hold the interpreter for a while.
SILENT_SECONDS = 30.0
# Ray answers no question about the cluster for this time: the head has gone, and a new driver looks for it.
AWAY_SECONDS = 20.0
CONTROL_THREADS = 8
# More kinds of jobs than this are not remembered.
MOST_NEEDS = 1000


class Keeper:
    """Makes, watches and ends the engines of a cluster that this process has joined.

    Args:
        setup: what the front wants.
        report: receives the state of the cluster, in any thread.
    """

    def __init__(self, setup: Setup, report: Callable[[ClusterState], None]) -> None:
        self._setup = setup
        self._report = report
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._engines: dict[str, Engine] = {}
        self._nodes: list[Node] = []
        self._wanted = 0
        self._reported: tuple[Any, ...] = ()
        self._reported_at = 0.0
        self._revisions = dict(setup.revisions)
        # Of the keeper's thread only:
        self._trouble = ""

    def start(self) -> None:
        """Begin to keep engines, in a thread."""
        if self._setup.workers is not None:
            from ray.autoscaler.sdk import request_resources

            # Without an autoscaler nobody reads this.
            each = self._setup.resources or {"CPU": 1.0}
            request_resources(
                bundles=[{name: int(-(-amount // 1)) for name, amount in each.items()}] * self._setup.workers
            )
        threading.Thread(target=self._loop, name="keeper", daemon=True).start()

    def wake(self) -> None:
        """Let everyone who waits for an engine look again."""
        with self._changed:
            self._changed.notify_all()

    def take(self, load: Load, canceled: threading.Event) -> str | None:
        """Wait for an engine for a job, and place the job there.

        Args:
            load: the job.
            canceled: set, followed by :meth:`wake`, when nobody waits for the job any more.

        Returns:
            The engine's name; None when the job was canceled.
        """
        with self._changed:
            while not canceled.is_set():
                seat = choose([engine.seat for engine in self._engines.values()], load)
                if seat is not None:
                    load.fraction = 0.0
                    seat.loads[load.call] = load
                    return seat.name
                self._changed.wait()
            self._unreserve(load.call)
            return None

    def give_back(self, name: str, load: Load) -> None:
        """Take a job from an engine."""
        with self._changed:
            if name in self._engines:
                self._engines[name].seat.loads.pop(load.call, None)
            self._changed.notify_all()

    def completed(self, name: str, load: Load) -> None:
        """Count a job that an engine has ended without an error."""
        with self._changed:
            if name in self._engines:
                engine = self._engines[name]
                engine.audio_seconds += load.audio_seconds
                engine.done.append((time.monotonic(), load.audio_seconds))

    def lost(self, name: str) -> None:
        """Give no more jobs to an engine whose process has ended, until it answers again."""
        with self._changed:
            if name in self._engines:
                self._engines[name].status = None
                self._engines[name].question = None
                self._open_seats()
        # At once, because the engine may be back before the next tick.
        self._tell()

    def preferred(self, needs: str) -> list[str]:
        """The engines that answer questions: those that lack least first, then those with least work."""
        with self._changed:
            seats = [engine.seat for engine in self._engines.values() if engine.seat.open]
            seats.sort(key=lambda seat: (len(seat.lacks.get(needs, ())), seat.queued, seat.name))
            return [seat.name for seat in seats]

    def learn(self, name: str, needs: str, models: tuple[str, ...]) -> None:
        """Note which models an engine lacks.

        Args:
            name: the engine.
            needs: what the models depend on.
            models: their names.
        """
        with self._changed:
            if name in self._engines:
                lacks = self._engines[name].seat.lacks
                if len(lacks) > MOST_NEEDS:
                    lacks.clear()
                lacks[needs] = models

    def downloaded(self, name: str, model: str, *, failed: bool) -> None:
        """Note that an engine has downloaded a model, or could not."""
        with self._changed:
            if name in self._engines:
                seat = self._engines[name].seat
                if failed:
                    seat.unable.add(model)
                else:
                    seat.unable.discard(model)
                    seat.lacks.clear()
            self._changed.notify_all()

    def invoke(self, name: str, method: str, *arguments: Any) -> Any:
        """Call a method of an actor that does not wait for jobs; the reference of its value."""
        return self._method(name, method).options(concurrency_group=CONTROL).remote(*arguments)

    def stream(self, name: str, method: str, *arguments: Any) -> Iterator[Any]:
        """Call a generator method of an actor; the references of what it yields."""
        options = {"concurrency_group": JOBS, "num_returns": "streaming"}
        found: Iterator[Any] = self._method(name, method).options(**options).remote(*arguments)
        return found

    def _method(self, name: str, method: str) -> Any:
        from ray.exceptions import ActorDiedError

        with self._changed:
            if name not in self._engines:
                raise ActorDiedError(f"engine {name} is no longer there")
            return getattr(self._engines[name].actor, method)

    def _loop(self) -> None:
        answered_at = time.monotonic()
        while True:
            try:
                self._tick()
                self._trouble = ""
                answered_at = time.monotonic()
            except BaseException as error:
                traceback.print_exc()
                self._trouble = f"The cluster gives no answer: {type(error).__name__}: {' '.join(str(error).split())}"
                self._tell()
                if time.monotonic() - answered_at > AWAY_SECONDS:
                    os._exit(1)
            time.sleep(TICK_SECONDS)

    def _tick(self) -> None:
        nodes, draining = self._look()
        with self._changed:
            self._nodes = nodes
        staying = [node for node in nodes if node.node_id not in draining]
        wanted = {post.name: post for post in posts(staying, self._setup.resources, self._setup.workers)}
        alive = {node.node_id for node in nodes}
        with self._changed:
            self._wanted = max(len(wanted), self._setup.workers or 0, 1)
            engines = list(self._engines.values())
        for engine in engines:
            if engine.post.node.node_id not in alive:
                self._drop(engine)
            engine.draining = engine.post.name not in wanted
            if engine.draining and not engine.seat.loads:
                self._drop(engine)
        for name, post in wanted.items():
            if name not in self._engines:
                self._add(post)
        self._hear()
        self._tell()

    def _look(self) -> tuple[list[Node], set[str]]:
        """The machines, and the ids of those that are to be emptied."""
        import ray
        from ray._private.state import state

        alive = [node for node in ray.nodes() if node["Alive"]]
        own = ray.get_runtime_context().get_node_id()
        if own not in {node["NodeID"] for node in alive}:
            # The driver cannot use the cluster without its machine's part.
            os._exit(1)
        hosts = collections.Counter(node["NodeManagerHostname"] for node in alive)
        nodes = []
        for node in alive:
            host = node["NodeManagerHostname"] or node["NodeManagerAddress"]
            name = host if hosts[host] < 2 else f"{host}/{node['NodeID'][:6]}"
            nodes.append(Node(node["NodeID"], name, node["Resources"]))
        # Machines without a resource at all hold the head or the front, and no engine.
        usable = [node for node in nodes if node.resources.get("CPU", 0) or node.resources.get("GPU", 0)]
        return usable, set(state.get_draining_nodes())

    def _add(self, post: Post) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        needs = dict(post.needs)
        gpus = needs.pop("GPU", 0)
        options: dict[str, Any] = {
            "num_cpus": needs.pop("CPU", 0),
            "num_gpus": gpus,
            "resources": needs,
            "max_restarts": -1,
            "max_task_retries": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(post.node.node_id, soft=False),
            "concurrency_groups": {JOBS: self._setup.jobs_per_engine, CONTROL: CONTROL_THREADS},
        }
        kind: Any = ray.remote(**options)(EngineActor)
        actor = kind.remote(post.name, identity(), self._setup.config, self._setup.engine, gpus > 0)
        seat = Seat(post.name, self._setup.jobs_per_engine, open=False)
        with self._changed:
            self._engines[post.name] = Engine(post, actor, seat)

    def _drop(self, engine: Engine) -> None:
        import ray

        with self._changed:
            self._engines.pop(engine.post.name, None)
            self._changed.notify_all()
        ray.kill(engine.actor)

    def _hear(self) -> None:
        """Take the statuses that have come, and ask for the next ones."""
        import ray
        from ray.exceptions import RayError

        with self._changed:
            engines = list(self._engines.values())
        asked = {engine.question: engine for engine in engines if engine.question is not None}
        done = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        for ref in done:
            engine = asked[ref]
            try:
                found, failure = ray.get(ref), None
            except RayError as error:
                found, failure = None, error
            with self._changed:
                if engine.question is not ref:
                    # The answer is that of a process which has ended meanwhile.
                    continue
                engine.question = None
                if failure is None:
                    self._judge(engine, found)
                else:
                    self._not_heard(engine, failure)
        for engine in engines:
            if engine.question is None:
                engine.question = engine.actor.status.options(concurrency_group=CONTROL).remote()
        with self._changed:
            self._open_seats()

    def _not_heard(self, engine: Engine, error: Exception) -> None:
        from ray.exceptions import ActorDiedError

        engine.status = None
        # An actor that dies while it is made never comes back by itself: it is made again.
        if isinstance(error, ActorDiedError):
            text = " ".join(str(error).split())
            engine.refusal = f"The engine cannot start: {text[:300]}"
            self._engines.pop(engine.post.name, None)

    def _judge(self, engine: Engine, found: dict[str, Any]) -> None:
        """Decide whether an engine is used, by its status."""
        if found.get("refusal"):
            engine.refusal = found["refusal"]
            engine.status = EngineStatus(version=str(found.get("version")), refusal=engine.refusal)
            return
        status = msgspec.convert(found, EngineStatus)
        if status.incarnation != (engine.status.incarnation if engine.status else ""):
            engine.seat.lacks.clear()
            engine.seat.unable.clear()
        engine.status, engine.heard_at = status, time.monotonic()
        engine.refusal = difference(status, identity()["version"], self._revisions)
        engine.seat.resident = frozenset(status.models)

    def _open_seats(self) -> None:
        now = time.monotonic()
        for engine in self._engines.values():
            status = engine.status
            fresh = now - engine.heard_at < SILENT_SECONDS
            engine.seat.open = (
                status is not None and status.ready and fresh and not engine.refusal and not engine.draining
            )
        self._changed.notify_all()

    def _unreserve(self, call: int) -> None:
        for engine in self._engines.values():
            if engine.seat.reserved == call:
                engine.seat.reserved = None

    def _tell(self) -> None:
        """Report the state when it has changed, or after a while."""
        now = time.monotonic()
        with self._changed:
            state = self._state(now)
            key = state.reason, state.wanted, state.failure, tuple((each.name, each.state) for each in state.engines)
            if key != self._reported or now - self._reported_at > REPORT_SECONDS:
                self._reported, self._reported_at = key, now
                self._report(state)

    def _state(self, now: float) -> ClusterState:
        engines = tuple(engine.facts(now) for engine in self._engines.values())
        ready = [engine.status for engine in self._engines.values() if engine.status is not None and engine.seat.open]
        failures = [status.failure for status in ready if status.failure]
        troubled = [f"{each.name}: {each.reason}" for each in engines if each.reason]
        lost = [each.name for each in engines if each.state == "lost"]
        reason = self._trouble or (troubled[0] if troubled else "")
        if not reason and lost:
            reason = f"Engine {lost[0]} has ended and is started again."
        if not reason and not self._nodes:
            reason = "The cluster has no machine with a GPU or a CPU for engines."
        elif not reason and len(engines) < self._wanted:
            reason = f"The machines have room for {len(engines)} engines."
        first = ready[0] if ready else EngineStatus()
        return made_of(
            first,
            ClusterState,
            connected=True,
            reason=reason,
            wanted=self._wanted,
            nodes=len(self._nodes),
            engines=engines,
            failure=failures[0] if failures and len(failures) == len(ready) else "",
            activity=next((status.activity for status in ready if status.activity), ""),
            statistics=tuple(self._statistics()),
        )

    def _statistics(self) -> Iterator[dict[str, Any]]:
        seen: set[tuple[str, str]] = set()
        for engine in self._engines.values():
            for each in engine.status.statistics if engine.status is not None else ():
                node, device = engine.post.node.name, each["device"]
                if (node, device) in seen:
                    device = f"{device}/{engine.post.number}"
                seen.add((node, device))
                yield {**each, "device": device, "node": node}
