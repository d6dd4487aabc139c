"""The stages of a job, and the share of the progress that each stage takes."""

from __future__ import annotations

from dataclasses import dataclass

from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Progress, Stage

# Approximate relative durations of the stages, for progress only; time estimates use measured durations.
STAGE_WEIGHTS: dict[Stage, float] = {
    "decode": 0.02,
    "load": 0.02,
    "vad": 0.04,
    "asr": 0.52,
    "align": 0.2,
    "diarize": 0.2,
}


@dataclass(frozen=True)
class StagePlan:
    """The stages of one job, in order.

    Attributes:
        stages: the names of the stages.
    """

    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, options: TranscriptionOptions) -> StagePlan:
        """The plan of a job with these options."""
        if options.task == "diarize":
            return cls(("decode", "vad", "diarize"))
        stages: list[Stage] = ["decode", "load", "vad", "asr"]
        if options.task != "detect_language":
            stages += ["align"] if options.align else []
            stages += ["diarize"] if options.diarize is not False else []
        return cls(tuple(stages))

    def progress(self, stage: Stage, fraction: float) -> Progress:
        """The progress of a job that is in a stage.

        Args:
            stage: one of the plan's stages, or ``done``.
            fraction: completed fraction of the stage, from 0 to 1.
        """
        if stage == "done":
            return Progress(1.0, "done", 1.0)
        weights = [STAGE_WEIGHTS[each] for each in self.stages]
        at = self.stages.index(stage)
        done = (sum(weights[:at]) + weights[at] * fraction) / sum(weights)
        return Progress(round(done, 4), stage, round(fraction, 4))
