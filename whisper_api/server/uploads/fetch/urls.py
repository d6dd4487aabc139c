"""Checks of callers' URLs, and the names of their files."""

from __future__ import annotations

import string
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from whisper_api.outbound.urls import MAX_URL_CHARACTERS, UrlRefused, target_of
from whisper_api.server.responses.problems import Problem
from whisper_api.server.uploads.part_headers import display_name


def file_name_of(url: str) -> str | None:
    """The last part of a URL's path, fit for display; None when the path is empty or the URL is too long."""
    if len(url) > MAX_URL_CHARACTERS:
        return None
    try:
        return display_name(unquote(urlsplit(url).path))
    except ValueError:
        return None


def fetched(url: str) -> SplitResult:
    """The parts of a URL that the server may fetch.

    Raises:
        Problem: 400 ``url_refused``: the server does not fetch this URL.
    """
    try:
        return target_of(url)
    except UrlRefused as error:
        raise refused(error.reason) from None


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
