"""URLs that callers name: which may be asked at all, and what their file is called."""

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

# What may stand in a URL that is sent as it is.
_PRINTABLE = re.compile(r"[!-~]+")


def file_name_of(url: str) -> str | None:
    """The last part of a URL's path, fit for display; None where there is none, or the URL is too long for any use."""
    if len(url) > MAX_URL_CHARACTERS:
        return None
    try:
        return display_name(unquote(urlsplit(url).path))
    except ValueError:
        return None


def target_of(url: str) -> SplitResult:
    """A URL taken apart, when it is one that may be asked.

    Raises:
        Problem: 400 ``url_refused``: it is none.
    """
    if len(url) > MAX_URL_CHARACTERS or not _PRINTABLE.fullmatch(url):
        raise refused(f"expected at most {MAX_URL_CHARACTERS} printable ASCII characters without spaces")
    try:
        target = urlsplit(url)
        port = target.port
        if "[" in target.netloc:
            # Before Python 3.11.4, anything may stand in brackets.
            ipaddress.IPv6Address(target.hostname or "")
    except ValueError:
        raise refused("it cannot be read") from None
    if target.scheme not in PORTS or not target.hostname or port == 0:
        raise refused("expected http:// or https:// and a host")
    if "@" in target.netloc:
        raise refused("it must not hold a user's name or password")
    if "%" in target.netloc or "\\" in url:
        raise refused("its host is no plain name or address")
    return target


def joined(url: str, location: str) -> str:
    """Where a redirect leads to.

    Args:
        url: that was asked.
        location: as it answered; what may not stand in a URL, as servers send it nevertheless, is encoded.

    Raises:
        Problem: 400 ``url_refused``: it cannot be read.
    """
    try:
        # Headers are read as Latin-1, whatever they are.
        return urljoin(url, quote(location.encode("latin-1"), safe=string.punctuation))
    except ValueError:
        raise refused("it leads to what cannot be read") from None


def refused(reason: str) -> Problem:
    """The answer to a URL that nothing is asked of."""
    return Problem(400, "url_refused", f"This url is not fetched: {reason}")
