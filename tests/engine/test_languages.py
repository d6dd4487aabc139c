"""The one table of languages that every door uses."""

from __future__ import annotations

import sys

import pytest

from whisper_api.engine.languages import (
    CODES,
    ENGLISH_NAMES,
    RELATED_LANGUAGE,
    language_code,
    language_or_auto,
    nearest_language,
)
from whisper_api.errors import InvalidOption

WRITTEN = {
    "en": ("EN", "en-GB", "eng", "English", "en_US.UTF-8", "Anglais"),
    "fr": (" FR ", "fr-CA", "fr_FR@euro", "fra", "fre", "FRA", "French", "français"),
    "de": ("de-AT", "ger", "deu", "German", "Deutsch"),
    "ja": ("jpn", "ja-JP", "日本語"),
    "pt": ("pt_BR", "por", "Portuguese (Brazil)"),
    "zh": ("zh-TW", "zh_CN", "zh-Hant-HK", "cmn", "cmn-Hans-CN", "zh-cmn", "zho", "chi", "mandarin", "中文"),
    "yue": ("yue-HK", "zh-yue", "Cantonese"),
    "no": ("nb", "nb-NO", "nob", "nor", "Norwegian", "norsk"),
    "nn": ("nno", "nn-NO", "Nynorsk"),
    "tl": ("fil", "fil-PH", "tgl", "Filipino", "Tagalog"),
    "he": ("iw", "heb", "iw-IL"),
    "jw": ("jv", "jav", "Javanese"),
    "id": ("in", "ind", "in_ID"),
    "yi": ("ji", "yid"),
    "ro": ("mo", "ron", "rum", "Moldavian", "Moldovan"),
    "fa": ("pes", "prs", "per", "Farsi"),
    "ms": ("zsm", "may"),
    "my": ("Burmese", "Myanmar"),
    "es": ("Castilian", "es-419"),
    "nl": ("Flemish", "dut"),
    "ht": ("Haitian", "Haitian Creole"),
    "lb": ("Letzeburgesch",),
    "pa": ("Panjabi",),
    "ps": ("Pushto",),
    "si": ("Sinhalese",),
    "ca": ("Valencian",),
}


@pytest.mark.parametrize(("written", "code"), [(each, code) for code, names in WRITTEN.items() for each in names])
def test_codes_regions_and_names(written: str, code: str) -> None:
    assert language_code(written) == code


@pytest.mark.parametrize(
    "written", ["klingon", "", "xx", "../etc", "x-private", "\0", "fr;en", "a" * 100_000, "ﬁ" * 300]
)
def test_languages_that_whisper_does_not_know_are_refused(written: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        language_code(written)
    assert caught.value.field == "language"
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("gsw", "de (german)"),
        ("Swiss German", "de (german)"),
        ("arz", "ar (arabic)"),
        ("frnch", "fr (french)"),
        ("Potuguese", "pt (portuguese)"),
    ],
)
def test_a_refusal_names_the_nearest_language_that_whisper_knows(written: str, nearest: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        language_code(written)
    assert nearest in str(caught.value)


def test_every_code_and_every_english_name_of_whisper_is_understood() -> None:
    for code, name in ENGLISH_NAMES.items():
        assert language_code(code) == code
        assert language_code(code.upper()) == code
        assert language_code(f"{code}-Latn-XX") == code
        assert language_code(name.title()) == code


def test_every_three_letter_code_of_a_language_of_whisper_is_understood() -> None:
    import langcodes

    for code in CODES:
        three_letters = langcodes.get(code).to_alpha3()
        for variant in {three_letters, langcodes.get(code).to_alpha3(variant="B")}:
            assert language_code(variant) == code


def test_auto_and_an_undetermined_language_are_detected() -> None:
    assert [language_or_auto(each) for each in ("auto", " AUTO ", "und", "nb")] == ["auto", "auto", "auto", "no"]


def test_several_languages_are_no_language() -> None:
    assert [language_or_auto(each) for each in ("multi", " Multi ", "mul")] == ["multi"] * 3
    for each in ("multi", "mul"):
        with pytest.raises(InvalidOption):
            language_code(each)


def test_the_nearest_of_some_languages() -> None:
    assert nearest_language("yue", ("en", "zh"), RELATED_LANGUAGE) == "zh"
    assert nearest_language("gsw", ("de", "en")) is None
    assert nearest_language("ja", ("en", "zh"), RELATED_LANGUAGE) is None


def test_tags_of_clients_do_not_fill_the_cache_of_langcodes() -> None:
    """The library keeps every tag that it parses, so the package parses only the parts that it needs."""
    import langcodes

    def kept() -> int:
        # langcodes has no public way to the size of its cache.
        return len(langcodes.Language._PARSE_CACHE)  # noqa: SLF001

    language_code("fr-x-first")
    before = kept()
    for number in range(2000):
        language_code(f"fr-x-{number}")
    assert kept() == before


def test_a_code_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langcodes", None)
    assert language_code("fr") == "fr"
    assert language_code("german") == "de"
