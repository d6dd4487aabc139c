"""Word documents: what a reader of the format finds in them."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
import zipfile

import docx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from whisper_api import InvalidOption, Segment, Transcript, TranscriptionOptions, document, render
from whisper_api.formats import DOCUMENTS


def call(*segments: Segment, language: str = "en") -> Transcript:
    options = TranscriptionOptions(language=language)
    return Transcript(language=language, duration=9999.0, segments=segments, model="base", options=options)


def said(start: float, text: str, speaker: str | None = "Ada") -> Segment:
    return Segment(id=0, start=start, end=start + 1, text=text, speaker=speaker)


def shown(content: bytes) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Style of each paragraph, and its runs with whether they are bold."""
    return [
        (paragraph.style.name, [(run.text, bool(run.bold)) for run in paragraph.runs])
        for paragraph in docx.Document(io.BytesIO(content)).paragraphs
    ]


def test_a_document_has_a_paragraph_for_each_turn() -> None:
    transcript = call(
        said(0, " Hello."), said(1, "How are you?"), said(2, "Fine & <well>.", "Bob"), said(3700, "Bye.", None)
    )
    assert shown(document(transcript)) == [
        ("Speaker", [("Ada", True), (" (0:00)", False)]),
        ("Normal", [("Hello. How are you?", False)]),
        ("Speaker", [("Bob", True), (" (0:02)", False)]),
        ("Normal", [("Fine & <well>.", False)]),
        ("Speaker", [("1:01:40", True)]),
        ("Normal", [("Bye.", False)]),
    ]


def test_a_document_has_the_paragraphs_of_markdown() -> None:
    transcript = call(*(said(2 * number, f"Sentence {number} of the call.") for number in range(60)))
    heads = [paragraph for paragraph in shown(document(transcript)) if paragraph[0] == "Speaker"]
    assert len(heads) == render(transcript, "md").count("**Ada**") > 1


@given(st.text(max_size=50), st.text(max_size=10), st.sampled_from(["en", "ar", "ja"]))
def test_any_text_makes_a_document_that_can_be_read(text: str, speaker: str, language: str) -> None:
    content = document(call(said(0, text, speaker), language=language))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        for name in archive.namelist():
            ET.fromstring(archive.read(name))
    assert len(docx.Document(io.BytesIO(content)).paragraphs) == 2
    assert document(call(said(0, text, speaker), language=language)) == content


def test_a_document_knows_its_language_and_direction() -> None:
    for language, mirrored in (("fr", False), ("ar", True)):
        read = docx.Document(io.BytesIO(document(call(said(0, "x"), language=language))))
        assert f'w:val="{language}"' in read.styles.element.xml
        assert all(("w:bidi" in paragraph._p.xml) == mirrored for paragraph in read.paragraphs)  # noqa: SLF001


def test_a_detected_language_is_a_document_too() -> None:
    transcript = replace(call(language="fr"), language_probability=0.984, language_probabilities={"fr": 0.984})
    assert shown(document(transcript)) == [("Normal", [("fr 0.98", False)])]


def test_a_document_is_no_text_and_a_text_no_document() -> None:
    for name in DOCUMENTS:
        with pytest.raises(InvalidOption, match=r"no text: document\(\) writes it"):
            render(call(), name)
    with pytest.raises(InvalidOption, match="unknown document 'srt'; valid are docx"):
        document(call(), "srt")
