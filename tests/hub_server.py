"""A model hub on this machine, over HTTP, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from whisper_api.engine.models.catalog import WHISPER_REPOSITORIES

COMMIT = "c0ffee" + "0" * 34
REPO = "someone/whisper-mine"
FILES = {
    "config.json": b'{"model_type": "whisper"}',
    "model.bin": bytes(range(256)) * 9000,
    "tokenizer.json": b"{}",
    "vocabulary.txt": b"a\nb\n",
    "README.md": b"not wanted",
    "pytorch_model.bin": b"not wanted either",
}


@dataclass
class Hub:
    """The parts of the hub's interface that a download uses, with faults on demand."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=lambda: {REPO: dict(FILES)})
    gated: dict[str, int] = field(default_factory=dict)  # repository -> status for those without access
    break_after: list[int] = field(default_factory=list)  # bytes of model.bin after which a transfer breaks, one each
    failures: int = 0  # transfers to answer with 503 next
    drip_after: int | None = None  # bytes of model.bin after which it comes byte by byte: 50 a second
    ranges: bool = True
    stated_size: int | None = None  # what the hub says of model.bin
    stated_sha256: str | None = None
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def transfers(self, file: str) -> list[dict[str, str]]:
        """The headers of the requests for the content of a file."""
        return [headers for method, path, headers in self.seen if method == "GET" and path == f"/cdn/{REPO}/{file}"]


def _is_large(name: str) -> bool:
    return name.endswith(".bin")


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append((self.command, path, {key.title(): value for key, value in self.headers.items()}))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self.info(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(match[1], match[3])
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self.content(self.hub.repositories[match[1]][match[2]], match[2])
        else:
            self.refuse(404, "")

    def info(self, repo: str, revision: str) -> None:
        if repo not in self.hub.repositories:
            return self.refuse(401, "RepoNotFound")
        if revision not in ("main", COMMIT, WHISPER_REPOSITORIES["base"][1]):
            return self.refuse(404, "RevisionNotFound")
        siblings = []
        for name, content in self.hub.repositories[repo].items():
            sibling: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob_id(content)}
            if _is_large(name):
                size = self.hub.stated_size if name == "model.bin" and self.hub.stated_size else len(content)
                sha256 = self.hub.stated_sha256 or hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
            siblings.append(sibling)
        body = json.dumps({"id": repo, "sha": revision if revision != "main" else COMMIT, "siblings": siblings})
        self.reply(200, body.encode(), {"Content-Type": "application/json"})

    def resolve(self, repo: str, name: str) -> None:
        content = self.hub.repositories[repo].get(name)
        if content is None:
            return self.refuse(404, "EntryNotFound")
        if (status := self.hub.gated.get(repo)) and "Authorization" not in self.headers:
            return self.refuse(status, "GatedRepo")
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{blob_id(content)}"'}
        if not _is_large(name):
            return self.reply(200, content, headers)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        # To a client this is another host, so it must not send its credentials there.
        headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{repo}/{name}"
        return self.reply(302, b"", headers)

    def content(self, content: bytes, name: str) -> None:
        if self.hub.failures:
            self.hub.failures -= 1
            return self.refuse(503, "")
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.hub.ranges else None
        if wanted and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
            start = int(wanted[1])
            if start >= len(content):
                return self.refuse(416, "")
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.reply(206, content[start:], headers, name)
        return self.reply(200, content, headers, name)

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, b"{}", {"X-Error-Code": code} if code else {})

    def reply(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if name == "model.bin" and self.hub.break_after:
            self.wfile.write(body[: self.hub.break_after.pop(0)])
            self.close_connection = True
            return
        if name == "model.bin" and self.hub.drip_after is not None:
            self.drip(body, self.hub.drip_after)
            return
        self.wfile.write(body)

    def drip(self, body: bytes, quick: int) -> None:
        self.close_connection = True
        self.wfile.write(body[:quick])
        for byte in body[quick:]:
            if self.hub.drip_after is None:
                return
            self.wfile.write(bytes([byte]))
            time.sleep(0.02)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that close their connection, since tests do so on purpose."""


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub on a free port until the block ends."""
    hub = Hub()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    with Server(("127.0.0.1", 0), handler) as server:
        hub.port = int(server.server_address[1])
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield hub
        server.shutdown()
