"""Records the outcome of requests in the audit trail, under the action that their operation declares."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import Scope

from whisper_api.access.audit import utc_now
from whisper_api.audit_records import DURABLE, Action, AuditRecord
from whisper_api.server.middleware.proxies import client_address
from whisper_api.server.responses.problems import CODE
from whisper_api.server.state import ServerState, blocking, state_in

# Keys of an ASGI scope: the action with which the request is recorded, and the ids of what it acts on.
ACTION = "whisper_api.audit_action"
TARGETS = "whisper_api.audit_targets"
# The status that nginx logs when the client closes the connection before the response. It is never sent.
CLIENT_GONE = 499


def note(request: Request, *targets: str, action: Action | None = None) -> None:
    """Name what an audited request acts on, when its path names no job.

    Args:
        request: the request.
        targets: ids, each for an entry of its own. The server has made or checked them, so that no text of the client
            gets into the trail.
        action: the action, when it differs from the one that the operation declares.
    """
    if targets:
        request.scope[TARGETS] = targets
    if action is not None:
        request.scope[ACTION] = action


def noted_id(request: Request, name: str, missing: Callable[[str], Exception]) -> str:
    """The UUID in the path, as the database writes it; the entry of the audit trail names it.

    Args:
        request: the request.
        name: the name of the path's parameter.
        missing: the error for a text that is no UUID.
    """
    text: str = request.path_params[name]
    try:
        found = str(uuid.UUID(text))
    except ValueError:
        raise missing(text) from None
    note(request, found)
    return found


async def record(scope: Scope, status: int) -> None:
    """Record a request whose response is about to begin, if its operation is audited.

    Args:
        scope: scope of the request.
        status: status of the response.
    """
    if ACTION not in scope:
        return
    state = state_in(scope)
    for entry in _entries(state, scope, status):
        if entry.action in DURABLE:
            # Not in a pool of the server: all its threads may wait for a slow upload disk.
            await blocking(None, state.service.audit.write, entry)
        else:
            state.service.audit.add(entry)


def record_lost_client(scope: Scope) -> None:
    """Record a request whose client went away before its response, if its operation is audited."""
    if ACTION not in scope:
        return
    # Does not wait for the disk, because the task of the request may be canceled already.
    server: ServerState | None = getattr(scope["app"].state, "server", None)
    if server is not None:
        for entry in _entries(server, scope, CLIENT_GONE):
            server.service.audit.add(entry)


def _entries(state: ServerState, scope: Scope, status: int) -> list[AuditRecord]:
    """The entries of a request; none while nothing is recorded. A second response has no action and so no entries."""
    action = scope.pop(ACTION)
    if not state.service.audit.recording:
        return []
    key = scope["state"].get("key")
    return [
        AuditRecord(
            time=utc_now(),
            action=action,
            actor="anyone" if key is None else "key",
            key_id=None if key is None else key.key_id,
            name=None if key is None else key.name,
            role=None if key is None else key.role,
            target=target,
            address=client_address(scope),
            request_id=scope.get("request_id"),
            status=status,
            error=scope.get(CODE),
        )
        for target in scope.get(TARGETS) or (scope.get("job_id"),)
    ]
