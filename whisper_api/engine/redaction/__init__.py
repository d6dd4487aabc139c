"""Redaction: replaces personal data in a recognised text by markers such as ``[EMAIL]``.

Finding personal data in speech is never complete: ``docs/redaction.md`` says what is found, how well, and what is not.
The libraries of the extra ``redact`` are loaded at the first job that asks for redaction.
"""

from whisper_api.engine.redaction.segments import Redacted, check_installed, limits, redact

__all__ = ["Redacted", "check_installed", "limits", "redact"]
