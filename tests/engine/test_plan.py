"""The stages of a job, and the progress that each stands for."""

from __future__ import annotations

import itertools

import pytest

from whisper_api.engine.plan import STAGE_WEIGHTS, StagePlan
from whisper_api.options import TranscriptionOptions

EVERYTHING = TranscriptionOptions()


def test_the_stages_follow_from_the_options() -> None:
    for options, stages in (
        (EVERYTHING, ("decode", "load", "vad", "asr", "align", "diarize")),
        (TranscriptionOptions(diarize=True, align=False), ("decode", "load", "vad", "asr", "diarize")),
        (TranscriptionOptions(diarize=False, align=False), ("decode", "load", "vad", "asr")),
        (TranscriptionOptions(task="detect_language", diarize=True), ("decode", "load", "vad", "asr")),
    ):
        assert StagePlan.of(options).stages == stages


def test_every_stage_has_a_weight() -> None:
    assert set(StagePlan.of(EVERYTHING).stages) == set(STAGE_WEIGHTS)


@pytest.mark.parametrize("options", [EVERYTHING, TranscriptionOptions(diarize=False, align=False)])
def test_progress_rises_from_nothing_to_the_whole_without_a_gap(options: TranscriptionOptions) -> None:
    plan = StagePlan.of(options)
    told = [plan.progress(stage, fraction) for stage in plan.stages for fraction in (0.0, 0.25, 1.0)]
    assert told[0].fraction == 0.0
    assert told[-1].fraction == plan.progress("done", 0.0).fraction == 1.0
    assert all(before.fraction <= after.fraction for before, after in itertools.pairwise(told))
    for before, after in itertools.pairwise(plan.stages):
        assert plan.progress(before, 1.0).fraction == plan.progress(after, 0.0).fraction


def test_progress_has_the_fraction_of_its_own_stage() -> None:
    assert [StagePlan.of(EVERYTHING).progress("asr", done).stage_fraction for done in (0.0, 0.4, 1.0)] == [
        0.0,
        0.4,
        1.0,
    ]
