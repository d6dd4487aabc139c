"""A server with the parts of the REST API that a client uses, with faults on demand. It transcribes nothing."""

from __future__ import annotations

import contextlib
import email.parser
import email.policy
import json
import socket
import struct
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TEXT = "So it goes."
# The server counts longer bodies and does not keep them.
KEPT_BYTES = 32 << 20


@dataclass(frozen=True)
class Reset:
    """Reset the connection after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Refuse:
    """Respond with a problem."""

    status: int
    code: str = ""
    detail: str = ""
    retry_after: str | None = None
    body: bytes | None = None
    location: str | None = None


@dataclass(frozen=True)
class Lose:
    """Handle the request, and break the connection after so many bytes of the body; None: before the response."""

    after: int | None = None


@dataclass(frozen=True)
class Hold:
    """Handle the request, and hold the response until the event is set."""

    until: threading.Event


Fault = Reset | Refuse | Lose | Hold


@dataclass(frozen=True)
class Request:
    """A request: its body and size, and the fields and the file of a form."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    fields: dict[str, str]
    file: bytes | None
    file_name: str | None
    size: int
    body: bytes


@dataclass
class Rest:
    """The server's state.

    Attributes:
        faults: what goes wrong with the next requests of a method, one each.
        seen: every request.
        jobs: id to what its status will be, one at a time; the last one stays.
        by_key: idempotency key to id.
        script: the statuses of jobs to come.
        results: id to its result; with "*", that of all others.
        streams: id to what is sent of its events, for one request after the other.
        corrected: id to the body that its corrections were sent as.
        canceled: ids, with the query of the request.
    """

    url: str = ""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    jobs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    by_key: dict[str, str] = field(default_factory=dict)
    script: list[dict[str, Any]] = field(default_factory=lambda: [{"status": "Completed"}])
    streams: dict[str, list[str]] = field(default_factory=dict)
    corrected: dict[str, bytes] = field(default_factory=dict)
    canceled: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, method: str) -> list[Request]:
        return [request for request in self.seen if request.method == method]

    def take_fault(self, method: str) -> Fault | None:
        with self.lock:
            waiting = self.faults.get(method)
            return waiting.pop(0) if waiting else None

    def answer(self, request: Request) -> tuple[int, Any]:
        """Handle a request. Returns the status and the body."""
        with self.lock:
            parts = request.path.strip("/").split("/")
            match (request.method, parts):
                case ("POST", ["transcribe"]):
                    return 202, {"job_id": self._submit(request.headers["idempotency-key"])}
                case ("GET", ["transcriptions"]):
                    return 200, self._page(request.query)
                case (_, ["transcription", job_id, *_]) if job_id not in self.jobs:
                    detail = f"Job not found: {job_id}"
                    return 404, {"code": "job_not_found", "detail": detail}
                case ("GET", ["transcription", job_id]):
                    return 200, self._status(job_id)
                case ("GET", ["transcription", job_id, "events"]):
                    return 200, self.streams[job_id].pop(0)
                case ("GET", ["transcription", job_id, "result"]):
                    name = request.query.get("format")
                    return 200, f"{name} of {job_id}" if name else result(job_id)
                case ("PUT", ["transcription", job_id, "corrections"]):
                    self.corrected[job_id] = request.body
                    return 200, json.loads(request.body)
                case ("GET", ["transcription", job_id, "corrections"]):
                    return 200, json.loads(self.corrected.get(job_id, b"{}"))
                case ("DELETE", ["transcription", job_id]):
                    self.canceled.append((job_id, request.query))
                    return 200, {"success": True}
            return 404, {"code": "not_found", "detail": "There is nothing at this address"}

    def _submit(self, key: str) -> str:
        job_id = self.by_key.setdefault(key, str(uuid.uuid4()))
        self.jobs.setdefault(job_id, [dict(status) for status in self.script])
        return job_id

    def _status(self, job_id: str) -> dict[str, Any]:
        waiting = self.jobs[job_id]
        status = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return {"job_id": job_id, "created_at": "2030-01-01T00:00:00Z", **status}

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        ids = [*self.jobs][::-1]
        begin = ids.index(query["after"]) + 1 if "after" in query else 0
        page = ids[begin : begin + 2]
        jobs = [self._status(job_id) for job_id in page]
        wanted = [job for job in jobs if job["status"] == query.get("status", job["status"])]
        return {"jobs": wanted, "next": page[-1] if begin + 2 < len(ids) else None}


def result(job_id: str) -> dict[str, Any]:
    """The result of a job."""
    return {
        "text": TEXT,
        "language": "en",
        "segments": [{"id": 0, "start": 0.0, "end": 1.0, "text": TEXT, "speaker": None, "words": []}],
        "duration": 1.0,
        "model": "base",
        "warnings": [f"job {job_id} was not transcribed"],
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rest: Rest

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _handle(self) -> None:
        fault = self.rest.take_fault(self.command)
        length = int(self.headers.get("Content-Length", 0))
        size, body = self._read(min(length, fault.after) if isinstance(fault, Reset) else length)
        request = self._request(body, size)
        self.rest.seen.append(request)
        if isinstance(fault, Reset):
            self._reset()
            return
        if isinstance(fault, Refuse):
            self._refuse(fault)
            return
        if size < length:
            self.close_connection = True
            return
        status, value = self.rest.answer(request)
        if isinstance(fault, Hold):
            fault.until.wait(60)
        if isinstance(fault, Lose) and fault.after is None:
            self._reset()
            return
        content = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        media_type = "text/event-stream; charset=utf-8" if request.path.endswith("/events") else "application/json"
        self._send(status, content, {"Content-Type": media_type}, fault.after if isinstance(fault, Lose) else None)

    def _read(self, length: int) -> tuple[int, bytes]:
        if length <= KEPT_BYTES:
            body = self.rfile.read(length)
            return len(body), body
        size = 0
        while size < length and (piece := self.rfile.read(min(1 << 20, length - size))):
            size += len(piece)
        return size, b""

    def _request(self, body: bytes, size: int) -> Request:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        fields: dict[str, str] = {}
        file: bytes | None = None
        name: str | None = None
        if headers.get("content-type", "").startswith("multipart/form-data"):
            head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
            for part in message.iter_parts():
                content = part.get_payload(decode=True)
                assert isinstance(content, bytes)
                key = part.get_param("name", header="content-disposition")
                if part.get_filename() is None:
                    fields[str(key)] = content.decode()
                else:
                    file, name = content, part.get_filename()
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        return Request(self.command, parts.path, query, headers, fields, file, name, size, body)

    def _refuse(self, fault: Refuse) -> None:
        body = fault.body
        if body is None:
            body = json.dumps({"detail": fault.detail, "error": fault.detail, "code": fault.code}).encode()
        headers = {"Retry-After": fault.retry_after, "Location": fault.location}
        self._send(fault.status, body, {name: value for name, value in headers.items() if value is not None})

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _reset(self) -> None:
        # With no time to linger, closing a socket resets the connection.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *ignored: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A test connects 120 times at once. A connection beyond the queue is dropped, and tried again a second later.
    request_queue_size = 128

    def handle_error(self, *ignored: object) -> None:
        # Tests break connections on purpose.
        pass

    def shutdown_request(self, request: Any) -> None:
        # No shutdown comes first, which would end the connection normally and not by a reset.
        self.close_request(request)


@contextlib.contextmanager
def serving(rest: Rest, port: int = 0) -> Iterator[Rest]:
    """Serve at ``rest.url`` while open."""
    server = _Server(("127.0.0.1", port), type("BoundHandler", (Handler,), {"rest": rest}))
    rest.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield rest
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
