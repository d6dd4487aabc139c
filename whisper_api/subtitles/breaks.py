"""How well a line or a subtitle may end between two cells.

The costs follow the advice of Netflix's "Timed Text Style Guide" and of the BBC's "Subtitle Guidelines": break after
punctuation and before conjunctions and prepositions; keep an article, a preposition, a number or a title with its
word, and the words of a name together.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

from whisper_api.subtitles.cells import Cell

SENTENCE = 0
CLAUSE = 12
BEFORE_CONJUNCTION = 25
BEFORE_PREPOSITION = 40
ORDINARY = 60
INSIDE_PHRASE = 90
INSIDE_WORD = 150
CUT_PHRASE = 250
"""A break of this cost or more separates a name, a number or an article from its word."""
CUT_NAME = 400

SENTENCE_MARKS = frozenset(".!?…。！？؟।")
CLAUSE_MARKS = frozenset(",;:–—、，；：،؛")
QUOTES_AND_BRACKETS = "\"'”\u2019»)]}」』） "
BEGINS_LINE = frozenset("-–—«♪♫")
OPENING_MARKS = "\"'«“‘„([¿¡ "


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TITLES = _words("mr mrs ms dr prof st mme mlle m me hr fr herr frau sr sra srta sig dott monsieur madame señor señora")
BEFORE_NUMBER = _words("abb art cap ch chap fig no nr núm p pag pp pág vol")  # abbreviations
# Languages that write ordinal numbers with a full stop.
ORDINAL_STOP = _words("cs da de et fi fo hr hu is lb lv nn no pl sk sl sr tr")
# "J.", "U.S.", "a.m.", "z.B."
INITIALS = re.compile(r"(?:[^\W\d_]\.)+")

# Articles, prepositions and possessives, which stay with the next word.
LEADING: dict[str, frozenset[str]] = {
    "en": _words(
        "a an the of to in on at by for with from into about over under between my your his her its our their "
        "this these those no every each"
    ),
    "fr": _words(
        "le la les l' un une des du de d' au aux à en dans sur sous pour par avec sans chez vers entre mon ma mes "
        "ton ta tes son sa ses notre nos votre vos leur leurs ce cet cette ces chaque"
    ),
    "de": _words(
        "der die das den dem des ein eine einen einem einer eines in im an am auf aus bei beim mit nach von vom zu "
        "zum zur für durch über unter ohne gegen vor mein meine dein deine sein seine ihr ihre unser unsere"
    ),
    "es": _words(
        "el la los las un una unos unas de del a al en con por para sin sobre entre hasta desde mi mis tu tus su sus "
        "nuestro nuestra este esta estos estas cada"
    ),
    "it": _words(
        "il lo la gli le i un uno una di del dello della dei degli delle a al allo alla ai agli alle da dal dalla in "
        "nel nella con su sul sulla per tra fra mio mia tuo tua suo sua questo questa ogni"
    ),
}
CONJUNCTIONS: dict[str, frozenset[str]] = {
    "en": _words(
        "and but or so because that which who what when where why how while whether if unless although though since "
        "until before after than"
    ),
    "fr": _words(
        "et mais ou donc car que qu' qui quand où si parce puisque lorsque comme comment pourquoi combien tandis "
        "pendant dont"
    ),
    "de": _words(
        "und aber oder denn weil dass daß wenn als ob obwohl während damit sondern bevor nachdem wo wie warum was wer "
        "wann"
    ),
    "es": _words("y e o u pero sino porque que cuando donde si aunque mientras como pues cómo qué quién quien"),
    "it": _words("e ed o ma però perché che chi quando dove se mentre come anche quindi poiché"),
}


# Subjects and other small words before a verb, which stay with the verb.
PRONOUNS: dict[str, frozenset[str]] = {
    "en": _words("i he she we they i'm he's she's we're they're i've we've they've i'll he'll she'll we'll they'll"),
    "fr": _words("je tu il on ils ne se me te j'ai"),
    "de": _words("ich du er wir man"),
    "es": _words("yo tú él se me te no"),
    "it": _words("io tu lui si mi ti non"),
}


def break_costs(cells: Sequence[Cell], language: str) -> list[int]:
    """The cost of a break before each cell; the first is :data:`SENTENCE`.

    Args:
        cells: the cells of a transcript, in order.
        language: code of the text's language. Articles and conjunctions are known for en, fr, de, es and it.
    """
    leading = LEADING.get(language, frozenset())
    conjunctions = CONJUNCTIONS.get(language, frozenset())
    pronouns = PRONOUNS.get(language, frozenset())
    costs = [SENTENCE]
    begins_sentence = True
    for index, (before, after) in enumerate(pairwise(cells), start=1):
        if before.speaker != after.speaker:
            costs.append(SENTENCE)
        elif not (after.space or before.segment != after.segment):
            following = cells[index + 1] if index + 1 < len(cells) else None
            costs.append(_spaceless_cost(before, after, following, language))
        else:
            ordinals = language in ORDINAL_STOP
            cost = _spaced_cost(before.text, after.text, begins_sentence, leading, conjunctions, ordinals)
            subject = before.text.lower().replace("’", "'").lstrip(OPENING_MARKS)
            if subject in pronouns or subject.rpartition("'")[2] in pronouns:
                cost = max(cost, INSIDE_WORD)
            costs.append(cost)
        if before.segment != after.segment:
            # Whisper ended a sentence here, with or without a mark.
            costs[-1] = min(costs[-1], CLAUSE)
        begins_sentence = costs[-1] == SENTENCE
    return costs


def _spaced_cost(
    before: str,
    after: str,
    begins_sentence: bool,
    leading: frozenset[str],
    conjunctions: frozenset[str],
    ordinals: bool,
) -> int:
    """The cost of a break at a space.

    Args:
        before: the word before the space.
        after: the word after the space.
        begins_sentence: whether ``before`` is the first word of its sentence.
        leading: articles and prepositions of the language.
        conjunctions: conjunctions of the language.
        ordinals: whether the language writes ordinal numbers with a full stop.
    """
    if _is_mark(after):
        return CUT_NAME
    bare = before.rstrip(QUOTES_AND_BRACKETS)
    last = bare[-1:]
    word = bare.rstrip(".").lower().lstrip(OPENING_MARKS)
    follower = after.lstrip(OPENING_MARKS)
    if last == "." and _abbreviates(word, bare, follower, ordinals):
        return CUT_NAME
    initials = INITIALS.fullmatch(bare.lstrip(OPENING_MARKS))
    if last in SENTENCE_MARKS and not initials and not follower[:1].islower():
        return SENTENCE
    if (last in SENTENCE_MARKS and last != ".") or last in CLAUSE_MARKS or bare in ("-", "–", "—"):
        return CLAUSE
    lower = follower.rstrip(",.;:!?…").lower()
    if last.isdigit() and lower not in conjunctions:
        return CUT_NAME
    if word in TITLES and follower[:1].isupper():
        return CUT_NAME
    capital = bare[:1].isupper() and bare not in ("I", "I'm", "I'll", "I've", "I'd")
    if capital and (follower[:1].isupper() or follower[:1].isdigit()):
        # The first word of a sentence has a capital for another reason, unless the language knows nothing of it.
        return CUT_PHRASE if begins_sentence and (word in leading or word in conjunctions) else CUT_NAME
    if word in leading or word.endswith(("l'", "d'", "qu'", "l’", "d’", "qu’", "est-ce")):
        return CUT_PHRASE
    if word in conjunctions:
        return INSIDE_PHRASE
    if lower in conjunctions:
        return BEFORE_CONJUNCTION
    return BEFORE_PREPOSITION if lower in leading else ORDINARY


def _abbreviates(word: str, bare: str, follower: str, ordinals: bool) -> bool:
    """Whether a word that ends with a full stop belongs to the word after.

    Args:
        word: the word in small letters, without marks.
        bare: the word with its full stop.
        follower: the word after, without the marks that open it.
        ordinals: as in :func:`_spaced_cost`.
    """
    if follower[:1].isdigit():
        return word in BEFORE_NUMBER
    # The parts of "p. ex.", "z. B." and "J. R. R. Tolkien".
    return word in TITLES or (len(word) == 1 and word.isalpha()) or (ordinals and word.isdigit() and len(bare) <= 3)


def _is_mark(text: str) -> bool:
    """Whether a text has only punctuation or symbols, as a unit or the mark that French sets apart."""
    return all(unicodedata.category(character)[0] in "PS" for character in text) and text not in BEGINS_LINE


def _spaceless_cost(before: Cell, after: Cell, following: Cell | None, language: str) -> int:
    """The cost of a break between two cells where the script has no space.

    Args:
        before: the cell before the break.
        after: the cell after the break.
        following: the cell after ``after``; None at the end of the text.
        language: code of the text's language.
    """
    last, first = before.text[-1], after.text[0]
    bare = before.text.rstrip(QUOTES_AND_BRACKETS)[-1:]
    if bare in SENTENCE_MARKS:
        return SENTENCE
    if bare in CLAUSE_MARKS:
        return CLAUSE
    if before.parts[-1].word == after.parts[0].word:
        return INSIDE_WORD
    kinds = (_script(last), _script(first))
    if kinds[0] == kinds[1] and kinds[0] in ("KATAKANA", "DIGIT", "LATIN"):
        return CUT_NAME
    if kinds[0] == "DIGIT":
        return CUT_NAME
    # A Japanese phrase ends with hiragana: particles and endings follow the noun or the verb. Only the polite prefixes
    # precede their word.
    if kinds[0] == "HIRAGANA" and kinds[1] != "HIRAGANA":
        return INSIDE_WORD if last in "おご" else BEFORE_PREPOSITION
    if kinds[1] == "HIRAGANA":
        prefix = first in "おご" and following is not None and _script(following.text[0]) == "CJK"
        return BEFORE_PREPOSITION if prefix else INSIDE_WORD
    if kinds[0] != kinds[1]:
        return ORDINARY
    # Particles separate the words of Japanese, so characters of Chinese in a row are mostly one word.
    return INSIDE_WORD if language == "ja" else INSIDE_PHRASE


def _script(character: str) -> str:
    if character.isdigit():
        return "DIGIT"
    return unicodedata.name(character, "").partition(" ")[0]
