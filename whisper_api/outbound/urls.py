"""Checks of the URLs that callers name."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from whisper_api.errors import Portable

MAX_URL_CHARACTERS = 8192
PORTS = {"http": 80, "https": 443}

# The characters of a URL that needs no encoding.
_PRINTABLE = re.compile(r"[!-~]+")


class UrlRefused(Portable):
    """The server sends no request to this URL.

    Args:
        reason: what is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def target_of(url: str) -> SplitResult:
    """The parts of a URL that the server may send a request to.

    Raises:
        UrlRefused: the server sends no request there.
    """
    if len(url) > MAX_URL_CHARACTERS or not _PRINTABLE.fullmatch(url):
        raise UrlRefused(f"expected at most {MAX_URL_CHARACTERS} printable ASCII characters without spaces")
    try:
        target = urlsplit(url)
        port = target.port
        if "[" in target.netloc:
            # Before Python 3.11.4, urlsplit accepts any text in brackets.
            ipaddress.IPv6Address(target.hostname or "")
    except ValueError:
        raise UrlRefused("it cannot be read") from None
    if target.scheme not in PORTS or not target.hostname or port == 0:
        raise UrlRefused("expected http:// or https:// and a host")
    if "@" in target.netloc:
        raise UrlRefused("it must not contain a user's name or password")
    if "%" in target.netloc or "\\" in url:
        raise UrlRefused("its host is not a plain name or address")
    return target


def host_of(target: SplitResult) -> tuple[str, int]:
    """The host of a checked URL, and its port."""
    return target.hostname or "", target.port or PORTS[target.scheme]


def path_of(target: SplitResult) -> str:
    """The path and the query of a checked URL, for the line of a request."""
    return f"{target.path or '/'}{'?' if target.query else ''}{target.query}"
