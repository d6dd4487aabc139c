"""Parses the headers of a form's parts (RFC 7578), and makes texts of clients fit for display."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote, urlsplit

from whisper_api.outbound.urls import MAX_URL_CHARACTERS

MAX_NAME_CHARACTERS = 255

_PARAMETER = re.compile(
    r""";[ \t]*(?P<name>[!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*
        (?:"(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)"|(?P<bare>[^;]*))""",
    re.VERBOSE | re.DOTALL,
)
# Browsers escape the three characters that would end a quoted name (WHATWG, multipart form data).
_ESCAPED = {"%0D": "\r", "%0A": "\n", "%22": '"'}
# Characters that reverse the reading direction, so that a name looks like another name.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def display_name(name: str) -> str | None:
    """A client's file name, fit for display: without directories and control characters, and not too long."""
    name = name.replace("\\", "/").rpartition("/")[2]
    name = "".join(c for c in name if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in _DIRECTIONS)
    name = name.strip()[:MAX_NAME_CHARACTERS].strip()
    return name if name.strip(".") else None


def file_name_of(url: str) -> str | None:
    """The last part of a URL's path, fit for display; None when the path is empty or the URL is too long."""
    if len(url) > MAX_URL_CHARACTERS:
        return None
    try:
        return display_name(unquote(urlsplit(url).path))
    except ValueError:
        return None


def shown(text: str) -> str:
    """A client's text, short and printable, for a message."""
    return repr(text if len(text) <= 40 else f"{text[:39]}…")


def text_of(data: bytes) -> str:
    """Decode a header as UTF-8, or as Latin-1 when it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def parameters_of(header: str) -> tuple[str, dict[str, str]]:
    """The first word of a header, and its parameters; the first of two parameters with the same name counts."""
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(header):
        quoted = match["quoted"]
        # Other backslashes are not escapes, because some browsers send a Windows path unchanged.
        value = match["bare"].strip(' \t"') if quoted is None else re.sub(r'\\(["\\])', r"\1", quoted)
        found.setdefault(match["name"].lower(), value)
    return header.partition(";")[0].strip().lower(), found


def file_name_in(parameters: dict[str, str]) -> str | None:
    """The file name in a Content-Disposition; None when the part is not a file.

    RFC 7578 (section 4.2) forbids ``filename*`` (RFC 5987) in a form, but some clients send it.
    """
    charset, _, encoded = parameters.get("filename*", "").partition("'")
    if charset.lower() in ("utf-8", "iso-8859-1"):
        return unquote(encoded.partition("'")[2], charset, "replace")
    name = parameters.get("filename")
    return None if name is None else unescaped(name)


def unescaped(name: str) -> str:
    """Reverse the escapes of a browser in a name."""
    return re.sub("%0[AD]|%22", lambda match: _ESCAPED[match[0].upper()], name, flags=re.IGNORECASE)
