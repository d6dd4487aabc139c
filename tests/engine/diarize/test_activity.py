"""Windows, spans and turns: no span reaches over a change that the segmentation has seen."""

from __future__ import annotations

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest

from whisper_api.engine.diarize import activity as activity_module
from whisper_api.engine.diarize.activity import (
    EARLY_FRAMES,
    LATE_FRAMES,
    SECOND_WEIGHTS,
    SpeakerActivity,
    SpeakerSpans,
    frame_speakers,
    turns_of,
    window_starts,
    without_overlap,
)
from whisper_api.engine.diarize.segmentation import FRAME_START, FRAME_STEP, frame_count
from whisper_api.schema import SAMPLE_RATE

WINDOW, STEP = 5.0, 1.0
FRAMES = frame_count(round(WINDOW * SAMPLE_RATE))


def recording(seconds: float, turns: list[tuple[float, float, int]]) -> SpeakerActivity:
    """The output of a perfect segmentation, with the local speakers of each window in another order."""
    samples = round(seconds * SAMPLE_RATE)
    starts = window_starts(samples, WINDOW, STEP)
    windows = np.zeros((len(starts), FRAMES, 3), dtype=np.float16)
    for number, start in enumerate(starts):
        times = start / SAMPLE_RATE + FRAME_START + FRAME_STEP * (np.arange(FRAMES) + 0.5)
        for begin, end, who in turns:
            windows[number, (times >= begin) & (times < end), (who + number) % 3] = 0.9
    return SpeakerActivity(windows, starts, samples, WINDOW)


def overlap(turns: list[tuple[float, float, int]], start: float, end: float) -> set[int]:
    return {who for begin, finish, who in turns if min(finish, end) - max(begin, start) > 0.03}


TALK = [(0.5, 4.0, 0), (4.0, 5.2, 1), (5.6, 9.0, 0), (8.5, 11.0, 1), (14.0, 14.5, 0)]


@pytest.mark.parametrize("samples", [0, 1, 16_000, 79_999, 80_000, 80_001, 96_000, 96_001, 1_000_000])
def test_windows_cover_the_recording_and_none_lies_beyond_it(samples: int) -> None:
    starts = window_starts(samples, WINDOW, STEP)
    assert starts[0] == 0
    assert starts[-1] + WINDOW * SAMPLE_RATE >= samples
    assert len(starts) == 1 or starts[-1] + (WINDOW - STEP) * SAMPLE_RATE < samples


def test_speech_and_overlap_are_where_they_were_put() -> None:
    activity = recording(16, TALK)
    borders = np.array([time for begin, end, _ in TALK for time in (begin, end)])
    for time, speech, two in zip(activity.times, activity.speech, activity.overlap, strict=True):
        if np.abs(borders - time).min() > 0.1:
            active = sum(begin <= time < end for begin, end, _ in TALK)
            assert (speech, two) == (active > 0, active > 1)


def test_spans_are_of_one_speaker_alone_and_lie_in_the_recording() -> None:
    activity = recording(16, TALK)
    spans = activity.spans(2.0, 0.5, 0.3)
    assert len(spans.times) > 15
    for index, seconds in enumerate(spans.seconds):
        frames = spans.frames_of(index)
        assert seconds >= 0.3
        assert seconds == pytest.approx(len(frames) * 0.01)
        assert frames.min() >= 0
        assert frames.max() * 160 <= activity.samples
        whose = [overlap(TALK, frame / 100 - 0.01, frame / 100 + 0.01) for frame in frames]
        assert len(set().union(*whose)) <= 1


def test_a_stretch_has_one_speaker_and_ends_at_a_pause() -> None:
    talk = [(0.5, 4.0, 0), (4.0, 5.2, 1), (5.3, 8.0, 1), (8.5, 11.0, 1), (10.0, 14.0, 0), (14.2, 15.5, 2)]
    numbers = recording(16, talk).stretches()
    assert len(numbers) == 1601
    # The order of local speakers differs between windows, and stretches reach over several.
    alone = [(0.5, 4.0), (4.0, 8.0), (8.5, 10.0), (11.0, 14.0), (14.2, 15.5)]
    for number, (begin, end) in enumerate(alone):
        assert set(numbers[round(begin * 100) + 5 : round(end * 100) - 5]) == {number}
    # Silence and overlap belong to what is nearest.
    assert set(numbers[:45]) == {0}
    assert set(numbers[1560:]) == {4}
    assert list(np.unique(numbers[805:845])) == [1, 2]
    assert list(np.unique(numbers[1005:1095])) == [2, 3]


@pytest.mark.parametrize("seconds", [0.0, 0.3, 6.0])
def test_silence_is_one_stretch(seconds: float) -> None:
    assert recording(seconds, []).stretches().tolist() == [0] * (1 + round(seconds * 100))


def test_every_long_stretch_of_one_speaker_has_spans() -> None:
    spans = recording(16, TALK).spans(2.0, 0.5, 0.3)
    covered = np.zeros(1601, dtype=bool)
    for index in range(len(spans.times)):
        covered[spans.frames_of(index)] = True
    assert covered[60:390].all()
    assert covered[1110:1390].sum() == 0


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.2, 1.0])
def test_very_short_recordings(seconds: float) -> None:
    activity = recording(seconds, [(0.0, 1.0, 0)])
    assert len(activity.speech_features()) == 1 + activity.samples // 160
    for index in range(len(activity.spans(2.0, 0.5, 0.3).times)):
        assert activity.spans(2.0, 0.5, 0.3).frames_of(index).max() <= activity.samples // 160


def test_turns_are_given_back_with_two_voices_where_they_overlap() -> None:
    activity = recording(16, TALK)
    spans = activity.spans(2.0, 0.5, 0.3)
    similarity = np.zeros((len(spans.times), 2))
    for index in range(len(spans.times)):
        middle = float(np.median(spans.frames_of(index))) / 100
        similarity[index, overlap(TALK, middle - 0.05, middle + 0.05).pop()] = 0.6
    speakers = frame_speakers(activity, spans, similarity)
    assert (speakers[activity.overlap] >= 0).all()
    assert ((speakers >= 0).any(axis=1) == activity.speech).all()
    turns = turns_of(activity, speakers)
    wrong = np.abs(grid(turns) != grid(TALK)).sum() * 0.01
    assert wrong < 0.4


def test_a_voice_that_only_speaks_over_another_is_a_second_speaker() -> None:
    activity = recording(16, [(0.5, 9.0, 0), (3.0, 5.0, 1)])
    spans = activity.spans(2.0, 0.5, 0.3)
    one = np.ones((len(spans.times), 1))
    speakers = frame_speakers(activity, spans, one)
    assert set(speakers[activity.overlap].flatten().tolist()) == {0, 1}
    assert (speakers[~activity.overlap, 1] == -1).all()
    assert set(frame_speakers(activity, spans, one, two_voices=False).flatten().tolist()) == {-1, 0}


def test_without_overlap_the_speaker_who_goes_on_has_the_frames() -> None:
    speakers = np.array([[0, 0, 0, 1, 1, -1, 1, 1, 1, 0, 0], [-1, -1, 1, 0, -1, -1, -1, 0, -1, -1, 1]], np.int32).T
    assert without_overlap(speakers)[:, 0].tolist() == [0, 0, 1, 1, 1, -1, 1, 1, 1, 0, 0]


def test_a_short_overlap_makes_no_second_speaker() -> None:
    activity = recording(16, [(0.5, 9.0, 0), (3.0, 3.6, 1)])
    assert activity.overlap.any()
    spans = activity.spans(2.0, 0.5, 0.3)
    assert (frame_speakers(activity, spans, np.ones((len(spans.times), 1)))[:, 1] == -1).all()


@pytest.mark.parametrize(
    ("seconds", "turns", "count"),
    [
        (5.0, [(0.0, 2.0, 0), (2.5, 4.5, 1)], 2),
        # The second voice is short, or is only heard over the first.
        (5.0, [(0.0, 3.0, 0), (3.5, 4.0, 1)], 1),
        (5.0, [(0.0, 4.5, 0), (1.0, 4.0, 1)], 1),
        (5.0, [], 1),
        # Several windows: local speakers of one window say nothing of the whole.
        (20.0, [(0.0, 8.0, 0), (9.0, 18.0, 1)], 1),
    ],
)
def test_a_short_recording_has_the_local_speakers_of_its_window(
    seconds: float, turns: list[tuple[float, float, int]], count: int
) -> None:
    assert recording(seconds, turns).local_speaker_count == count


def test_the_order_of_local_speakers_changes_nothing() -> None:
    activity = recording(16, TALK)
    turned = SpeakerActivity(np.roll(activity.windows, 1, axis=2), activity.starts, activity.samples, WINDOW)
    assert np.array_equal(turned.levels, activity.levels)
    assert np.array_equal(turned.spans(2.0, 0.5, 0.3).frames, activity.spans(2.0, 0.5, 0.3).frames)


def test_two_models_decide_together_where_people_speak() -> None:
    heard, deaf = recording(16, TALK), recording(16, [])
    both = SpeakerActivity(heard.windows, heard.starts, heard.samples, WINDOW, deaf)
    assert both.levels == pytest.approx(heard.levels * (1 - np.array(SECOND_WEIGHTS)), abs=1e-3)


def test_turns_are_wider_beside_long_pauses_only() -> None:
    activity = recording(16, [(2.0, 3.0, 0), (3.4, 5.0, 0), (8.0, 9.0, 0)])
    edges = np.flatnonzero(np.diff(np.pad(activity.speech.astype(np.int8), 1))) * FRAME_STEP + FRAME_START
    early, late = EARLY_FRAMES * FRAME_STEP, LATE_FRAMES * FRAME_STEP
    expected = [2.0 - early, 3.0, 3.4, 5.0 + late, 8.0 - early, 9.0 + late]
    assert edges == pytest.approx(expected, abs=1.1 * FRAME_STEP)
    assert min(early, late) > 1.1 * FRAME_STEP


@pytest.mark.parametrize("turns", [[], [(0.0, 16.0, 0)], [(0.0, 1.0, 0)], [(15.5, 16.0, 0)]])
def test_wider_turns_stay_inside_the_recording(turns: list[tuple[float, float, int]]) -> None:
    speech = recording(16, turns).speech
    assert len(speech) == len(recording(16, []).levels)
    assert speech.sum() * FRAME_STEP == pytest.approx(sum(end - start for start, end, _ in turns), abs=0.12)


def grid(turns: list[tuple[float, float, int]]) -> npt.NDArray[np.bool_]:
    cells = np.zeros((2, 1600), dtype=np.bool_)
    for start, end, who in turns:
        cells[who, round(start * 100) : round(end * 100)] = True
    return cells


def test_no_turn_ends_after_the_recording() -> None:
    activity = recording(7.3, [(1.0, 9.0, 0)])
    turns = turns_of(activity, np.where(activity.speech, 0, -1).astype(np.int32)[:, None])
    assert len(turns) == 1
    assert turns[0][1] == pytest.approx(7.3)


def talk_of_many(seconds: int, speakers: int) -> tuple[SpeakerActivity, SpeakerSpans, npt.NDArray[np.float64]]:
    """A conversation with pauses, overlap and a change of speaker each 3.5 s, and similarities that are not exact."""
    turns = [(start, start + 3.0 + number % 2, number % 3) for number, start in enumerate(np.arange(0.5, seconds, 3.5))]
    activity = recording(seconds, turns)
    spans = activity.spans(2.0, 0.5, 0.3)
    similarity = np.random.default_rng(0).uniform(-0.1, 0.3, (len(spans.times), speakers))
    similarity[np.arange(len(similarity)), (spans.times // 3.5).astype(np.int64) % speakers] += 0.3
    return activity, spans, similarity


def test_the_speakers_do_not_depend_on_the_size_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    activity, spans, similarity = talk_of_many(90, 5)
    whole = frame_speakers(activity, spans, similarity)
    assert set(whole[:, 0].tolist()) == {-1, 0, 1, 2, 3, 4}
    for size in (1, 7, 1000):
        monkeypatch.setattr(activity_module, "SCORE_BLOCK", size)
        assert np.array_equal(frame_speakers(activity, spans, similarity), whole)


def test_memory_does_not_grow_with_frames_times_speakers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of these frames alone are 28 MB, in each of several arrays."""
    activity, spans, similarity = talk_of_many(600, 100)
    monkeypatch.setattr(activity_module, "SCORE_BLOCK", 1 << 11)
    tracemalloc.start()
    try:
        frame_speakers(activity, spans, similarity)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
