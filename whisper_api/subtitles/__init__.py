"""Subtitles: splits a transcript into subtitles with their lines and times.

Without options, the subtitles are those of whisperx 3.8: one line for each segment. Options and presets are rules that
:mod:`~whisper_api.subtitles.layout` obeys all at once; ``docs/subtitles.md`` lists them. A warning names each rule that
cannot hold: speech without pauses may be faster than people read, and a word may be wider than a line.

This folder imports only values, and functions of words and times.
"""

from whisper_api.subtitles.cells import display_width
from whisper_api.subtitles.cue import Cue
from whisper_api.subtitles.layout import speaker_label
from whisper_api.subtitles.subtitles import subtitles
from whisper_api.subtitles.writers import ass, clock, cues_json, srt, vtt

__all__ = ["Cue", "ass", "clock", "cues_json", "display_width", "speaker_label", "srt", "subtitles", "vtt"]
