"""Estimates of the time of jobs, learned per model, device and stage; unknown while one of the numbers is missing."""

from __future__ import annotations

import uuid

import pytest
from msgspec.structs import replace

from whisper_api.jobs.estimates import SHORTEST, Estimates
from whisper_api.jobs.running import ProgressSnapshot
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Progress, Stage
from whisper_api.store.jobs import JobStore
from whisper_api.store.rows import Job
from whisper_api.testing import fake_transcript

PLAIN = TranscriptionOptions(align=False, diarize=False)


@pytest.fixture
def estimates(store: JobStore) -> Estimates:
    return new(store)


def new(store: JobStore, *, device: str = "cpu", slots: int = 1) -> Estimates:
    return Estimates(store, lambda: device, lambda options: options.model or "base", slots)


def job(job_id: str, seconds: float | None = 100.0, options: TranscriptionOptions = PLAIN) -> Job:
    return Job(
        job_id=job_id,
        owner="",
        options=options,
        output_format="txt",
        audio_bytes=1,
        audio_seconds=seconds,
        created_at=0.0,
    )


def live(stage: Stage, stage_fraction: float = 0.0, stage_seconds: float = 0.0) -> ProgressSnapshot:
    return ProgressSnapshot(Progress(0.5, stage, stage_fraction), stage_seconds, 0.0, "")


def teach(store: JobStore, estimates: Estimates, model: str = "base", seconds: float = 100.0, **timings: float) -> None:
    """Let a job of this model and length end, by default in 13 seconds."""
    timings = {"decode": 1.0, "vad": 2.0, "asr": 10.0, **timings}
    took = replace(fake_transcript("x", timings=timings), model=model, duration=seconds)
    job_id = str(uuid.uuid4())
    store.add(job(job_id))
    store.claim(job_id, 1.0)
    assert store.complete(job_id, took, 2.0, estimates.rates_of(took))
    estimates.learned()


def test_the_estimate_is_unknown_before_a_job_has_ended(estimates: Estimates) -> None:
    estimates.expect(job("a"))
    assert estimates.of_queued("a", ["a"], {}) is None
    assert estimates.of_running("a", live("asr")) is None


def test_time_is_in_proportion_to_the_audio(store: JobStore, estimates: Estimates) -> None:
    teach(store, estimates)
    for job_id, seconds in (("a", 100.0), ("b", 300.0), ("short", 1.0), ("shorter", 0.1)):
        estimates.expect(job(job_id, seconds))
    assert estimates.of_running("a", live("decode")) == pytest.approx(13.0)
    assert estimates.of_running("b", live("decode")) == pytest.approx(39.0)
    assert estimates.of_running("short", live("decode")) == pytest.approx(0.13 * SHORTEST)
    assert estimates.of_running("shorter", live("decode")) == estimates.of_running("short", live("decode"))


@pytest.mark.parametrize(
    ("others", "took"),
    [
        # Detection reads only a few windows of an hour, so it takes no longer than for a minute.
        (TranscriptionOptions(task="detect_language", align=False, diarize=False), {"asr": 0.3}),
        (TranscriptionOptions(task="translate", align=False, diarize=False), {"asr": 900.0}),
        (TranscriptionOptions(task="translate", diarize=False), {"asr": 900.0, "align": 0.0}),
        # An hour of silence.
        (PLAIN, {"asr": 0.0}),
    ],
    ids=["detect_language", "translate", "translate with word times", "silence"],
)
def test_jobs_of_another_kind_do_not_spoil_the_estimate(
    store: JobStore, estimates: Estimates, others: TranscriptionOptions, took: dict[str, float]
) -> None:
    teach(store, estimates, align=5.0)
    with_words = TranscriptionOptions(diarize=False)
    for job_id, options in (("plain", PLAIN), ("words", with_words)):
        estimates.expect(job(job_id, options=options))
    before = [estimates.of_running(job_id, live("decode")) for job_id in ("plain", "words")]
    assert before == [pytest.approx(13.0), pytest.approx(18.0)]
    for number in range(10):
        heard = replace(
            fake_transcript("x", others, timings={"decode": 36.0, "vad": 72.0, **took}),
            model="base",
            duration=3600.0,
            language_probabilities={"en": 1.0} if others.task == "detect_language" else None,
            **({"segments": ()} if others.task == "detect_language" or others is PLAIN else {}),
        )
        store.add(job(f"other-{number}"))
        store.claim(f"other-{number}", 1.0)
        assert store.complete(f"other-{number}", heard, 2.0, estimates.rates_of(heard))
    estimates.learned()
    assert [estimates.of_running(job_id, live("decode")) for job_id in ("plain", "words")] == before


def test_the_time_to_tell_a_language_does_not_grow_with_the_audio(store: JobStore, estimates: Estimates) -> None:
    detect = TranscriptionOptions(task="detect_language", align=True, diarize=None)
    heard = replace(
        fake_transcript("", detect, timings={"decode": 1.0, "vad": 2.0, "asr": 0.5}),
        model="base",
        duration=100.0,
        segments=(),
        language_probabilities={"en": 1.0},
    )
    store.add(job("first", options=detect))
    store.claim("first", 1.0)
    store.complete("first", heard, 2.0, estimates.rates_of(heard))
    estimates.learned()
    estimates.expect(job("next", 1000.0, options=detect))
    assert estimates.of_running("next", live("decode")) == pytest.approx(10.0 + 20.0 + 0.5)


def test_a_short_recording_does_not_teach_that_all_are_slow(store: JobStore) -> None:
    teach(store, new(store), seconds=1.0)
    assert store.stage_rates()["base", "cpu", "asr"] == pytest.approx(10.0 / SHORTEST)


def test_models_and_devices_are_told_apart(store: JobStore) -> None:
    estimates = new(store)
    teach(store, estimates)
    estimates.expect(job("a", options=replace(PLAIN, model="large-v3")))
    assert estimates.of_queued("a", ["a"], {}) is None
    teach(store, estimates, "large-v3", asr=97.0)
    assert estimates.of_running("a", live("decode")) == pytest.approx(100.0)
    elsewhere = new(store, device="cuda:0")
    elsewhere.expect(job("a"))
    assert elsewhere.of_queued("a", ["a"], {}) is None


def test_a_stage_that_was_never_seen_leaves_the_whole_unknown(store: JobStore, estimates: Estimates) -> None:
    teach(store, estimates)
    estimates.expect(job("a", options=TranscriptionOptions(diarize=False)))
    assert estimates.of_running("a", live("decode")) is None
    teach(store, estimates, align=5.0)
    assert estimates.of_running("a", live("decode")) == pytest.approx(18.0)


def test_estimates_survive_a_restart(store: JobStore) -> None:
    teach(store, new(store))
    again = new(store)
    again.expect(job("a"))
    assert again.of_running("a", live("decode")) == pytest.approx(13.0)


def test_a_running_job_needs_the_rest_of_its_stage_and_those_after_it(store: JobStore, estimates: Estimates) -> None:
    teach(store, estimates)
    estimates.expect(job("a"))
    # Decode is 0.02 of the weights of decode, load, vad and asr, which are 0.6 together; asr begins after 0.08.
    assert estimates.of_running("a", live("decode", 0.0, 0.4)) == pytest.approx(12.6)
    assert estimates.of_running("a", live("load", 0.0, 5.0)) == pytest.approx(12.0)
    assert estimates.of_running("a", live("asr", 0.0, 2.0)) == pytest.approx(8.0)
    assert estimates.of_running("a", live("asr", 0.5, 5.0)) == pytest.approx(5.0)
    assert estimates.of_running("a", live("done", 1.0)) == 0.0


def test_a_job_that_is_slower_than_expected_shows(store: JobStore, estimates: Estimates) -> None:
    teach(store, estimates)
    estimates.expect(job("a"))
    on_time, late = (estimates.of_running("a", live("asr", 0.5, seconds)) for seconds in (5.0, 50.0))
    assert on_time is not None
    assert late is not None
    assert late > on_time
    # The time left is never negative.
    assert estimates.of_running("a", live("asr", 0.0, 1000.0)) == 0.0


def test_a_job_that_waits_needs_what_is_before_it_too(store: JobStore, estimates: Estimates) -> None:
    teach(store, estimates)
    for job_id in "rabc":
        estimates.expect(job(job_id))
    running = {"r": live("asr", 0.5, 5.0)}
    assert [estimates.of_queued(each, "abc", running) for each in "abc"] == pytest.approx([18.0, 31.0, 44.0])


def test_slots_share_what_is_before(store: JobStore) -> None:
    estimates = new(store, slots=2)
    teach(store, estimates)
    for job_id in "rabc":
        estimates.expect(job(job_id))
    running = {"r": live("asr", 0.5, 5.0)}
    assert [estimates.of_queued(each, "abc", running) for each in "abc"] == pytest.approx([15.5, 22.0, 28.5])


def test_behind_a_job_of_unknown_length_nothing_is_known(store: JobStore, estimates: Estimates) -> None:
    teach(store, estimates)
    for job_id, seconds in (("a", 100.0), ("b", None), ("c", 100.0)):
        estimates.expect(job(job_id, seconds))
    assert estimates.of_queued("a", "abc", {}) == pytest.approx(13.0)
    assert estimates.of_queued("b", "abc", {}) is None
    assert estimates.of_queued("c", "abc", {}) is None


def test_an_ended_job_is_forgotten(store: JobStore, estimates: Estimates) -> None:
    teach(store, estimates)
    estimates.expect(job("a"))
    estimates.forget("a")
    estimates.forget("a")
    assert estimates.of_running("a", live("decode")) is None


def test_a_store_that_cannot_be_used_does_no_harm(store: JobStore) -> None:
    estimates = new(store)
    teach(store, estimates)
    store.close()
    estimates.expect(job("a"))
    assert estimates.of_running("a", live("decode")) is None


def test_separate_channels_are_learned_by_the_audio_that_each_stage_hears(
    store: JobStore, estimates: Estimates
) -> None:
    """Each channel is searched for speech, and people take turns. Channels are speakers without diarization."""
    took = replace(
        fake_transcript("x", timings={"decode": 1.0, "vad": 2.0, "asr": 10.0, "diarize": 0.001}),
        duration=100.0,
        channels=(0, 1),
    )
    assert estimates.rates_of(took).seconds == {"decode": 0.005, "vad": 0.01, "asr": 0.1}
    teach(store, estimates)
    separate = replace(PLAIN, channels="separate", diarize=None)
    estimates.expect(job("mixed"))
    estimates.expect(job("separate", options=separate))
    assert estimates.of_queued("mixed", ["mixed", "separate"], {}) == pytest.approx(13.0)
    assert estimates.of_queued("separate", ["separate"], {}) is not None
    assert estimates.of_running("separate", live("decode")) == pytest.approx(16.0)
