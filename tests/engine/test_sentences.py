"""Sentences: every character is in exactly one, abbreviations do not end them, words stay whole."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_api.engine.sentences import spans, split_sentences
from whisper_api.schema import LANGUAGES_WITHOUT_SPACES, Segment, Word

LANGUAGES = ["en", "fr", "de", "es", "it", "nl", "pt", "pl", "ru", "zh", "ja", "ar", "th", "xx", ""]

SENTENCES = {
    "en": [
        "Dr. Smith arrived at 3.14 p.m. yesterday.",
        "He lives in the U.S. with Mrs. Jones.", '"Is it true?" she asked.',
        "No.", "I don't think so.", "We use tools, e.g. hammers, etc. for that.", "No. 5 is the best.", "What?!",
        "Mt. Everest is tall.", "He said, \"Go home.\"", "Then he left.",
    ],
    "fr": [
        "M. Dupont est arrivé hier.", "Il a rencontré Mme. Martin et le Dr. Petit.", "Est-ce vrai\u00a0?", "Oui !",
        "L'O.N.U. a voté.", "Voir p. 12, fig. 3, etc. pour les détails.", "J'aime l'art.", "Ça coûte 3.14 euros.",
    ],
    "de": [
        "Dr. Müller kam um 15.30 Uhr.", "Das ist z. B. ein Test.", "Am 3. Oktober ist Feiertag.", "Wirklich?",
        "Im 19. Jahrhundert war das anders.", "Ja!",
    ],
    "es": ["El Sr. García llegó a las 3.30 p. m. ayer.", "La Dra. López vive aquí.", "¿Es verdad?", "¡Sí!"],
    "it": ["Il Sig. Rossi è arrivato.", "Il dott. Bianchi e la sig.ra Verdi parlano.", "È vero?"],
    "nl": ["Dhr. Jansen kwam om 15.30 uur.", "Dat is bijv. een test.", "Mevr. de Vries is weg.", "Echt waar?"],
    "pt": ["O Sr. Silva chegou às 15.30 ontem.", "A Dra. Souza saiu.", "É verdade?"],
    "pl": ["Dr Kowalski przyszedł wczoraj.", "To jest np. test.", "Prof. Nowak mieszka przy ul. Długiej.", "Tak!"],
    "ru": ["Он живёт в г. Москве на ул. Ленина.", "Это правда?", "А. С. Пушкин писал стихи."],
    "zh": ["你好。", "今天天气很好！", "你要去哪里？", "他说：“我不知道。”", "价格是3.5元。"],
    "ja": ["こんにちは。", "今日はいい天気ですね！", "「行こう！」と彼は言った。", "はい。"],
}  # fmt: skip


@pytest.mark.parametrize("language", SENTENCES)
def test_text_is_split_into_sentences(language: str) -> None:
    text = ("" if language in LANGUAGES_WITHOUT_SPACES else " ").join(SENTENCES[language])
    assert [text[start:end] for start, end in spans(text, language)] == SENTENCES[language]


@given(
    st.text(
        st.one_of(st.characters(), st.sampled_from(' .!?。！？…\n\u00a0\u3000\u2028\ud800"»」Aaé1あ')), max_size=60
    ),
    st.sampled_from(LANGUAGES),
)
def test_every_character_is_in_one_sentence(text: str, language: str) -> None:
    found = spans(text, language)
    covered = [position for start, end in found for position in range(start, end)]
    assert covered == sorted(set(covered))
    assert {i for i, character in enumerate(text) if not character.isspace()} <= set(covered)
    for start, end in found:
        assert text[start:end] == text[start:end].strip() != ""
    if language not in LANGUAGES_WITHOUT_SPACES:
        assert all(text[first[1] : second[0]].isspace() for first, second in pairwise(found))


@pytest.mark.parametrize("text", ["", " ", "\n", "\ud800", "... . !", '\u00a0\u3000.\u3000A\u00a0.👩"', "a" * 100_000])
def test_odd_text_is_no_error(text: str) -> None:
    assert [text[start:end] for start, end in spans(text, "en") if not text[start:end].strip()] == []
    assert "".join("".join(text[start:end] for start, end in spans(text, "en")).split()) == "".join(text.split())


def segment(text: str, words: list[str], *, start: float = 1.0) -> Segment:
    times = tuple(Word(word=word, start=start + i, end=start + i + 0.5, score=0.9) for i, word in enumerate(words))
    return Segment(id=9, start=0.0, end=100.0, text=text, words=times, avg_logprob=-0.2, flags=("repetitive",))


def test_segments_are_cut_between_words_at_the_ends_of_sentences() -> None:
    text = " M. Dupont est là. Oui ! Il dort."
    whole = segment(text, ["M.", "Dupont", "est", "là.", "Oui !", "Il", "dort."])
    cut = split_sentences([whole], "fr")
    assert [(s.id, s.text) for s in cut] == [(0, "M. Dupont est là."), (1, "Oui !"), (2, "Il dort.")]
    assert [(s.start, s.end) for s in cut] == [(1.0, 4.5), (5.0, 5.5), (6.0, 7.5)]
    assert [word for s in cut for word in s.words] == list(whole.words)
    assert {(s.avg_logprob, s.flags) for s in cut} == {(-0.2, ("repetitive",))}


def test_words_join_without_spaces_where_the_language_has_none() -> None:
    cut = split_sentences([segment("", ["你", "好。", "今", "天", "好！"])], "zh")
    assert [(s.text, len(s.words)) for s in cut] == [("你好。", 2), ("今天好！", 3)]


def test_a_word_over_the_end_of_a_sentence_stays_whole() -> None:
    cut = split_sentences([segment("你好。今天好！", ["你", "好。今", "天好！"])], "zh")
    assert [(s.text, [word.word for word in s.words]) for s in cut] == [
        ("你好。今", ["你", "好。今"]),
        ("天好！", ["天好！"]),
    ]


def test_words_that_are_not_the_text_s_replace_it() -> None:
    cut = split_sentences([segment("something else", ["One.", "Two."])], "en")
    assert [s.text for s in cut] == ["One.", "Two."]


def test_segments_without_words_stay() -> None:
    plain = Segment(id=3, start=0.0, end=2.0, text="One. Two.")
    assert split_sentences([plain, segment("A. B.", ["A.", "B."])], "en")[0] == Segment(
        id=0, start=0.0, end=2.0, text="One. Two."
    )


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Zs", "Cc", "Cs"]), min_size=1).map(str.strip).filter(bool),
        max_size=30,
    )
)
def test_no_word_is_lost(words: list[str]) -> None:
    whole = segment(" " + " ".join(words), words)
    cut = split_sentences([whole], "en")
    assert [word for s in cut for word in s.words] == list(whole.words)
    assert " ".join(" ".join(s.text for s in cut).split()) == " ".join(" ".join(words).split())
    assert all(s.start <= word.start and word.end <= s.end for s in cut for word in s.words)
