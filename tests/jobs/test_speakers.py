"""Known speakers of a service: enrolment, and which voices a job looks for."""

from __future__ import annotations

import pytest
from fakes import Services, ended, submit

from whisper_api.errors import InvalidOption, SpeakerExists, SpeakerLimit, SpeakerNotFound
from whisper_api.jobs.speakers import MAX_SAMPLES
from whisper_api.testing import FakeExecutor

# To the fake executor, recordings of even sizes are one voice, and those of odd sizes another.
EVEN, ODD = b"xx", b"x"


def test_a_job_looks_for_the_voices_that_its_owner_has_when_it_runs(serve: Services) -> None:
    executor = FakeExecutor()
    speakers = serve(executor).speakers
    service = serve(executor := FakeExecutor(held=True))
    speakers = service.speakers
    ada = speakers.enroll("a", " Ada ", [EVEN])
    speakers.enroll("b", "Bo", [EVEN])
    first = submit(service, owner="a")
    waiting = submit(service, owner="a", identify=True)
    assert ada.name == "Ada"
    speakers.rename(ada.speaker_id, "a", "Ada L.")
    speakers.delete(speakers.enroll("a", "Cy", [EVEN]).speaker_id, "a")
    executor.release()
    for job_id in (first, waiting):
        assert ended(service, job_id).status == "Completed"
    assert executor.voices == {first: (), waiting: ("Ada L.",)}


def test_speakers_of_others_are_not_found(serve: Services) -> None:
    speakers = serve().speakers
    ada = speakers.enroll("a", "Ada", [EVEN])
    assert speakers.list("b") == ()
    assert speakers.list(None) == speakers.list("a") == (ada,)
    for touch in (
        lambda: speakers.get(ada.speaker_id, "b"),
        lambda: speakers.rename(ada.speaker_id, "b", "Eve"),
        lambda: speakers.add_samples(ada.speaker_id, "b", [EVEN]),
        lambda: speakers.delete(ada.speaker_id, "b"),
        lambda: speakers.get("no such id", None),
    ):
        with pytest.raises(SpeakerNotFound):
            touch()
    assert speakers.get(ada.speaker_id, None) == ada
    speakers.delete(ada.speaker_id, None)
    assert speakers.list(None) == ()


def test_recordings_are_added_and_one_that_differs_is_named(serve: Services) -> None:
    speakers = serve(max_speakers_per_key=1).speakers
    ada = speakers.enroll("a", "Ada", [EVEN, EVEN])
    assert (ada.samples, ada.seconds, ada.warnings) == (2, 2.0, ())
    more = speakers.add_samples(ada.speaker_id, "a", [EVEN, ODD])
    assert (more.samples, more.model) == (4, "fake")
    (warning,) = more.warnings
    assert warning.startswith("recording 2 does not sound like the others")
    assert speakers.get(ada.speaker_id, "a").warnings == ()
    with pytest.raises(SpeakerLimit, match=f"{MAX_SAMPLES} recordings"):
        speakers.add_samples(ada.speaker_id, "a", [EVEN] * (MAX_SAMPLES - 3))
    with pytest.raises(SpeakerLimit, match="1 speakers"):
        speakers.enroll("a", "Bo", [EVEN])
    with pytest.raises(SpeakerExists):
        speakers.enroll("a", "Ada", [EVEN])
    for recordings in ([], [EVEN] * (MAX_SAMPLES + 1)):
        with pytest.raises(InvalidOption, match=f"1 to {MAX_SAMPLES} recordings"):
            speakers.add_samples(ada.speaker_id, "a", recordings)
    with pytest.raises(InvalidOption, match="samples: recording 2: nobody can be heard"):
        speakers.add_samples(ada.speaker_id, "a", [EVEN, b""])


def test_new_recordings_replace_those_of_another_model(serve: Services) -> None:
    executor = FakeExecutor()
    speakers = serve(executor).speakers
    ada = speakers.enroll("a", "Ada", [EVEN, EVEN])
    executor.voice_model = "newer"
    renewed = speakers.add_samples(ada.speaker_id, "a", [ODD])
    assert (renewed.model, renewed.samples) == ("newer", 1)
    assert renewed.warnings == (
        "the 2 earlier recordings were dropped, because another model than newer had embedded them",
    )
