"""Whether the libraries of the extra ``redact`` are installed."""

from __future__ import annotations

from importlib.util import find_spec

from whisper_api.errors import ExtraMissing

__all__ = ["check_installed"]

# The module of each library, and the name under which an index has the library.
LIBRARIES = {
    "faker": "faker",
    "phonenumbers": "phonenumberslite",
    "stdnum": "python-stdnum",
    "text_to_num": "text2num",
}


def check_installed() -> None:
    """Refuse redaction without its libraries.

    Raises:
        ExtraMissing: a library is not installed.
    """
    missing = [name for module, name in LIBRARIES.items() if find_spec(module) is None]
    if missing:
        raise ExtraMissing(
            f"redact: {', '.join(missing)} cannot be imported here; `pip install 'whisper-api[redact]'` installs it"
        )
