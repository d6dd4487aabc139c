"""Checks of callers' URLs, and the names of their files."""

from __future__ import annotations

import ipaddress
import re
import string
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.part_headers import display_name

__all__ = ["PORTS", "file_name_of", "joined", "refused", "target_of"]

MAX_URL_CHARACTERS = 8192
PORTS = {"http": 80, "https": 443}

# The characters of a URL that needs no encoding.
_PRINTABLE = re.compile(r"[!-~]+")


def file_name_of(url: str) -> str | None:
    """The last part of a URL's path, fit for display; None when the path is empty or the URL is too long."""
    if len(url) > MAX_URL_CHARACTERS:
        return None
    try:
        return display_name(unquote(urlsplit(url).path))
    except ValueError:
        return None


def target_of(url: str) -> SplitResult:
    """The parts of a URL that the server may fetch.

    Raises:
        Problem: 400 ``url_refused``: the server does not fetch this URL.
    """
    if len(url) > MAX_URL_CHARACTERS or not _PRINTABLE.fullmatch(url):
        raise refused(f"expected at most {MAX_URL_CHARACTERS} printable ASCII characters without spaces")
    try:
        target = urlsplit(url)
        port = target.port
        if "[" in target.netloc:
            # Before Python 3.11.4, urlsplit accepts any text in brackets.
            ipaddress.IPv6Address(target.hostname or "")
    except ValueError:
        raise refused("it cannot be read") from None
    if target.scheme not in PORTS or not target.hostname or port == 0:
        raise refused("expected http:// or https:// and a host")
    if "@" in target.netloc:
        raise refused("it must not contain a user's name or password")
    if "%" in target.netloc or "\\" in url:
        raise refused("its host is not a plain name or address")
    return target


def joined(url: str, location: str) -> str:
    """The target of a redirect.

    Args:
        url: URL of the request.
        location: ``Location`` of the response; characters that a URL may not contain are encoded.

    Raises:
        Problem: 400 ``url_refused``: the location cannot be read.
    """
    try:
        # The library decodes headers as Latin-1.
        return urljoin(url, quote(location.encode("latin-1"), safe=string.punctuation))
    except ValueError:
        raise refused("it redirects to a URL that cannot be read") from None


def refused(reason: str) -> Problem:
    """The error for a URL that the server does not fetch."""
    return Problem(400, "url_refused", f"This url is not fetched: {reason}")
