"""Whether digits may be a phone number, a payment card, a bank account or a national id."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from whisper_api.options import RedactKind

# Where a language is spoken, the largest regions first. A language that is not here has its likeliest region.
REGIONS = {
    "de": ("DE", "AT", "CH"),
    "en": ("US", "GB", "CA", "AU", "IE", "NZ", "IN", "ZA"),
    "es": ("ES", "MX", "AR", "CO", "CL", "PE"),
    "fr": ("FR", "BE", "CH", "CA", "LU"),
    "it": ("IT", "CH"),
    "nl": ("NL", "BE"),
    "pt": ("BR", "PT"),
}
# The modules of python-stdnum for the numbers that a region gives to persons.
IDS = {
    "AR": ("dni",),
    "AT": ("vnr",),
    "AU": ("tfn",),
    "BE": ("nn",),
    "BG": ("egn",),
    "BR": ("cpf",),
    "CA": ("sin",),
    "CH": ("ssn",),
    "CL": ("rut",),
    "CN": ("ric",),
    "CO": ("nit",),
    "CZ": ("rc",),
    "DE": ("idnr",),
    "DK": ("cpr",),
    "ES": ("dni", "nie"),
    "FI": ("hetu",),
    "FR": ("nir",),
    "GB": ("nhs",),
    "GR": ("amka",),
    "HR": ("oib",),
    "IE": ("pps",),
    "IN": ("aadhaar", "pan"),
    "IT": ("codicefiscale",),
    "KR": ("rrn",),
    "MX": ("curp", "rfc"),
    "NL": ("bsn",),
    "NO": ("fodselsnummer",),
    "NZ": ("ird",),
    "PE": ("cui",),
    "PL": ("pesel",),
    "PT": ("cc",),
    "RO": ("cnp",),
    "SE": ("personnummer",),
    "SK": ("rc",),
    "TR": ("tckimlik",),
    "US": ("ssn", "itin"),
    "ZA": ("idnr",),
}
CARD_DIGITS = range(13, 20)
PHONE_DIGITS = range(7, 16)
# A number that may be a phone number by its length alone has at least so many digits.
POSSIBLE_PHONE_DIGITS = 9
ACCOUNT_CHARACTERS = range(15, 35)
# Country to the length of its IBANs, for countries whose numbers are often said.
ACCOUNT_LENGTHS = {
    "FR": 27,
    "BE": 16,
    "CH": 21,
    "LU": 20,
    "DE": 22,
    "AT": 20,
    "ES": 24,
    "IT": 27,
    "NL": 18,
    "PT": 25,
    "GB": 22,
}
ID_CHARACTERS = range(8, 19)


@functools.cache
def regions(language: str) -> tuple[str, ...]:
    """The regions whose numbers are looked for in a text.

    Args:
        language: code of the text's language.
    """
    if language in REGIONS:
        return REGIONS[language]
    import langcodes

    try:
        territory = langcodes.Language.get(language).maximize().territory
    except ValueError:
        territory = None
    return (territory,) if territory else ()


@functools.lru_cache(maxsize=4096)
def possible_kinds(value: str, groups: tuple[int, ...], of: tuple[str, ...], *, plus: bool) -> tuple[RedactKind, ...]:
    """The kinds of numbers that letters and digits may be, the likeliest first.

    Args:
        value: digits and capital letters.
        groups: numbers of characters in each written or spoken group.
        of: codes of the regions that give the number.
        plus: whether a plus stands before it.
    """
    digits = value if value.isdecimal() else ""
    may_be: tuple[tuple[RedactKind, bool], ...] = (
        ("accounts", _is_account(value)),
        ("cards", _is_card(digits)),
        ("phones", phone := _is_phone(digits, of, plus=plus)),
        ("ids", _is_id(value, of)),
        ("phones", not phone and _may_be_phone(digits, groups, of)),
    )
    return tuple(kind for kind, possible in may_be if possible)


def _is_card(digits: str) -> bool:
    """Whether digits are a payment card's number (ISO/IEC 7812).

    A wrong check digit is accepted where length and first digit are those of the large networks: one digit may be
    misheard.
    """
    from stdnum import luhn

    if len(digits) not in CARD_DIGITS or len(set(digits)) == 1:
        return False
    return bool(luhn.is_valid(digits)) or (len(digits) == 16 and digits[0] in "23456") or digits[:2] in ("34", "37")


def _is_account(value: str) -> bool:
    """Whether letters and digits are an IBAN (ISO 13616), or look like one with a wrong check digit."""
    from stdnum import iban

    if len(value) not in ACCOUNT_CHARACTERS or not (value[:2].isalpha() and value[2:4].isdecimal()):
        return False
    return bool(iban.is_valid(value)) or (len(value) == ACCOUNT_LENGTHS.get(value[:2]))


def _is_id(value: str, of: Sequence[str]) -> bool:
    """Whether letters and digits are a national id: social security, tax or identity number.

    Args:
        value: digits and capital letters.
        of: codes of the regions that give the number.
    """
    if len(value) not in ID_CHARACTERS or sum(map(str.isdecimal, value)) < ID_CHARACTERS[0] - 1:
        return False
    return any(check.is_valid(value) for region in of for check in _id_checks(region))


@functools.cache
def _id_checks(region: str) -> tuple[Any, ...]:
    from stdnum.util import get_cc_module

    modules = (get_cc_module(region.lower(), name) for name in IDS.get(region, ()))
    return tuple(module for module in modules if module is not None)


def _is_phone(digits: str, of: Sequence[str], *, plus: bool) -> bool:
    """Whether digits are a valid phone number.

    Args:
        digits: the digits, without a plus.
        of: codes of the regions whose national numbers are accepted.
        plus: whether a plus stands before the digits.
    """
    import phonenumbers

    if len(digits) not in PHONE_DIGITS:
        return False
    if plus or digits.startswith("00"):
        return _parsed(f"+{digits.removeprefix('00')}", None) is not None and len(digits) >= POSSIBLE_PHONE_DIGITS - 1
    numbers = (_parsed(digits, region) for region in of)
    return any(number is not None and phonenumbers.is_valid_number(number) for number in numbers)


def _may_be_phone(digits: str, groups: Sequence[int], of: Sequence[str]) -> bool:
    """Whether digits have the length of a phone number, or the groups of a number inside a city."""
    from phonenumbers import ValidationResult, is_possible_number_with_reason

    if len(digits) not in PHONE_DIGITS:
        return False
    local = len(digits) == 7 and (tuple(groups) == (3, 4) or set(groups) == {1})
    accepted = {
        *((ValidationResult.IS_POSSIBLE,) if len(digits) >= POSSIBLE_PHONE_DIGITS else ()),
        *((ValidationResult.IS_POSSIBLE_LOCAL_ONLY,) if local else ()),
    }
    numbers = (_parsed(digits, region) for region in of) if accepted else ()
    return any(number is not None and is_possible_number_with_reason(number) in accepted for number in numbers)


def _parsed(digits: str, region: str | None) -> Any:
    import phonenumbers

    try:
        return phonenumbers.parse(digits, region)
    except phonenumbers.NumberParseException:
        return None
