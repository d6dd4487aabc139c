"""What the headers of a form's parts say (RFC 7578), as clients write them, and how it is shown."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

__all__ = ["display_name", "file_name_in", "parameters_of", "shown", "text_of", "unescaped"]

MAX_NAME_CHARACTERS = 255

_PARAMETER = re.compile(
    r""";[ \t]*(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*
        (?:"(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)"|(?P<bare>[^;]*))""",
    re.VERBOSE | re.DOTALL,
)
# What browsers write for the three characters that would end a quoted name (WHATWG, multipart form data).
_ESCAPED = {"%0D": "\r", "%0A": "\n", "%22": '"'}
# They turn the reading direction, so that a name looks like another.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def display_name(name: str) -> str | None:
    """A client's name for its file, to be shown to people: without directories and control characters, not too long."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(c for c in name if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in _DIRECTIONS)
    name = name.strip()[:MAX_NAME_CHARACTERS].strip()
    return name if name.strip(".") else None


def shown(text: str) -> str:
    """What a client wrote, short and printable, for a message."""
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def text_of(data: bytes) -> str:
    """A header, whatever it is written in."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def parameters_of(header: str) -> tuple[str, dict[str, str]]:
    """What a header says first, and its parameters; of two with the same name, the first."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(header):
        quoted = match["quoted"]
        # No other backslash is an escape: some browsers send a Windows path as it is.
        value = match["bare"].strip(' \t"') if quoted is None else re.sub(r'\\(["\\])', r"\1", quoted)
        found.setdefault(match["name"].lower(), value)
    return header.partition(";")[0].strip().lower(), found


def file_name_in(parameters: dict[str, str]) -> str | None:
    """The file name in a Content-Disposition, None when the part is no file.

    ``filename*`` (RFC 5987) has no place in a form (RFC 7578, section 4.2), but some clients send it.
    """
    charset, _, encoded = parameters.get("filename*", "").partition("'")
    if charset.lower() in ("utf-8", "iso-8859-1"):
        return unquote(encoded.partition("'")[2], charset, "replace")
    name = parameters.get("filename")
    return None if name is None else unescaped(name)


def unescaped(name: str) -> str:
    """A name as it was before a browser quoted it."""
    return re.sub("%0[AD]|%22", lambda match: _ESCAPED[match[0].upper()], name, flags=re.IGNORECASE)
