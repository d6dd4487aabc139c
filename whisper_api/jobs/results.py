"""The stored result of a job, as every reader of results gets it."""

from __future__ import annotations

from msgspec.structs import replace

from whisper_api.job_values import Corrections
from whisper_api.jobs.corrections import applied
from whisper_api.schema import Transcript
from whisper_api.time_order import in_order

__all__ = ["corrected"]


def corrected(transcript: Transcript, corrections: Corrections | None) -> Transcript:
    """A stored transcript with its corrections.

    Args:
        transcript: the recognised transcript.
        corrections: the stored corrections, if any.
    """
    # Older versions have stored words and segments without length.
    transcript = replace(transcript, segments=in_order(transcript.segments))
    return transcript if corrections is None else applied(transcript, corrections)
