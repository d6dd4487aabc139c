"""The rules of a layout: the numbers of a preset for the text's language, and the options that replace them."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from whisper_api.options import RenderOptions

# Read on 29 November 2026: Netflix, partnerhelp.netflixstudios.com, articles 215758617 "General Requirements" (5/6 s to
# 7 s, two lines), 360051554394 "Subtitle Timing Guidelines" (a gap of two frames, here of 24 a second; pauses of up to
# half a second are closed), 219375728 "English Template" (42 characters), 215767517 "Japanese" (13), 216001127 "Korean"
# (16) and 220448308 "Thai" (35), and for Chinese (16) a table of these guides by others; BBC, "Subtitle Guidelines", as
# clevercast.com/bbc-subtitling-guidelines sums them up (160 to 180 words a minute, which are 15 characters a second;
# two lines; 68 % of the picture). The other numbers are from memory.
_NETFLIX = RenderOptions(
    max_line_width=42,
    max_line_count=2,
    min_duration=0.834,
    max_duration=7.0,
    min_gap=0.084,
    max_characters_per_second=20.0,
    speakers="dash",
)
PRESETS: dict[str, RenderOptions] = {
    "netflix": _NETFLIX,
    "bbc": replace(_NETFLIX, max_line_width=37, min_duration=1.0, min_gap=0.08, max_characters_per_second=15.0),
    "default": replace(_NETFLIX, min_duration=1.0),
}
# Characters in a line, and characters a second (None: as in the preset) of Netflix's guides for these languages, for
# subtitles in the spoken language. They hold in every preset.
LANGUAGES: dict[str, tuple[int, float | None]] = {
    "ja": (13, 7.0),
    "ko": (16, 14.0),
    "ru": (39, None),
    "th": (35, None),
    "yue": (16, 11.0),
    "zh": (16, 11.0),
}
# A shorter pause between two subtitles is closed up to the gap, since a subtitle that is gone for a moment flickers.
FLICKER_MILLISECONDS = {"netflix": 500, "bbc": 1000, "default": 500}


@dataclass(frozen=True)
class Rules:
    """The rules of one layout.

    Attributes:
        width: most printed characters in a line; None for any number.
        lines: most lines in a subtitle; None for any number.
        min_duration, max_duration: milliseconds; None for no limit.
        gap: least milliseconds between two subtitles.
        flicker: a pause of fewer milliseconds is closed up to the gap.
        characters_per_second: None for any number.
        speakers: how speakers are marked.
        typography: whether a cut name and a single word on a last line are reported.
    """

    width: int | None
    lines: int | None
    min_duration: int
    max_duration: int | None
    gap: int
    flicker: int
    characters_per_second: float | None
    speakers: str
    typography: bool

    @property
    def merges(self) -> bool:
        """Whether a subtitle may continue over the end of a segment."""
        return self.width is not None and self.lines is not None

    @property
    def two_speakers(self) -> bool:
        """Whether a subtitle may have two speakers, on lines of their own."""
        return self.speakers == "dash" and self.merges and self.lines is not None and self.lines > 1

    @property
    def splits(self) -> bool:
        """Whether a segment may become several subtitles."""
        return self.merges or self.max_duration is not None


def needs_layout(options: RenderOptions) -> bool:
    """Whether the subtitles differ from those of whisperx."""
    # The number of lines means nothing without their width.
    return replace(options, max_line_count=None) != RenderOptions()


def rules_of(options: RenderOptions, language: str) -> Rules:
    """The rules that options ask for.

    Args:
        options: an option that is set replaces the number of the preset.
        language: code of the text's language.
    """
    preset = options.subtitle_preset
    values = msgspec.structs.asdict(PRESETS[preset] if preset else RenderOptions())
    if preset and language in LANGUAGES:
        width, speed = LANGUAGES[language]
        values["max_line_width"] = min(values["max_line_width"], width)
        values["max_characters_per_second"] = speed or values["max_characters_per_second"]
    values |= {name: value for name, value in msgspec.structs.asdict(options).items() if value is not None}
    shortest, longest = values["min_duration"], values["max_duration"]
    if shortest is not None and longest is not None and shortest > longest:
        # The options are checked against each other, so one of the two is the preset's.
        shortest = longest = shortest if options.min_duration is not None else longest
    return Rules(
        width=values["max_line_width"],
        lines=values["max_line_count"] if values["max_line_width"] is not None else None,
        min_duration=_milliseconds(shortest or 0.0),
        max_duration=None if longest is None else max(1, _milliseconds(longest)),
        gap=_milliseconds(values["min_gap"] or 0.0),
        flicker=FLICKER_MILLISECONDS[preset] if preset else 0,
        characters_per_second=values["max_characters_per_second"],
        speakers=values["speakers"] or "label",
        typography=preset is not None,
    )


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
