"""Languages by code and name."""

from __future__ import annotations

import pytest

from whisper_api.engine.languages import NAMES, language_code
from whisper_api.errors import InvalidOption


@pytest.mark.parametrize(
    ("written", "code"),
    [("fr", "fr"), (" FR ", "fr"), ("fr-CA", "fr"), ("pt_BR", "pt"), ("French", "fr"), ("yue", "yue")],
)
def test_codes_regions_and_names(written: str, code: str) -> None:
    assert language_code(written) == code


@pytest.mark.parametrize("written", ["klingon", "", "xx", "../etc"])
def test_what_whisper_does_not_know_is_refused(written: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        language_code(written)
    assert caught.value.field == "language"


def test_every_name_leads_to_a_code_that_whisper_knows() -> None:
    for name, code in NAMES.items():
        assert language_code(name) == code
