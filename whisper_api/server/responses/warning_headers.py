"""Warnings as headers of an answer whose body has no place for them."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.responses import Response

__all__ = ["WARNING", "add_warnings"]

# RFC 7234, section 5.5. RFC 9111 has dropped the field because caches made no use of it; its name stays registered.
WARNING = "Warning"
# "Miscellaneous persistent warning".
CODE = 299
MAX_WARNINGS = 10
MAX_CHARACTERS = 400


def add_warnings(response: Response, warnings: Iterable[str]) -> None:
    """Add a header for each warning, in ASCII and on one line whatever a client's words are in it.

    Args:
        response: that is about to be sent.
        warnings: one sentence each; the first ten are told.
    """
    for warning in list(dict.fromkeys(warnings))[:MAX_WARNINGS]:
        text = "".join(each if each.isprintable() else " " for each in warning[:MAX_CHARACTERS])
        quoted = text.encode("ascii", "backslashreplace").decode().replace("\\", "\\\\").replace('"', '\\"')
        response.headers.append(WARNING, f'{CODE} - "{quoted}"')
