"""Redaction of segments: text and words stay in step, and nothing that was replaced remains."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from whisper_api.engine.redaction import limits, redact
from whisper_api.engine.redaction.segments import MARKERS
from whisper_api.formats import FORMATS, render
from whisper_api.options import RedactKind, TranscriptionOptions
from whisper_api.schema import Segment, TokenLogprob, Transcript, Word
from whisper_api.word_spacing import word_spans

ALL: tuple[RedactKind, ...] = ("names", "emails", "phones", "cards", "accounts", "ids", "numbers")
# What people say, and the parts of it that may not remain.
SECRETS = {
    "jean.dupont@gmail.com,": ("jean", "dupont", "gmail"),
    "marie point curie arobase orange point fr": ("marie", "curie", "orange"),
    "06 12 34 56 78.": ("12", "34", "56", "78"),
    "zéro six douze trente-quatre cinquante-six soixante-dix-huit": ("douze", "trente", "cinquante"),
    "4970 1012 3412 3454": ("4970", "1012", "3412", "3454"),
    "FR76 3000 6000 0112 3456 7890 189": ("FR76", "3000", "189"),
    "monsieur Karim Benzema": ("Karim", "Benzema"),
    "Sophie": ("Sophie",),
}
FILLERS = ("alors", "et", "voilà", "merci.", "le dossier", "dans la maison", "puis", "« bon »,")


@st.composite
def spoken(draw: st.DrawFn) -> tuple[list[Segment], list[str]]:
    """Segments in which people say secrets, cut anywhere between words; with the parts that may not remain."""
    parts = draw(st.lists(st.sampled_from([*SECRETS, *FILLERS]), min_size=1, max_size=12))
    words = [word for part in parts for word in ("alors", *part.split())]
    cuts = sorted(draw(st.sets(st.integers(1, max(len(words) - 1, 1)), max_size=4)))
    timed = draw(st.booleans())
    segments = []
    for number, (first, last) in enumerate(itertools.pairwise([0, *cuts, len(words)])):
        chosen = words[first:last]
        if chosen:
            text = " ".join(chosen)
            segments.append(
                Segment(
                    id=number,
                    start=float(first),
                    end=float(last),
                    text=text,
                    words=tuple(
                        Word(word=word, start=float(first + n), end=first + n + 0.5, score=0.9)
                        for n, word in enumerate(chosen)
                    )
                    if timed
                    else (),
                    seek=100 * draw(st.integers(number, number)),
                    tokens=(1, 2),
                    logprobs=(TokenLogprob(token=text, bytes=tuple(text.encode()), logprob=-0.1),),
                )
            )
    return segments, [secret for part in parts for secret in SECRETS.get(part, ())]


def transcript_of(segments: list[Segment]) -> Transcript:
    return Transcript(
        language="fr", duration=1000.0, segments=tuple(segments), model="base", options=TranscriptionOptions()
    )


@given(spoken())
def test_no_secret_remains_in_any_output(given: tuple[list[Segment], list[str]]) -> None:
    segments, secrets = given
    redacted = redact(segments, ALL, "fr")
    outputs = [" ".join(segment.text for segment in redacted.segments)]
    transcript = transcript_of(redacted.segments)
    outputs += [word.word for word in transcript.words]
    outputs += [token.token for segment in redacted.segments for token in segment.logprobs]
    outputs += [segment.text for segment in redacted.segments]
    for secret in secrets:
        assert not any(secret in text for text in outputs)
    for format in FORMATS:
        shown = render(transcript, format)
        assert not any(secret in shown for secret in secrets if not secret.isdecimal())


@given(spoken())
def test_text_and_words_stay_in_step_and_in_time(given: tuple[list[Segment], list[str]]) -> None:
    segments, secrets = given
    redacted = redact(segments, ALL, "fr")
    assert bool(redacted.redactions) == bool(secrets)
    assert len(redacted.segments) == len(segments)
    for before, after in zip(segments, redacted.segments, strict=True):
        assert (before.id, before.start, before.end) == (after.id, after.start, after.end)
        if before.words:
            assert word_spans(after.text, [word.word for word in after.words]) is not None
            assert (after.words[0].start, after.words[-1].end) == (before.words[0].start, before.words[-1].end)
        for one, other in itertools.pairwise(after.words):
            assert one.end <= other.start
        markers = sum(after.text.count(marker) for marker in MARKERS.values())
        inside = [each for each in redacted.redactions if before.start <= each.start < before.end]
        assert markers == len(inside)
        for word in after.words:
            hidden = any(marker in word.word for marker in MARKERS.values())
            assert hidden == (word.score is None)
            assert hidden == any((each.start, each.end) == (word.start, word.end) for each in inside)


@given(spoken())
def test_redaction_of_the_redacted_changes_nothing(given: tuple[list[Segment], list[str]]) -> None:
    segments, _ = given
    once = redact(segments, ALL, "fr").segments
    assert redact(once, ALL, "fr").segments == once


@given(spoken())
def test_tokens_remain_where_nothing_was_replaced(given: tuple[list[Segment], list[str]]) -> None:
    segments, _ = given
    for before, after in zip(segments, redact(segments, ALL, "fr").segments, strict=True):
        assert after == before or (after.tokens, after.logprobs) == ((), ())


def test_what_cannot_be_found_is_named() -> None:
    def named(text: str, language: str, *kinds: RedactKind) -> list[str]:
        return limits([Segment(id=0, start=0, end=1, text=text)], kinds, language)

    assert named("Bonjour Sophie, un deux trois.", "fr", *ALL) == []
    assert named("Anna ringde.", "sv", "names", "emails") == []
    assert [warning.split(":")[1] for warning in named("Anna ringde.", "sv", "phones")] == [
        " numbers that are written as words are not found in the language sv"
    ]
    (names,) = named("田中さん", "ja", "names")
    assert "no capital letters" in names
    (names,) = named("Aloha e Keola", "haw", "names")
    assert "no list of names of the language haw" in names


def test_a_window_loses_its_tokens_as_a_whole() -> None:
    token = TokenLogprob(token="x", bytes=(120,), logprob=0.0)
    first = Segment(id=0, start=0, end=1, text="Rien.", seek=0, tokens=(1,), logprobs=(token,))
    named = replace(first, id=1, start=1, end=2, text="Bonjour Sophie.")
    other = replace(first, id=2, start=2, end=3, seek=300)
    found = redact([first, named, other], ["names"], "fr").segments
    assert [len(segment.tokens) for segment in found] == [0, 0, 1]
    assert found[1].text == "Bonjour [NAME]."


def test_a_text_that_lacks_its_words_is_made_from_them() -> None:
    words = (Word(word="Bonjour", start=0, end=1), Word(word="Sophie", start=1, end=2))
    found = redact([Segment(id=0, start=0, end=2, text="Salut Sophie", words=words)], ["names"], "fr")
    assert found.segments[0].text == "Bonjour [NAME]"
    assert [word.word for word in found.segments[0].words] == ["Bonjour", "[NAME]"]
