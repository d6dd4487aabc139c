"""Languages by code and name, as Whisper knows them."""

from __future__ import annotations

from whisper_api.errors import InvalidOption

__all__ = ["language_code"]


def language_code(language: str) -> str:
    """The code of a language.

    Args:
        language: a code (``fr``), with or without a region (``fr-CA``), or an English name (``French``).

    Raises:
        InvalidOption: Whisper does not know it.
    """
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    wanted = language.strip().lower()
    code = NAMES.get(wanted, wanted.replace("_", "-").partition("-")[0])
    if code not in _LANGUAGE_CODES:
        raise InvalidOption(
            "language", f"{language!r} is not a language Whisper knows; use auto or one of {', '.join(_LANGUAGE_CODES)}"
        )
    return code


# The names people write most; codes are always understood.
NAMES = {
    "arabic": "ar",
    "cantonese": "yue",
    "castilian": "es",
    "catalan": "ca",
    "chinese": "zh",
    "croatian": "hr",
    "czech": "cs",
    "danish": "da",
    "dutch": "nl",
    "english": "en",
    "finnish": "fi",
    "flemish": "nl",
    "french": "fr",
    "german": "de",
    "greek": "el",
    "hebrew": "he",
    "hindi": "hi",
    "hungarian": "hu",
    "indonesian": "id",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "mandarin": "zh",
    "norwegian": "no",
    "persian": "fa",
    "polish": "pl",
    "portuguese": "pt",
    "romanian": "ro",
    "russian": "ru",
    "spanish": "es",
    "swedish": "sv",
    "turkish": "tr",
    "ukrainian": "uk",
    "urdu": "ur",
    "vietnamese": "vi",
}
