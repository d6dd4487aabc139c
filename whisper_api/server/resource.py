"""A path of the API and its operations by method."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from whisper_api.access.key_rules import allows
from whisper_api.errors import ScopeMissing
from whisper_api.server.auditing import begin
from whisper_api.server.operations import Operation
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.part_headers import shown


class JsonResponse(Response):
    """A value or a Struct as JSON."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return msgspec.json.encode(content)


class Resource:
    """An ASGI application for one path. HEAD works as GET, OPTIONS lists the methods, any other method is a 405.

    A key whose role or scopes may not call the operation is a 403.

    Args:
        operations: method to operation.
    """

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self.operations = dict(operations)
        self.handlers = {method: operation.handler for method, operation in operations.items()}
        if "GET" in self.handlers:
            self.handlers["HEAD"] = self.handlers["GET"]
        # Not of HEAD, whose response has no text.
        self._actions = {method: operation.audit for method, operation in operations.items()}
        self._guarded = {method: operation for method, operation in operations.items() if not operation.open}
        if "GET" in self._guarded:
            self._guarded["HEAD"] = self._guarded["GET"]
        self._with_body = {method for method, operation in operations.items() if operation.body is not None}
        self.allow = ", ".join([*self.handlers, "OPTIONS"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        action = self._actions.get(scope["method"])
        if action is not None:
            begin(scope, action)
        handler = self.handlers.get(scope["method"])
        if handler is not None:
            self._check_key(scope)
            if scope["method"] in self._with_body:
                _check_encoding(Headers(scope=scope))
            response = await handler(Request(scope, receive, send))
        elif scope["method"] == "OPTIONS":
            response = Response(status_code=204, headers={"Allow": self.allow})
        else:
            raise HTTPException(405, headers={"Allow": self.allow})
        await response(scope, receive, send)

    def _check_key(self, scope: Scope) -> None:
        key, operation = scope["state"].get("key"), self._guarded.get(scope["method"])
        if key is None or operation is None:
            return
        if key.role not in operation.roles:
            raise Problem(
                403,
                "forbidden_role",
                f"A key with the role {key.role} may not do this: use a key with the role "
                f"{' or '.join(operation.roles)}",
            )
        if not allows(key, operation.scope):
            raise ScopeMissing(
                f"This key has the scopes {', '.join(key.scopes)}: use a key with the scope {operation.scope}, or "
                "without scopes"
            )


def _check_encoding(headers: Headers) -> None:
    """Refuse a compressed body: recordings are compressed already, and the size of an unpacked body has no bound.

    Raises:
        Problem: 415 ``content_encoding``, with the accepted encodings (RFC 9110, section 12.5.3).
    """
    codings = [coding.strip() for line in headers.getlist("content-encoding") for coding in line.split(",")]
    if any(coding.lower() not in ("", "identity") for coding in codings):
        raise Problem(
            415,
            "content_encoding",
            f"The body has Content-Encoding {shown(', '.join(codings))}: send it uncompressed, without that header",
            {"Accept-Encoding": "identity"},
        )
