"""Transcripts for people who read: paragraphs with their speaker and time, as Markdown and as a Word document.

The Word document is written without a library: it is a ZIP archive of a few XML files (ECMA-376, Office Open XML).
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from whisper_api.schema import Segment, Transcript
from whisper_api.subtitles import clock
from whisper_api.word_spacing import joined

PARAGRAPH_PAUSE = 2.0  # seconds of silence that end a paragraph
PARAGRAPH_CHARACTERS = 600  # a longer paragraph ends with its sentence
# Languages that are written from right to left.
RIGHT_TO_LEFT = frozenset(("ar", "fa", "he", "ps", "sd", "ur", "yi"))
# Characters that XML 1.0 cannot contain.
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# The same transcript gives the same bytes: the archive has no time.
NO_TIME = (1980, 1, 1, 0, 0, 0)
NAMESPACE = "http://schemas.openxmlformats.org"
XML = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
WORD_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml"
CONTENT_TYPES = f"""{XML}<Types xmlns="{NAMESPACE}/package/2006/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/word/document.xml" ContentType="{WORD_TYPE}.document.main+xml"/>
<Override PartName="/word/styles.xml" ContentType="{WORD_TYPE}.styles+xml"/>
</Types>"""
RELATIONSHIPS = f"""{XML}<Relationships xmlns="{NAMESPACE}/package/2006/relationships">
<Relationship Id="rId1" Type="{NAMESPACE}/officeDocument/2006/relationships/{{kind}}" Target="{{target}}"/>
</Relationships>"""
STYLES = f"""{XML}<w:styles xmlns:w="{NAMESPACE}/wordprocessingml/2006/main">
<w:docDefaults><w:rPrDefault><w:rPr><w:sz w:val="22"/><w:lang w:val={{language}} w:bidi={{language}}/></w:rPr>
</w:rPrDefault><w:pPrDefault><w:pPr><w:spacing w:after="160" w:line="276" w:lineRule="auto"/></w:pPr></w:pPrDefault>
</w:docDefaults>
<w:style w:type="paragraph" w:default="1" w:styleId="Normal"><w:name w:val="Normal"/></w:style>
<w:style w:type="paragraph" w:customStyle="1" w:styleId="Speaker"><w:name w:val="Speaker"/><w:basedOn w:val="Normal"/>
<w:pPr><w:keepNext/><w:spacing w:before="160" w:after="40"/></w:pPr></w:style>
</w:styles>"""
DOCUMENT = f"""{XML}<w:document xmlns:w="{NAMESPACE}/wordprocessingml/2006/main"><w:body>
{{body}}
</w:body></w:document>"""
BOLD = "<w:b/><w:bCs/>"


class Paragraph(NamedTuple):
    """What one speaker says without a long pause.

    Attributes:
        speaker: label; None without diarization.
        time: when it begins: minutes and seconds, and hours where there are any.
        text: the text in one line.
    """

    speaker: str | None
    time: str
    text: str


def paragraphs(transcript: Transcript) -> list[Paragraph]:
    """The paragraphs of a transcript, divided where the speaker changes, after a pause, and when one is long."""
    found = []
    for group in _groups(transcript.segments):
        hours, minutes, seconds, _ = clock(group[0].start)
        time = f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
        text = " ".join(joined(segment.text for segment in group).split())
        found.append(Paragraph(group[0].speaker, time, text))
    return found


def _groups(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    group: list[Segment] = []
    for segment in segments:
        if group:
            last = group[-1]
            long = sum(len(each.text) for each in group) > PARAGRAPH_CHARACTERS
            if long or segment.speaker != last.speaker or segment.start - last.end > PARAGRAPH_PAUSE:
                yield group
                group = []
        group.append(segment)
    if group:
        yield group


def markdown(transcript: Transcript) -> str:
    """The paragraphs of a transcript as Markdown."""
    shown = []
    for speaker, time, text in paragraphs(transcript):
        head = f"**{time}**" if speaker is None else f"**{_markdown_escaped(speaker)}** ({time})"
        shown.append(f"{head}\n\n{_markdown_escaped(text)}\n")
    return "\n".join(shown)


def _markdown_escaped(text: str) -> str:
    """Text that Markdown shows as it is: marks are escaped, and a beginning that would make a list or a heading."""
    text = re.sub(r"([\\`*_\[\]<>&|~])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([#+=-]|\d+(?=[.)]))", lambda match: _escaped_start(match[0]), text)


def _escaped_start(start: str) -> str:
    return f"&#{ord(start[0])};{start[1:]}"


def docx(transcript: Transcript) -> bytes:
    """The paragraphs of a transcript as a Word document, each after a line with its speaker and time.

    The task ``detect_language`` has no text; its document has the language and the probability.
    """
    language = transcript.options.written_language(transcript.language)
    mirrored = language in RIGHT_TO_LEFT
    body = []
    if transcript.language_probabilities is not None:
        probability = transcript.language_probability
        found = transcript.language if probability is None else f"{transcript.language} {probability:.2f}"
        body.append(_paragraph([_run(found)], mirrored=False))
    for speaker, time, text in paragraphs(transcript):
        head = [_run(time, BOLD)] if speaker is None else [_run(speaker, BOLD), _run(f" ({time})")]
        body.append(_paragraph(head, '<w:pStyle w:val="Speaker"/>', mirrored=mirrored))
        body.append(_paragraph([_run(text, "<w:rtl/>" if mirrored else "")], mirrored=mirrored))
    parts = {
        "[Content_Types].xml": CONTENT_TYPES,
        "_rels/.rels": RELATIONSHIPS.format(kind="officeDocument", target="word/document.xml"),
        "word/_rels/document.xml.rels": RELATIONSHIPS.format(kind="styles", target="styles.xml"),
        "word/styles.xml": STYLES.format(language=quoteattr(language)),
        "word/document.xml": DOCUMENT.format(body="\n".join(body)),
    }
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in parts.items():
            file.writestr(zipfile.ZipInfo(name, NO_TIME), content, zipfile.ZIP_DEFLATED)
    return archive.getvalue()


def _paragraph(runs: Sequence[str], properties: str = "", *, mirrored: bool) -> str:
    return f"<w:p><w:pPr>{properties}{'<w:bidi/>' if mirrored else ''}</w:pPr>{''.join(runs)}</w:p>"


def _run(text: str, properties: str = "") -> str:
    shown = escape(NOT_XML.sub("\ufffd", text))
    return f'<w:r><w:rPr>{properties}</w:rPr><w:t xml:space="preserve">{shown}</w:t></w:r>'
