"""Calls of the REST API without their I/O: which requests they send, when they pause and what they return.

A call is a generator. It yields a :class:`Request` and is resumed with the response, or with :class:`RetryLater` when
there is none. It yields a :class:`Pause` and is resumed after that time, or :class:`Work` and is resumed with its
value. :func:`api_call` and :func:`api_list` make one call a blocking method of :class:`~whisper_api.Client` and a
coroutine of :class:`~whisper_api.AsyncClient`.
"""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, overload
from urllib.parse import quote, urlsplit

import msgspec

from whisper_api.client.responses import Response, RetryLater, decoded, pause_before
from whisper_api.client.upload import MultipartForm
from whisper_api.errors import InvalidOption

T = TypeVar("T")
B = TypeVar("B")
A = TypeVar("A")
P = ParamSpec("P")


class Request(NamedTuple):
    """A request of the REST API.

    Attributes:
        method, path, params, headers: parts of the request.
        body: a form with audio, bytes, or None.
        job_id: the job that errors name.
        held_seconds: how long the server may hold the request, or be silent in a stream.
    """

    method: str
    path: str
    job_id: str = ""
    params: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: MultipartForm | bytes | None = None
    held_seconds: float = 0.0


class Pause(NamedTuple):
    """Seconds to wait."""

    seconds: float


class Work(NamedTuple):
    """A function that blocks, such as the opening of a file; the asynchronous client runs it in a thread."""

    function: Callable[[], Any]


class Cleanup(NamedTuple):
    """What to do when the call is interrupted from now on, for example by Ctrl-C or a canceled task."""

    steps: Callable[[], Steps[None]]


Step = Request | Pause | Work | Cleanup
# Resumed with a Response after a Request, with the function's value after Work, else with None.
Steps = Generator[Step, Any, T]


class Blocking:
    """Marks the client whose methods block."""


class Asynchronous:
    """Marks the client whose methods are coroutines."""


class ClientMethod(Generic[P, B, A]):
    """What both clients have under one name.

    Args:
        call: the method that a group of methods defines.
        blocking: the method of the blocking client.
        coroutine: the method of the asynchronous client.
        returns: what the two return, around the value of the call.
    """

    def __init__(self, call: Callable[..., Any], blocking: Any, coroutine: Any, *returns: str) -> None:
        signature = inspect.signature(call)
        value = str(signature.return_annotation).partition("[")[2].removesuffix("]")
        for method, text in zip((blocking, coroutine), returns, strict=True):
            functools.update_wrapper(method, call)
            signature = signature.replace(return_annotation=text.format(value))
            method.__signature__ = signature
            method.__annotations__ = {**call.__annotations__, "return": signature.return_annotation}
        self._methods = blocking, coroutine

    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, B]: ...

    @overload
    def __get__(self, client: Asynchronous, owner: type) -> Callable[P, A]: ...

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...

    def __get__(self, client: object, owner: type) -> Any:
        method = self._methods[issubclass(owner, Asynchronous)]
        return method if client is None else method.__get__(client, owner)


def api_call(call: Callable[Concatenate[Any, P], Steps[T]]) -> ClientMethod[P, T, Coroutine[Any, Any, T]]:
    """Make a method of both clients, which blocks in one and is a coroutine of the other.

    Args:
        call: a method that returns the steps of the call.
    """

    def blocking(self: Any, *args: Any, **named: Any) -> Any:
        return self._transport.run(call(self, *args, **named))

    async def coroutine(self: Any, *args: Any, **named: Any) -> Any:
        return await self._transport.run(call(self, *args, **named))

    return ClientMethod(call, blocking, coroutine, "{}", "{}")


def api_list(call: Callable[Concatenate[Any, P], Pages[T]]) -> ClientMethod[P, Iterator[T], AsyncGenerator[T, None]]:
    """Make a method of both clients that iterates over the entries of a list.

    Args:
        call: a method that returns the pages of the list.
    """

    def blocking(self: Any, *args: Any, **named: Any) -> Iterator[Any]:
        pages = call(self, *args, **named)
        while pages.more:
            yield from self._transport.run(pages.following())

    async def coroutine(self: Any, *args: Any, **named: Any) -> AsyncGenerator[Any, None]:
        pages = call(self, *args, **named)
        while pages.more:
            for entry in await self._transport.run(pages.following()):
                yield entry

    return ClientMethod(call, blocking, coroutine, "Iterator[{}]", "AsyncGenerator[{}, None]")


class Pages(Generic[T]):
    """The pages of a list, each requested when it is needed.

    Args:
        page: requests the page of a query.
        query: the query of the first page.
        entries: the entries of a page.

    Attributes:
        more: whether there is another page.
    """

    def __init__(
        self,
        page: Callable[[Mapping[str, str]], Steps[Any]],
        query: Mapping[str, str],
        entries: Callable[[Any], Sequence[T]],
    ) -> None:
        self.more = True
        self._page = page
        self._query = dict(query)
        self._entries = entries

    def following(self) -> Steps[Sequence[T]]:
        """The entries of the next page."""
        page = yield from self._page(self._query)
        self.more = page.next is not None
        self._query["after"] = page.next
        return self._entries(page)


class Methods:
    """The base of a group of methods of both clients."""

    _calls: Calls


class Calls:
    """Makes the calls of one client.

    Args:
        retries: how often a request is tried again.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries

    def pages(
        self, path: str, kind: type[B], params: Mapping[str, str], entries: Callable[[B], Sequence[T]]
    ) -> Pages[T]:
        """The pages of a list.

        Args:
            path: path of the list.
            kind: type of a page.
            params: the query of the first page.
            entries: the entries of a page.
        """
        return Pages(lambda query: self.value("GET", path, kind, params=query), params, entries)

    def value(
        self,
        method: str,
        path: str,
        kind: type[T],
        value: object = None,
        *,
        job_id: str = "",
        params: Mapping[str, str] | None = None,
        held_seconds: float = 0.0,
    ) -> Steps[T]:
        """Send a request with JSON, and return the value of the response.

        Args:
            method: method of the request.
            path: path of the request.
            kind: type of the response's value.
            value: the body; None for none.
            job_id: as in :class:`Request`.
            params: as in :class:`Request`.
            held_seconds: as in :class:`Request`.
        """
        headers = {} if value is None else {"Content-Type": "application/json"}
        body = None if value is None else msgspec.json.encode(value)
        request = Request(method, path, job_id, params or {}, headers, body, held_seconds)
        return decoded((yield from self.response(request)), kind)

    def delete(self, path: str) -> Steps[None]:
        """Delete the resource of a path."""
        yield from self.response(Request("DELETE", path))

    def response(
        self, request: Request, *, deadline: float = math.inf, patience_seconds: float = 0.0
    ) -> Steps[Response]:
        """Send a request, again as long as the server asks to retry later or cannot be reached.

        Args:
            request: the request.
            deadline: monotonic time after which no attempt begins.
            patience_seconds: attempts go on for at least this time, whatever their number.

        Raises:
            WhisperApiError: the server's error by its name, or RequestError when the server cannot be reached.
        """
        patient_until = time.monotonic() + patience_seconds
        attempt = 0
        while True:
            try:
                response: Response = yield request
            except RetryLater as error:
                not_now = error
            else:
                return response
            now = time.monotonic()
            if now >= deadline or (attempt >= self._retries and now >= patient_until):
                raise not_now.reason
            yield Pause(min(pause_before(attempt, not_now.retry_after), max(0.0, deadline - now)))
            attempt += 1


class Server:
    """The address and the key of a server.

    Args:
        url: http or https, with the path that the server is mounted under, if any.
        api_key: None for a server without keys.

    Attributes:
        url: without a slash at the end.

    Raises:
        InvalidOption: the URL or the key is malformed.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InvalidOption("url", f"expected http://HOST:PORT or https://HOST, not {url!r}")
        self._key = (api_key or "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise InvalidOption("api_key", "expected the characters that the server printed")
        self.url = url.rstrip("/")

    def authorize(self, request: Any) -> Any:
        """Add the key to a request of requests or of httpx.

        They call this instead of getting a header, which they would replace by the entry of a .netrc file or by the
        user name of the URL.
        """
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def path_of(*names: str) -> str:
    """The path of a resource.

    Args:
        names: the parts of the path, which may have any characters.
    """
    return "".join(f"/{quote(name, safe='')}" for name in names)
