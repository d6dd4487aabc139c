"""Options: checked once, when they are made, and filled in once, when a job starts."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from whisper_api.engine.options import ResolvedOptions, resolve
from whisper_api.errors import InvalidOption
from whisper_api.options import TranscriptionOptions, VadMethod


def resolved(**options: Any) -> ResolvedOptions:
    return resolve(TranscriptionOptions(**options), model="base", language="auto")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"min_speakers": 3, "max_speakers": 2}, "min_speakers"),
        ({"vad_offset": 0.9}, "vad_offset"),
        ({"vad_onset": 0.3, "vad_offset": 0.4}, "vad_offset"),
    ],
)
def test_options_that_contradict_each_other_cannot_be_made(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidOption) as made:
        TranscriptionOptions(**options)
    with pytest.raises(InvalidOption) as read:
        TranscriptionOptions.from_dict(options)
    assert made.value.field == read.value.field == field


@pytest.mark.parametrize("method", get_args(VadMethod))
def test_resolved_options_have_no_missing_values(method: VadMethod) -> None:
    options = resolved(vad=method)
    assert (options.model, options.language, options.beam_size) == ("base", "auto", 5)
    assert None not in (options.vad_onset, options.vad_offset, options.vad_min_silence, options.vad_padding)
    assert options.vad_offset <= options.vad_onset


def test_a_low_onset_lowers_the_default_offset() -> None:
    assert resolved(vad_onset=0.2).vad_offset == 0.2


def test_values_that_were_given_stay() -> None:
    given: dict[str, Any] = {
        "beam_size": 1,
        "vad_onset": 0.6,
        "vad_offset": 0.1,
        "vad_min_silence": 0.0,
        "vad_padding": 0.0,
        "num_speakers": 2,
        "prompt": "Whisper",
    }
    options = resolved(**given)
    assert {name: getattr(options, name) for name in given} == given
    assert resolved(language="French").language == "fr"
    with pytest.raises(InvalidOption, match="language"):
        resolved(language="klingon")


def test_a_transcript_has_the_filled_in_values_as_plain_options() -> None:
    options = resolved()
    plain = options.for_transcript()
    assert type(plain) is TranscriptionOptions
    assert msgspec.structs.asdict(plain) == msgspec.structs.asdict(options)
