"""Finds email addresses, as they are written and as they are spoken."""

from __future__ import annotations

import re

from whisper_api.engine.redaction.findings import Finding
from whisper_api.engine.redaction.vocabulary import PLACE_WORDS, STOP_WORDS, SUFFIXES

AT = r"(?:arr?obase?|arroba|chiocciola|klammeraffe|apenstaartje|apestaartje|ät)"
PAUSE = r"[\s,]+"  # people pause while they dictate
DOT = r"(?:dot|point|punkt|punto|ponto|punt)"
MARKS = (
    r"(?:dash|hyphen|minus|tiret(?:\s+(?:du\s+)?(?:bas|huit|six))?|moins|underscore|souligné|plus|bindestrich|unterstrich|"
    r"guion(?:\s+bajo)?|hífen|trattino(?:\s+basso)?|liggend\s+streepje|streepje)"
)
# Letters that are spelled one by one, or a word.
ATOM = r"(?:[^\W_](?:[ ,-]+[^\W_])+(?![^\W_])|[^\W_]+)"
LOCAL = rf"{ATOM}(?:(?:[.+_-]+|\.\s(?-i:(?=[a-z]))|{PAUSE}(?:{DOT}|{MARKS}){PAUSE}){ATOM})*"
SUFFIX = rf"(?:{'|'.join(sorted(SUFFIXES))})(?![^\W_])"
LABEL = r"(?:[^\W_](?:[ -][^\W_])+(?![^\W_])|[^\W_]+)"
DOMAIN_ATOM = rf"{LABEL}(?:(?:-|{PAUSE}(?:{MARKS}){PAUSE}){LABEL})*"
# A full stop with a space around it is a dot only before a small letter: a sentence begins with a capital.
SPOKEN_DOT = rf"(?:{PAUSE}{DOT}{PAUSE}|\.|\s*\.\s*(?-i:(?=[a-z])))"
LONGEST_PART = 100  # characters on each side of the mark between name and domain
ANY_DOMAIN = (
    rf"{DOMAIN_ATOM}(?:(?:{SPOKEN_DOT}{DOMAIN_ATOM}){{0,4}}?(?:{SPOKEN_DOT}{SUFFIX}){{1,3}}|(?:\.{DOMAIN_ATOM})*)"
)
# "at" is a word of its own in English, as "chez" is in French: a spoken or a well-known domain must follow.
KNOWN_DOMAIN = (
    r"(?:gmail|googlemail|yahoo|ymail|hotmail|outlook|live|msn|icloud|me|mac|aol|proton|protonmail|gmx|web|orange|"
    rf"wanadoo|free|sfr|laposte){SPOKEN_DOT}{SUFFIX}(?:{SPOKEN_DOT}{SUFFIX})?"
)
CLEAR_DOMAIN = rf"(?:{DOMAIN_ATOM}{SPOKEN_DOT}){{1,5}}?{SUFFIX}(?:{SPOKEN_DOT}{SUFFIX})?"


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


MARK = _compiled(rf"\s*(?P<written>@)\s*|{PAUSE}(?P<spoken>{AT}){PAUSE}|{PAUSE}(?:at|chez){PAUSE}")
BEFORE = _compiled(rf"(?<![^\W_]){LOCAL}$")
SPOKEN_MARK = _compiled(rf"{DOT}|{MARKS}")
AFTER_SIGN, AFTER_KNOWN, AFTER_WORD = _compiled(ANY_DOMAIN), _compiled(KNOWN_DOMAIN), _compiled(CLEAR_DOMAIN)
# Words that end an address to the left. People leave out the marks between words of an address, so that up to
# LEFT_WORDS other words before it belong to the address.
LEFT_WORDS = 2
WORD_BEFORE = re.compile(r"([^\W_]+(?:['’-][^\W_]+)*)\s+$")


def find_emails(text: str) -> list[Finding]:
    """The email addresses of a text.

    Args:
        text: any text.
    """
    found = []
    for mark in MARK.finditer(text):
        window = text[max(mark.start() - LONGEST_PART, 0) : mark.start()]
        before = BEFORE.search(window)
        if before is None:
            continue
        right = text[mark.end() : mark.end() + LONGEST_PART]
        if mark["written"] or mark["spoken"]:
            after = AFTER_SIGN.match(right)
        else:
            after = AFTER_KNOWN.match(right)
            if after is None and before[0].lower() not in PLACE_WORDS:
                after = AFTER_WORD.match(right)
        if after is not None:
            start = mark.start() - len(before[0])
            start = start if mark["written"] else _start_of_address(text, start)
            found.append(Finding(start, mark.end() + after.end(), "emails"))
    return found


def _start_of_address(text: str, start: int) -> int:
    words, marked = 0, False
    while words < LEFT_WORDS or marked:
        before = WORD_BEFORE.search(text[max(start - LONGEST_PART, 0) : start])
        if before is None or (not marked and before[1].lower().replace("’", "'") in STOP_WORDS):
            break
        start -= len(before[0])
        # What stands before a spoken dot or hyphen belongs to the address.
        marked = SPOKEN_MARK.fullmatch(before[1]) is not None
        words += not marked
    return start
