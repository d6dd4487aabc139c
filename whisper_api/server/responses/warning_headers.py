"""Warnings as headers of a response whose body has no field for them."""

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
    """Add a header for each warning, in ASCII and on one line whatever words of a client it contains.

    Args:
        response: a response that was not sent yet.
        warnings: one sentence each; those after the first ten are left out.
    """
    for warning in list(dict.fromkeys(warnings))[:MAX_WARNINGS]:
        text = "".join(each if each.isprintable() else " " for each in warning[:MAX_CHARACTERS])
        quoted = text.encode("ascii", "backslashreplace").decode().replace("\\", "\\\\").replace('"', '\\"')
        response.headers.append(WARNING, f'{CODE} - "{quoted}"')
