"""Languages by code and name, as Whisper knows them."""

from __future__ import annotations

from whisper_api.errors import InvalidOption

__all__ = ["CODES", "language_code"]

# Of OpenAI Whisper's tokenizer; large-v3 knows all of them, older models all but the last.
# fmt: off
CODES = (
    "af", "am", "ar", "as", "az", "ba", "be", "bg", "bn", "bo", "br", "bs", "ca", "cs", "cy", "da",
    "de", "el", "en", "es", "et", "eu", "fa", "fi", "fo", "fr", "gl", "gu", "ha", "haw", "he", "hi",
    "hr", "ht", "hu", "hy", "id", "is", "it", "ja", "jw", "ka", "kk", "km", "kn", "ko", "la", "lb",
    "ln", "lo", "lt", "lv", "mg", "mi", "mk", "ml", "mn", "mr", "ms", "mt", "my", "ne", "nl", "nn",
    "no", "oc", "pa", "pl", "ps", "pt", "ro", "ru", "sa", "sd", "si", "sk", "sl", "sn", "so", "sq",
    "sr", "su", "sv", "sw", "ta", "te", "tg", "th", "tk", "tl", "tr", "tt", "uk", "ur", "uz", "vi",
    "yi", "yo", "zh", "yue",
)
# fmt: on


def language_code(language: str) -> str:
    """The code of a language.

    Args:
        language: a code (``fr``), with or without a region (``fr-CA``), or an English name (``French``).

    Raises:
        InvalidOption: Whisper does not know it.
    """
    wanted = language.strip().lower()
    code = NAMES.get(wanted, wanted.replace("_", "-").partition("-")[0])
    if code not in CODES:
        raise InvalidOption(
            "language", f"{language!r} is not a language Whisper knows; use auto or one of {', '.join(CODES)}"
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
