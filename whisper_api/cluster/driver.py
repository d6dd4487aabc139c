"""The driver process: joins the cluster, keeps its engines, and passes calls of the front on to them.

It ends when the front has ended or when its cluster is lost; the front starts another one then. Its actors end with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from whisper_api.cluster import messages
from whisper_api.cluster.keeper import Keeper
from whisper_api.cluster.runs import Run
from whisper_api.cluster.security import check_address, check_nodes
from whisper_api.errors import Canceled

NAMESPACE = "whisper-api"
# Ray itself retries for minutes before it says that nothing answers.
PROBE_SECONDS = 3.0
JOIN_SECONDS = 6.0
NO_HEAD = (
    "Something answers at RAY_ADDRESS {address}, but not as the head of a Ray cluster: does the address name the head, "
    "and does the head run?"
)
REFUSED = (
    "The head at RAY_ADDRESS {address} refuses the front's token: RAY_AUTH_MODE and RAY_AUTH_TOKEN (or "
    "RAY_AUTH_TOKEN_PATH) must be the same on every machine"
)
NO_NODE = (
    "The head lets the front in, but the front sees no part of this cluster on its own machine: run `whisper-api "
    "worker` there, and let a container of the front share processes, network and /tmp with it."
)
ASK_SECONDS = 15.0
LOOK_SECONDS = 0.2
# Downloads take as long as they take; they end by themselves when nothing arrives.
LONG = frozenset(("download_model", "enroll"))
# Ray on this machine alone: audio passes in pieces, so little room is enough.
LOCAL_STORE_BYTES = 256 << 20


def main(descriptor: int) -> None:
    """Serve the front until it or the cluster has gone.

    Args:
        descriptor: of the socket to the front.
    """
    front = Front(Connection(descriptor))
    try:
        setup = msgspec.msgpack.decode(front.receive(), type=messages.Setup)
        keeper = _join(setup, front)
    except Exception as error:
        front.send(0, (messages.STATE, msgspec.msgpack.encode(messages.ClusterState(reason=_sentence(error)))))
        traceback.print_exc()
        return
    Driver(front, keeper).serve()
    # Without Ray's farewell, which waits for a cluster that may be gone. The actors end with their driver.
    os._exit(0)


def _join(setup: messages.Setup, front: Front) -> Keeper:
    check_address(setup.address)
    if setup.address is not None:
        host, _, port = setup.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
        except OSError as error:
            raise ConnectionError(f"Nothing answers at RAY_ADDRESS {setup.address}: {error}") from error
        with _told_late(front, NO_HEAD.format(address=setup.address)):
            _greet(setup.address)
    import ray

    local: dict[str, Any] = {}
    if setup.address is None:
        local = {
            "include_dashboard": False,
            "object_store_memory": LOCAL_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    with _told_late(front, NO_NODE if setup.address is not None else "Ray is starting."):
        ray.init(
            address=setup.address or "local", namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **local
        )
    check_nodes(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])
    keeper = Keeper(setup, lambda state: front.send(0, (messages.STATE, msgspec.msgpack.encode(state))))
    keeper.start()
    return keeper


def _greet(address: str) -> None:
    """Ask the head whether it lets this process in, since Ray's own start tells it only after a minute.

    Raises:
        PermissionError: the head refuses this process's token.
    """
    from ray._private.services import GcsClient
    from ray.exceptions import AuthenticationError

    try:
        GcsClient(address=address)
    except AuthenticationError as error:
        raise PermissionError(REFUSED.format(address=address)) from error


@contextlib.contextmanager
def _told_late(front: Front, reason: str) -> Iterator[None]:
    """Tell the front the likely reason when what is done here takes long."""
    state = messages.STATE, msgspec.msgpack.encode(messages.ClusterState(reason=reason))
    timer = threading.Timer(JOIN_SECONDS, front.send, (0, state))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Front:
    """The other end of the socket. Any thread may send."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def receive(self) -> bytes:
        """The next message.

        Raises:
            EOFError, OSError: the front has ended.
        """
        return self._connection.recv_bytes()

    def send(self, call: int, *sent: messages.Message) -> None:
        """Send a frame of messages. Ends the process when the front has ended."""
        frame = msgspec.msgpack.encode((call, sent))
        try:
            with self._sending:
                self._connection.send_bytes(frame)
        except OSError:
            os._exit(0)


class Driver:
    """Handles the requests of the front, each in a thread.

    Args:
        front: the front.
        keeper: keeps the engines.
    """

    def __init__(self, front: Front, keeper: Keeper) -> None:
        self._front = front
        self._keeper = keeper
        self._lock = threading.Lock()
        # Guarded by _lock:
        self._runs: dict[int, Run] = {}
        self._asks: dict[int, threading.Event] = {}

    def serve(self) -> None:
        """Handle requests until the front has ended."""
        decoder = msgspec.msgpack.Decoder(messages.Request)
        while True:
            try:
                request = decoder.decode(self._front.receive())
            except (EOFError, OSError):
                return
            self._handle(request)

    def _handle(self, request: messages.Request) -> None:
        match request:
            case messages.RunJob():
                run = Run(request, self._keeper, self._front.send)
                with self._lock:
                    self._runs[request.call] = run
                threading.Thread(target=self._run, args=(run,), name=f"run-{request.call}", daemon=True).start()
            case messages.Ask():
                with self._lock:
                    self._asks[request.call] = threading.Event()
                threading.Thread(target=self._ask, args=(request,), name=f"ask-{request.call}", daemon=True).start()
            case messages.Cancel(call) | messages.Proceed(call):
                with self._lock:
                    found, ask = self._runs.get(call), self._asks.get(call)
                if ask is not None:
                    ask.set()
                elif found is not None and isinstance(request, messages.Cancel):
                    found.cancel()
                elif found is not None:
                    found.proceed()

    def _run(self, run: Run) -> None:
        try:
            run.until_end()
        except BaseException as error:
            traceback.print_exc()
            self._front.send(run.call, (messages.RAISED, messages.encode_error(error)))
        finally:
            with self._lock:
                self._runs.pop(run.call, None)

    def _ask(self, request: messages.Ask) -> None:
        with self._lock:
            canceled = self._asks[request.call]
        try:
            names = self._keeper.preferred(request.needs)
            ask = self._downloads if request.of == "every" else self._first_answers
            answers = ask(request, names, canceled)
            self._front.send(request.call, (messages.ANSWER, msgspec.msgpack.encode(answers)))
        except BaseException as error:
            self._front.send(request.call, (messages.RAISED, messages.encode_error(error)))
        finally:
            with self._lock:
                self._asks.pop(request.call, None)

    def _downloads(self, request: messages.Ask, names: list[str], canceled: threading.Event) -> list[bytes]:
        """Let every engine download a model. It is enough that one has it then: the job goes there.

        Raises:
            Canceled: the front has canceled the call.
            BaseException: the first error, when no engine has the model.
        """
        found, failures = self._answers(request, names, canceled)
        model = pickle.loads(request.arguments)[0]
        for name in (*found, *failures):
            self._keeper.downloaded(name, model, failed=name in failures)
        if failures and not found:
            raise next(iter(failures.values()))
        return list(found.values())

    def _first_answers(self, request: messages.Ask, names: list[str], canceled: threading.Event) -> list[bytes]:
        """The answers of the engines, asked one after the other until one says what is asked for.

        Raises:
            Canceled: the front has canceled the call.
            BaseException: the error of an engine.
        """
        answers: list[bytes] = []
        for name in names:
            found, failures = self._answers(request, [name], canceled)
            if failures:
                raise failures[name]
            answers += found.values()
            if request.of == "one" and found:
                break
            if found:
                lacking = tuple(pickle.loads(found[name]))
                self._keeper.learn(name, request.needs, lacking)
                if not lacking:
                    return [found[name]]
        return answers

    def _answers(
        self, request: messages.Ask, names: list[str], canceled: threading.Event
    ) -> tuple[dict[str, bytes], dict[str, BaseException]]:
        """The answers and the errors of engines by name, without those that have ended meanwhile.

        Raises:
            Canceled: the front has canceled the call.
        """
        import ray
        from ray.exceptions import RayError

        call = str(request.call)
        waiting = {self._keeper.invoke(name, "call", call, request.method, request.arguments): name for name in names}
        deadline = time.monotonic() + ASK_SECONDS
        answers: dict[str, bytes] = {}
        failures: dict[str, BaseException] = {}
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK_SECONDS)
            for ref in done:
                name = waiting.pop(ref)
                try:
                    returned, content = ray.get(ref)
                except RayError:
                    continue
                if returned:
                    answers[name] = content
                else:
                    failures[name] = messages.decode_error(content)
            if canceled.is_set():
                for name in names:
                    self._keeper.invoke(name, "cancel", call)
                raise Canceled("the call was canceled")
            if request.method not in LONG and time.monotonic() > deadline:
                break
        return answers, failures


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text.rstrip('.')}."
