"""The asynchronous client with blocking methods, so that the same tests hold for both clients."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from whisper_api import AsyncClient

__all__ = ["Blocking", "MakeClient"]

# Client, or Blocking, which has the same methods.
MakeClient = Callable[..., Any]


class Blocking:
    """An :class:`AsyncClient` whose coroutines are run to their end, one at a time."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._client = AsyncClient(*arguments, **named)

    @functools.cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        # Made at the first use, since tests do not close a client that they only inspect.
        return asyncio.new_event_loop()

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *ignored: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def __repr__(self) -> str:
        return repr(self._client)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **named: Any) -> Any:
            value = method(*arguments, **named)
            if isinstance(value, AsyncGenerator):
                return self._iterate(value)
            return self._loop.run_until_complete(value)

        return call

    def _iterate(self, values: AsyncGenerator[Any, None]) -> Iterator[Any]:
        end = object()
        try:
            while (value := self._loop.run_until_complete(_next(values, end))) is not end:
                yield value
        finally:
            self._loop.run_until_complete(values.aclose())


async def _next(values: AsyncGenerator[Any, None], end: object) -> Any:
    return await anext(values, end)
