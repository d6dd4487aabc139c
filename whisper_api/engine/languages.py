"""The languages of Whisper, and the codes and names that users may use for them.

The library ``langcodes`` understands codes and names: it contains IANA's registry and the data of Unicode's CLDR.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable

from whisper_api.errors import InvalidOption

# Values of the option ``language`` that name no language: detect the one that is spoken, or the several ones.
AUTO = "auto"
MULTI = "multi"
# Whisper's code to the language's English name, as in OpenAI's tokenizer and responses. Only models from large-v3 on
# know the last language. whisperx has the same table, but a transcription does not load whisperx.
ENGLISH_NAMES = {
    "af": "afrikaans",
    "am": "amharic",
    "ar": "arabic",
    "as": "assamese",
    "az": "azerbaijani",
    "ba": "bashkir",
    "be": "belarusian",
    "bg": "bulgarian",
    "bn": "bengali",
    "bo": "tibetan",
    "br": "breton",
    "bs": "bosnian",
    "ca": "catalan",
    "cs": "czech",
    "cy": "welsh",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fo": "faroese",
    "fr": "french",
    "gl": "galician",
    "gu": "gujarati",
    "ha": "hausa",
    "haw": "hawaiian",
    "he": "hebrew",
    "hi": "hindi",
    "hr": "croatian",
    "ht": "haitian creole",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "is": "icelandic",
    "it": "italian",
    "ja": "japanese",
    "jw": "javanese",
    "ka": "georgian",
    "kk": "kazakh",
    "km": "khmer",
    "kn": "kannada",
    "ko": "korean",
    "la": "latin",
    "lb": "luxembourgish",
    "ln": "lingala",
    "lo": "lao",
    "lt": "lithuanian",
    "lv": "latvian",
    "mg": "malagasy",
    "mi": "maori",
    "mk": "macedonian",
    "ml": "malayalam",
    "mn": "mongolian",
    "mr": "marathi",
    "ms": "malay",
    "mt": "maltese",
    "my": "myanmar",
    "ne": "nepali",
    "nl": "dutch",
    "nn": "nynorsk",
    "no": "norwegian",
    "oc": "occitan",
    "pa": "punjabi",
    "pl": "polish",
    "ps": "pashto",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sa": "sanskrit",
    "sd": "sindhi",
    "si": "sinhala",
    "sk": "slovak",
    "sl": "slovenian",
    "sn": "shona",
    "so": "somali",
    "sq": "albanian",
    "sr": "serbian",
    "su": "sundanese",
    "sv": "swedish",
    "sw": "swahili",
    "ta": "tamil",
    "te": "telugu",
    "tg": "tajik",
    "th": "thai",
    "tk": "turkmen",
    "tl": "tagalog",
    "tr": "turkish",
    "tt": "tatar",
    "uk": "ukrainian",
    "ur": "urdu",
    "uz": "uzbek",
    "vi": "vietnamese",
    "yi": "yiddish",
    "yo": "yoruba",
    "zh": "chinese",
    "yue": "cantonese",
}
CODES = tuple(ENGLISH_NAMES)
_CODES_BY_NAME = {name: code for code, name in ENGLISH_NAMES.items()}

# Distances of CLDR's language matching. Up to the first distance, two codes name one language: ``fil`` and ``tl``,
# ``nb`` and ``no``, ``prs`` and ``fa``. Up to the second, speakers of one language mostly understand the other.
SAME_LANGUAGE = 5
RELATED_LANGUAGE = 25
# Matches a language's code with optional subtags for region, script and so on (RFC 5646), or a POSIX locale:
# ``fr_FR.UTF-8@euro``. The second subtag may be the actual code: ``zh-yue``.
_TAG = re.compile(r"([a-z]{2,3})(?:[-_]([a-z]{3})(?![a-z0-9]))?(?:[-_][a-z0-9]{1,8})*(?:\.[a-z0-9-]+)?(?:@[a-z0-9]+)?")
# Language of a media track without a known language, and of one with several languages (ISO 639-2).
UNDETERMINED = "und"
MULTIPLE = "mul"
MAX_CHARACTERS = 255


def language_or_auto(language: str) -> str:
    """As :func:`language_code`, except for languages that are to be detected.

    ``auto`` and ``und`` (undetermined) give ``auto``; ``multi`` and ``mul`` (multiple languages) give ``multi``.
    """
    name = language.strip().lower()
    if name in (AUTO, UNDETERMINED):
        return AUTO
    return MULTI if name in (MULTI, MULTIPLE) else language_code(language)


def language_code(language: str) -> str:
    """Whisper's code of a language.

    Args:
        language: a code of two or three letters (ISO 639), with or without a region or script (``fr``, ``pt_BR``,
            ``zh-Hant-TW``, ``fra``), or a name in English or in the language itself (``French``, ``français``).

    Raises:
        InvalidOption: Whisper does not know the language. The message names the nearest language that Whisper knows.
    """
    return _language_code(language[: MAX_CHARACTERS + 1].strip().lower())


@functools.lru_cache(maxsize=1024)
def _language_code(name: str) -> str:
    if name in ENGLISH_NAMES:
        return name
    if name in _CODES_BY_NAME:
        return _CODES_BY_NAME[name]
    candidates = _codes_in(name)
    for candidate in candidates:
        nearest = nearest_language(candidate, CODES)
        if nearest is not None:
            return nearest
    raise InvalidOption("language", _refusal(name, candidates))


def nearest_language(code: str, known: Iterable[str], distance: int = SAME_LANGUAGE) -> str | None:
    """The known code for the same language, or for a related language.

    Args:
        code: an ISO 639 code.
        known: codes to choose from.
        distance: greatest distance in CLDR's language matching: :data:`SAME_LANGUAGE`, :data:`RELATED_LANGUAGE`, or a
            number between them.

    Returns:
        The nearest code; None when all codes are farther away.

    See Also:
        Unicode Technical Standard 35, part 1, "Language Matching".
    """
    from langcodes import closest_match

    found, _ = closest_match(code, list(known), max_distance=distance, ignore_script=True)
    return None if found == "und" else found


def _codes_in(name: str) -> list[str]:
    """The ISO 639 codes that a code or name may mean, the most likely first."""
    import langcodes

    tag = _TAG.fullmatch(name)
    if tag is not None:
        # langcodes caches every tag that it has read, so it gets only these few letters.
        codes = [subtag for subtag in (tag[2], tag[1]) if subtag is not None]
        return [code for code in codes if langcodes.get(code).is_valid()]
    if not name.isprintable():
        # The index of names in langcodes fails on a NUL.
        return []
    try:
        language = langcodes.find(name).language
    except LookupError:
        return []
    return [] if language is None else [language]


def _refusal(name: str, candidates: list[str]) -> str:
    import langcodes

    choices = f"auto, multi or one of {', '.join(CODES)}"
    if candidates:
        code = candidates[0]
        unknown = f"Whisper does not know {name[:80]!r} ({langcodes.get(code).display_name()}, {code})"
        nearest = nearest_language(code, CODES, RELATED_LANGUAGE)
        if nearest is not None:
            return f"{unknown}; the nearest that it knows is {nearest} ({ENGLISH_NAMES[nearest]})"
        return f"{unknown}, nor a related language; use {choices}"
    similar = difflib.get_close_matches(name, _CODES_BY_NAME, n=1)
    hint = f"did you mean {_CODES_BY_NAME[similar[0]]} ({similar[0]})? Otherwise use" if similar else "use"
    return f"{name[:80]!r} is not a language Whisper knows; {hint} {choices}"


def translates(model: str) -> bool:
    """Whether a multilingual Whisper model was trained to translate; turbo and the distilled ones were not."""
    return "turbo" not in model and not model.startswith("distil")
