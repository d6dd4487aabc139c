"""What redaction cannot find in a language, for the warnings of a transcript."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from whisper_api.engine.redaction.name_lists import given_names
from whisper_api.engine.redaction.number_words import LANGUAGES
from whisper_api.engine.redaction.numbers import NUMBER_KINDS
from whisper_api.schema import RedactKind, Segment

__all__ = ["limits"]


def limits(segments: Sequence[Segment], kinds: Collection[RedactKind], language: str) -> list[str]:
    """A sentence for each kind that is found less well in this text than the documentation says.

    Args:
        segments: the text.
        kinds: the kinds of personal data that are asked for.
        language: code of the text's language.
    """
    warnings = []
    if language not in LANGUAGES and not NUMBER_KINDS.isdisjoint(kinds):
        warnings.append(f"redact: numbers that are written as words are not found in the language {language}")
    if "names" in kinds:
        if not any(map(str.isupper, (letter for segment in segments for letter in segment.text))):
            warnings.append("redact: names are not found in this text, since it has no capital letters")
        elif not given_names(language):
            warnings.append(
                f"redact: names are found less well, since there is no list of names of the language {language}"
            )
    return warnings
