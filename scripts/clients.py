"""A client for measurements. It has one connection and makes its form once, so that it uses little CPU time."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WAIT_SECONDS = 60
LOOK_SECONDS = 0.1


class Client:
    """A connection to a server.

    Args:
        url: URL of the server.
        audio: the audio of each request.
        key: key of the requests; None for a server without authorization.
        fields: fields of the form, in addition to language, speakers and format.
    """

    def __init__(self, url: str, audio: Path, key: str | None = None, **fields: Any) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=3600)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        content = audio.read_bytes()
        every = {"language": "en", "diarize": False, "beam_size": 5, "output_format": "txt", **fields}
        self._forms = {sync: _form(content, {**every, "sync": sync}) for sync in (True, False)}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def transcribe(self) -> str:
        """Send the audio, wait for the response, and return the text."""
        answer = self._submit(sync=True)
        return str(answer["text"])

    def submit(self) -> str:
        """Send the audio and return the job's id."""
        return str(self._submit(sync=False)["job_id"])

    def submit_and_fetch(self) -> str:
        """Send the audio, wait for the job, fetch its result, and return the text."""
        job_id = self.submit()
        while (state := self.status(job_id, wait=WAIT_SECONDS)["status"]) in ("Queued", "Processing"):
            pass
        if state != "Completed":
            raise SystemExit(f"job {job_id} is {state}")
        return str(self._ask("GET", f"/transcription/{job_id}/result")["text"])

    def status(self, job_id: str, *, wait: float = 0) -> dict[str, Any]:
        """The status of a job, after a change of its state or some seconds."""
        return self._ask("GET", f"/transcription/{job_id}?wait={wait:g}")

    def server_status(self) -> dict[str, Any]:
        """The status of the server."""
        return self._ask("GET", "/status")

    def stop(self, job_id: str) -> None:
        """Cancel a job that waits or runs."""
        self._ask("DELETE", f"/transcription/{job_id}?force=true")

    def _submit(self, *, sync: bool) -> dict[str, Any]:
        body, content_type = self._forms[sync]
        return self._ask("POST", "/transcribe", body, {"Content-Type": content_type})

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        self._connection.request(method, path, body, {**self._headers, **(headers or {})})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status not in (200, 202):
            raise SystemExit(f"{method} {path} was answered with {response.status}: {answer[:500]!r}")
        found: dict[str, Any] = json.loads(answer)
        return found


def settled(url: str) -> None:
    """Wait until a server has loaded all models; it is ready before that."""
    while True:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        state = json.loads(response.read())
        connection.close()
        if response.status == 200 and not state.get("loading"):
            return
        time.sleep(LOOK_SECONDS)


def _form(content: bytes, fields: dict[str, Any]) -> tuple[bytes, str]:
    boundary = uuid.uuid4().hex
    parts = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{_text(value)}\r\n'
        for name, value in fields.items()
    )
    file = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="clip.wav"\r\n\r\n'
    body = (parts + file).encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
