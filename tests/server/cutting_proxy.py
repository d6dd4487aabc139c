"""A way to a server that breaks off the first connection over it, once something has happened."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

__all__ = ["cutting_proxy"]


@contextlib.contextmanager
def cutting_proxy(port: int, when: Callable[[], None]) -> Iterator[int]:
    """The port of the proxy, while it is open.

    Args:
        port: of the server on this machine.
        when: blocks until the first connection is to be broken off.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as connections:
        accepting = threading.Thread(target=_accept, args=(listener, port, when, connections), daemon=True)
        accepting.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


def _accept(listener: socket.socket, port: int, when: Callable[[], None], connections: contextlib.ExitStack) -> None:
    first = True
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        server = socket.create_connection(("127.0.0.1", port))
        for each in (client, server):
            connections.enter_context(each)
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()
        if first:
            first = False
            when()
            for each in (client, server):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
