"""Words that the rules of redaction know, of several languages."""

from __future__ import annotations


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


SUFFIXES = _set(
    """
    com net org info biz edu gov mil int eu io co ai app dev me tv cc pro name fr de uk be ch ca es it nl pt br
    us at lu ie pl se no dk fi cz sk hu ro bg gr ru ua tr jp cn in au nz za mx ar cl re gp mq mc ma dz tn sn ci
    cm
    """
)
"""Last labels of domains that a spoken address may have."""

PLACE_WORDS = _set(
    """
    us me him her it them you online here there more site website page out up look visit available find found
    store shop work info is are was be order back live
    """
)
"""Words before "at" and a domain that make it a place, not an address: "visit us at example.com"."""

STOP_WORDS = _set(
    """
    is its it's at to the my your his her our their a an on by of and or email mail e-mail address adresse
    courriel est c'est à le la les mon ma son sa votre notre ton ta sur par de du des et ou au suis écrivez
    contact contacter contactez write send reach me moi us nous lautet ist die meine es mi correo su è mia meu
    """
)
"""Words that are no part of an address that follows them."""

TITLES = _set(
    """
    m mr mrs ms miss mme mmes mlle dr prof sir madam doctor professor monsieur messieurs madame mademoiselle
    docteur professeur maitre herr herrn frau doktor señor señora señorita don doña sr sra signor signora signorina
    dottor dottoressa senhor senhora meneer mevrouw dhr mevr captain sergeant officer judge uncle aunt tonton
    tante oncle tata
    """
)
"""Words before the name of a person."""

PARTICLES = _set(
    """
    de du des da do dos di del della van von den der la le el al ben bin ibn abu st zu ter ten
    """
)
"""Small words inside names."""

NOT_ALONE = _set(
    """
    alabama alaska arizona arkansas california colorado connecticut florida hawaii idaho illinois indiana iowa
    jersey kansas kentucky louisiana maine maryland massachusetts mexico michigan minnesota mississippi missouri
    nebraska nevada ohio oklahoma oregon pennsylvania tennessee texas utah vermont wisconsin wyoming brazil brésil
    italy italie spain espagne russia russie japan japon canada cuba peru algérie tunisie maroc
    monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
    september october november december easter christmas noël pâques god lord internet son nous saint sainte st
    mr mrs ms dr english french german spanish italian american british canadian indian chinese african america
    africa asia europe india israel china france york angeles francisco vegas london paris boston denver dallas
    houston chicago washington orlando melbourne berlin geneva genève lyon marseille toulouse nantes bordeaux
    lille rennes strasbourg dublin glasgow manchester liverpool cambridge oxford toronto montréal milan rome
    roma madrid lisbon vienna harvard renault peugeot ford leclerc carrefour house street church
    """
)
"""Capitalised words that Faker has among names, and that are no name alone: places, days, months and the like."""

STARTS = _set(
    """
    bonjour bonsoir salut allô hello thanks
    will art mark bill grace hope faith joy rose rich frank grant chase drew guy jack pat rob sue dawn amber
    crystal miles sky ray page so long many sure let see hi hey an ma my yes no ok okay don can how do does did
    au aux ai as ben bon bonne bien oui non merci cher chère aimé juste constance prudence olive blanche claire
    pierre elle nice tu said say good lee young ask noble king price post park white black brown green gray van
    de la le du da di den
    """
)
"""Words that begin sentences although they are names too, and that Faker's common words lack."""
