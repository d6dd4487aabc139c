"""Counts requests against the limits of their key, and notes what is left of these limits for the responses."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Scope

from whisper_api.access.keys import Key
from whisper_api.errors import RateLimited
from whisper_api.server.state import state_in, state_of

__all__ = ["LIMITS", "count_request", "note_quotas"]

# Key of a request's state: the limits of its key, and what is left of them. The access log adds them to the response.
LIMITS = "limits"


def count_request(scope: Scope, key: Key) -> None:
    """Count a request of a key with rate limits.

    Args:
        scope: scope of the request.
        key: key of the request.

    Raises:
        RateLimited: the key has sent too many requests.
    """
    limits = state_in(scope).limits
    if limits.rates_of(key):
        try:
            scope["state"][LIMITS] = list(limits.count(key))
        except RateLimited:
            scope["state"][LIMITS] = list(limits.standings(key))
            raise


def note_quotas(request: Request) -> None:
    """Note for the response what is left of the quotas of the request's key. Blocks on the database.

    Args:
        request: an upload.
    """
    state, key = state_of(request), request.scope["state"].get("key")
    quotas = state.service.usage.quotas
    if key is not None and quotas.of_key(key):
        request.scope["state"].setdefault(LIMITS, []).extend(quotas.standings_of(key))
