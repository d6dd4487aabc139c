"""The way to a server: its certificate and clock, and whether a proxy holds back streams or limits uploads."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import ssl
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from whisper_api.cli.doctor.check import Check
from whisper_api.client.calls import Server
from whisper_api.engine.models.download import human_bytes
from whisper_api.server.routes.events import PARTS, PAUSE_SECONDS
from whisper_api.server.sockets import is_loopback

TIMEOUT_SECONDS = 10.0
DAY_SECONDS = 86400.0
# Programs renew a certificate earlier than so many days before its end.
FEW_DAYS = 14
# The header Date has whole seconds, and the response takes time to arrive.
SKEW_SECONDS = 5.0
# Announced sizes of bodies, after the largest size that the server allows.
SIZES = (10**9, 10**8, 10**7, 10**6)
MAX_ANSWER_BYTES = 1 << 16
PROXY_REMEDY = "docs/operations.md, Behind a proxy, has the settings for nginx and Caddy"


@dataclass(frozen=True)
class Probe:
    """A request and its response.

    Attributes:
        status: status of the response; 0 when there was none.
        text: body of the response.
        headers: of the response.
        sent_at: when the request was sent; seconds since 1970.
        seconds: from the request to the end of the response.
        error: why there was no response; None when there was one.
    """

    sent_at: float
    seconds: float
    status: int = 0
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty when it is something else."""
        return json_object(self.text)

    @property
    def problem(self) -> str:
        """Why the request failed, in a line."""
        if self.error is not None:
            return f"{type(self.error).__name__}: {' '.join(str(self.error).split())}"
        return f"{self.status} {self.json.get('code', '')}: {self.json.get('detail', 'no reason is given')}"


@dataclass(frozen=True)
class Prober:
    """Sends the requests of the checks.

    Attributes:
        server: address and key of the server.
        session: the connections.
    """

    server: Server
    session: requests.Session

    def get(self, path: str) -> Probe:
        """Read a path."""
        sent_at, begun = time.time(), time.monotonic()
        try:
            response = self.open(path)
            with response:
                text = response.content.decode("utf-8", "replace")
        except requests.RequestException as error:
            return Probe(sent_at, time.monotonic() - begun, error=error)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Probe(sent_at, time.monotonic() - begun, response.status_code, text, headers)

    def open(self, path: str) -> requests.Response:
        """Open a path; close the response.

        Raises:
            RequestException: there is no response.
        """
        url, authorize = f"{self.server.url}{path}", self.server.authorize
        return self.session.get(url, auth=authorize, timeout=TIMEOUT_SECONDS, allow_redirects=False, stream=True)

    def announce(self, path: str, size: int) -> tuple[int, dict[str, Any]]:
        """Announce a body with ``Expect: 100-continue``, and send none (RFC 9110, section 10.1.1).

        Args:
            path: path of the request.
            size: number of bytes that are announced.

        Returns:
            The status of the first response, which is 100 when the body may be sent, and its JSON.

        Raises:
            OSError: there is no response in time.
            HTTPException: the response is not HTTP.
        """
        parts = urlsplit(self.server.url)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=TIMEOUT_SECONDS, context=self._tls()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)
        with contextlib.closing(connection):
            connection.putrequest("POST", f"{parts.path}{path}")
            connection.putheader("Content-Type", "multipart/form-data; boundary=doctor")
            connection.putheader("Content-Length", str(size))
            connection.putheader("Expect", "100-continue")
            for name, value in self.server.authorize(requests.Request()).headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            # http.client would skip the response 100, and wait for the next one.
            with connection.sock.makefile("rb") as answer:
                words = answer.readline(MAX_ANSWER_BYTES).split(None, 2)
                if len(words) < 2 or not words[1].isdigit():
                    raise http.client.BadStatusLine(repr(words))
                status = int(words[1])
                if status == http.client.CONTINUE:
                    return status, {}
                headers = http.client.parse_headers(answer)
                body = answer.read(min(int(headers.get("Content-Length", 0)), MAX_ANSWER_BYTES))
        return status, json_object(body)

    def _tls(self) -> ssl.SSLContext:
        """A context that trusts the same authorities as the session."""
        verify = self.session.merge_environment_settings(self.server.url, {}, None, None, None)["verify"]
        path = Path(verify if isinstance(verify, str) else requests.certs.where())
        if path.is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)


def json_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object; empty for everything else."""
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}


def certificate(prober: Prober) -> Check:
    """Whether the way is encrypted, and until when the certificate is valid."""
    parts = urlsplit(prober.server.url)
    if parts.scheme == "http":
        if is_loopback(parts.hostname or ""):
            return Check("tls", "missing", "none; the server is on this machine")
        remedy = "WHISPER_TLS_CERT_FILE and WHISPER_TLS_KEY_FILE, or a proxy that speaks TLS"
        return Check("tls", "missing", "none: keys and recordings can be read on the way", remedy)
    try:
        with prober.open("/livez") as response:
            found = response.raw.connection.sock.getpeercert()
    except (requests.RequestException, AttributeError) as error:
        return Check("tls", "missing", f"the certificate cannot be read here: {type(error).__name__}")
    if not found:
        return Check("tls", "missing", "the certificate was not checked")
    days = (ssl.cert_time_to_seconds(found["notAfter"]) - time.time()) / DAY_SECONDS
    text = f"the certificate is valid for {days:.0f} more days, until {found['notAfter']}"
    if days < FEW_DAYS:
        return Check("tls", "warning", text, "renew it now, and look why nothing has")
    return Check("tls", "ok", text)


def clock(alive: Probe) -> Check:
    """How far the server's clock is from this machine's, by the header ``Date``."""
    try:
        theirs = parsedate_to_datetime(alive.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return Check("clock", "missing", "the response has no date")
    # The header is rounded down to a second, so it is half a second behind in the mean.
    ahead = theirs + 0.5 - (alive.sent_at + alive.seconds / 2)
    if abs(ahead) <= SKEW_SECONDS:
        return Check("clock", "ok", "agrees with this machine's")
    text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    return Check("clock", "failed", text, "let both machines follow a time server (NTP)")


def streams(prober: Prober) -> Check:
    """Whether each piece of a stream arrives when the server sends it."""
    arrived: list[float] = []
    try:
        with prober.open("/events/check") as response:
            if response.status_code != 200:
                return Check("streams", "missing", f"not tried: /events/check answers {response.status_code}")
            body = b""
            for piece in response.iter_content(None if getattr(response.raw, "chunked", False) else 1):
                body += piece
                arrived += [time.monotonic()] * (body.count(b"\n\n") - len(arrived))
    except requests.RequestException as error:
        return Check("streams", "failed", f"{type(error).__name__}: {error}", PROXY_REMEDY)
    if len(arrived) != PARTS:
        return Check("streams", "failed", "a stream breaks off on the way", PROXY_REMEDY)
    if min(after - before for before, after in itertools.pairwise(arrived)) < PAUSE_SECONDS / 2:
        text = "a proxy on the way holds streams back: live text comes when all is done"
        return Check("streams", "failed", text, PROXY_REMEDY)
    return Check("streams", "ok", "arrive in pieces, as they are sent")


def uploads(prober: Prober, largest: int | None) -> Check:
    """Whether the server accepts uploads of the largest size, found by announcing them only.

    Args:
        prober: sends the requests.
        largest: number of bytes that the server allows; None when unknown.
    """
    if requests.utils.get_environ_proxies(prober.server.url):
        return Check("uploads", "missing", "not tried through the proxy that the environment names")
    sizes = [*([largest] if largest else []), *(size for size in SIZES if largest is None or size < largest)]
    refused: int | None = None
    for size in sizes:
        try:
            status, answer = prober.announce("/transcribe", size)
        except (http.client.HTTPException, OSError) as error:
            return Check("uploads", "missing", f"nothing answers an announced upload: {type(error).__name__}")
        if status == http.client.CONTINUE:
            if refused is None:
                return Check("uploads", "ok", f"may have {human_bytes(size)}")
            text = f"a proxy on the way refuses {human_bytes(refused)} and takes {human_bytes(size)}"
            return Check("uploads", "failed", text, PROXY_REMEDY)
        if status != http.client.REQUEST_ENTITY_TOO_LARGE:
            reason = answer.get("detail") or "without a reason"
            return Check("uploads", "missing", f"not tried: /transcribe answers {status} ({reason})")
        if largest is not None or "code" not in answer:
            refused = size
    return Check("uploads", "failed", f"a proxy on the way refuses even {human_bytes(sizes[-1])}", PROXY_REMEDY)
