"""The turn of an upload: how many unfinished uploads one key, and one address, may have."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from whisper_api.errors import CallerLimit
from whisper_api.server.realtime.waiting import unless_draining
from whisper_api.server.state import owner_of, state_of
from whisper_api.server.uploads.turns import client_network

__all__ = ["upload_turn"]

# Uploads that end quickly make room within that; a caller whose uploads all drip is told to wait.
TURN_SECONDS = 30.0
RETRY_SECONDS = 30.0
# Marks a request that has its turn.
TURN = "whisper_api.upload_turn"


@contextlib.asynccontextmanager
async def upload_turn(request: Request) -> AsyncIterator[None]:
    """Wait until the caller has few enough unfinished uploads, before the body is read, and count this one among them.

    A request that has its turn gets no second one.

    Args:
        request: whose body was not read yet.

    Raises:
        CallerLimit: the caller's other uploads have not ended.
        Draining: the server stops.
    """
    if TURN in request.scope:
        yield
        return
    state = state_of(request)
    bounds = (
        (state.key_uploads, owner_of(request), "key", state.config.max_uploads_per_key),
        (state.address_uploads, client_network(request.scope), "address", state.config.max_uploads_per_address),
    )
    async with contextlib.AsyncExitStack() as stack:
        for turns, caller, whose, most in bounds:
            turn = turns.taken(caller, TURN_SECONDS)
            try:
                await unless_draining(state, stack.enter_async_context(turn))
            except asyncio.TimeoutError:
                raise CallerLimit(
                    f"This {whose} has {most} uploads that have not ended, which is as many as one may have: "
                    "try again when one has ended",
                    RETRY_SECONDS,
                ) from None
        request.scope[TURN] = True
        yield
