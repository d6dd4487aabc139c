"""Voice activity: where speech is found, and the windows made of it."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import whisper_api.engine.silero as silero_module
from whisper_api import Engine
from whisper_api.engine import vad
from whisper_api.engine.context import JobContext
from whisper_api.engine.options import ResolvedOptions, resolve
from whisper_api.engine.silero_again import AFTER_PAUSE, LEAD
from whisper_api.engine.vad import Span, SpeechFrames, speech_spans, windows
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.options import TranscriptionOptions

RATE = 16_000
STEP = 512


def vad_options(min_silence: float, padding: float) -> ResolvedOptions:
    options = TranscriptionOptions(vad_onset=0.5, vad_offset=0.35, vad_min_silence=min_silence, vad_padding=padding)
    return resolve(options, model="base", language="en")


SETTINGS = vad_options(min_silence=0.3, padding=0.3)

probabilities = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=400).map(lambda p: np.array(p, np.float32))


@given(probabilities, st.floats(0, 1), st.floats(0, 1))
def test_spans_are_in_order_and_hold_every_loud_frame(
    frames: np.ndarray[Any, np.dtype[np.float32]], silence: float, padding: float
) -> None:
    settings = vad_options(min_silence=silence, padding=padding)
    samples = len(frames) * STEP - 100
    found = speech_spans(SpeechFrames(frames, STEP), settings, samples)
    assert all(0 <= span.start < span.end <= samples for span in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    covered = np.zeros(samples, bool)
    for span in found:
        covered[span.start : span.end] = True
    loud = frames >= settings.vad_onset
    # One loud frame (32 ms) alone is noise; two are speech.
    for frame in np.flatnonzero(loud[:-1] & loud[1:]):
        assert covered[frame * STEP : (frame + 2) * STEP].all()


def test_hysteresis_keeps_quiet_speech_after_its_onset_and_ignores_it_before() -> None:
    frames = np.full(200, 0.1, np.float32)
    frames[50:60] = 0.4  # never above the onset
    frames[100:110] = 0.9
    frames[110:130] = 0.4  # still above the offset
    settings = vad_options(min_silence=0.3, padding=0.0)
    assert speech_spans(SpeechFrames(frames, STEP), settings, 200 * STEP) == [Span(100 * STEP, 130 * STEP)]


def test_a_short_pause_does_not_end_speech_and_a_long_one_does() -> None:
    frames = np.ones(200, np.float32)
    frames[50:55] = 0.0  # 0.16 s
    frames[120:140] = 0.0  # 0.64 s
    settings = vad_options(min_silence=0.3, padding=0.0)
    assert speech_spans(SpeechFrames(frames, STEP), settings, 200 * STEP) == [
        Span(0, 120 * STEP),
        Span(140 * STEP, 200 * STEP),
    ]


def test_padding_never_makes_spans_overlap() -> None:
    frames = np.ones(200, np.float32)
    frames[100:112] = 0.0  # 0.38 s, less than twice the padding
    found = speech_spans(SpeechFrames(frames, STEP), SETTINGS, 200 * STEP)
    assert len(found) == 2
    assert found[0].end <= found[1].start


spans = st.lists(st.tuples(st.integers(0, 5 * RATE), st.integers(1, 70 * RATE)), min_size=1, max_size=12)


@given(spans, st.integers(0, 2**32 - 1))
def test_windows_cover_all_speech_and_are_at_most_thirty_seconds(pairs: list[tuple[int, int]], seed: int) -> None:
    speech, at = [], 0
    for gap, length in pairs:
        speech.append(Span(at + gap + 1, at + gap + 1 + length))
        at = speech[-1].end
    step = 8_000  # coarse, so that minutes of audio are cheap to make
    rng = np.random.default_rng(seed)
    activity = SpeechFrames(rng.random(at // step + 1, np.float32), step)
    found = windows(speech, activity, np.zeros(at, np.float32))
    assert all(window.seconds <= 30 for window in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert found[0].start == speech[0].start
    assert found[-1].end == speech[-1].end
    for span in speech:
        inside = sum(max(0, min(span.end, w.end) - max(span.start, w.start)) for w in found)
        assert inside == span.end - span.start


def test_long_speech_is_cut_where_it_is_quiet() -> None:
    rng = np.random.default_rng(1)
    audio = rng.normal(0, 0.1, 50 * RATE).astype(np.float32)
    pause = slice(int(24.0 * RATE), int(24.3 * RATE))
    audio[pause] *= 0.001
    frames = np.ones(len(audio) // STEP + 1, np.float32)
    first, second = windows([Span(0, len(audio))], SpeechFrames(frames, STEP), audio)
    assert pause.start <= first.end <= pause.stop
    assert second == Span(first.end, len(audio))


def test_a_long_silence_is_not_part_of_a_window() -> None:
    speech = [Span(0, 2 * RATE), Span(12 * RATE, 14 * RATE)]
    audio = np.zeros(14 * RATE, np.float32)
    activity = SpeechFrames(np.zeros(14 * RATE // STEP + 1, np.float32), STEP)
    assert windows(speech, activity, audio) == speech


class Job:
    """The part of a job's context that Silero uses."""

    def __init__(self, options: TranscriptionOptions) -> None:
        self.options = resolve(options, model="base", language="auto")
        self.progressed: list[float] = []

    def progress(self, fraction: float) -> None:
        self.progressed.append(fraction)


def detect(audio: np.ndarray[Any, np.dtype[np.float32]], **options: Any) -> list[Span]:
    return vad.detect(cast(JobContext, Job(TranscriptionOptions(**options))), audio).windows


@pytest.fixture(scope="module")
def call(sample_call: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    from whisper_api.engine.audio.decode import decode

    return decode(sample_call).audio


def test_silero_finds_the_speech_of_a_real_call(call: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    (window,) = detect(call)
    # By the reference of the call, the first word begins at 6.68 s and the last one ends at 29.99 s.
    assert 6.0 < window.start / RATE < 6.9
    assert window.end / RATE > 29.5


def silero(audio: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return vad.silero_frames(cast(JobContext, Job(TranscriptionOptions())), audio).probabilities


def test_silero_equals_faster_whispers_own_use_of_it_while_somebody_speaks(
    call: np.ndarray[Any, np.dtype[np.float32]],
) -> None:
    from faster_whisper.vad import get_vad_model

    # A whole number of frames, and no pause of three seconds.
    speech = call[round(6.4 * RATE) // STEP * STEP :]
    speech = speech[: len(speech) // STEP * STEP].copy()
    theirs = np.asarray(get_vad_model()(speech)).reshape(-1)
    np.testing.assert_allclose(silero(speech), theirs, atol=1e-4)


@pytest.mark.parametrize("level", [None, -60.0, -45.0])
@pytest.mark.parametrize("seconds", [2.9, 3.3, 10.0, 61.0])
def test_silero_loses_no_speech_after_a_pause(
    call: np.ndarray[Any, np.dtype[np.float32]], seconds: float, level: float | None
) -> None:
    speech = call[round(6.4 * RATE) :]
    spoken = silero(speech) >= 0.5
    frames = round(seconds * RATE) // STEP
    pause = np.zeros(frames * STEP, np.float32)
    if level is not None:
        pause = np.random.default_rng(0).normal(0, 10 ** (level / 20), len(pause)).astype(np.float32)
    found = silero(np.concatenate([pause, speech]))
    assert found[:frames].max(initial=0.0) < 0.5
    assert (found[frames:][spoken] >= 0.5).mean() > 0.98


def test_silence_and_noise_have_no_windows() -> None:
    assert detect(np.zeros(5 * RATE, np.float32)) == []
    assert detect(np.random.default_rng(0).normal(0, 1e-3, 5 * RATE).astype(np.float32)) == []
    assert detect(np.zeros(1, np.float32)) == []


def test_speech_is_found_at_any_level(call: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    spoken = silero(call) >= 0.5
    for level in (-20, -30, -40):
        assert (silero(call * np.float32(10 ** (level / 20)))[spoken] >= 0.5).mean() > 0.95


@pytest.mark.parametrize("level", [-60, -52, -45])
def test_noise_and_hum_of_any_level_are_no_speech(level: int) -> None:
    time = np.arange(60 * RATE) / RATE
    hum = np.sin(2 * np.pi * np.outer((50, 100, 150), time)).sum(axis=0) * 10 ** (level / 20)
    noise = np.random.default_rng(0).normal(0, 10 ** (level / 20), len(time))
    for sound in (noise, hum, noise + hum):
        assert detect(sound.astype(np.float32)) == []


def test_all_audio_is_speech_when_detection_is_off() -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, 70 * RATE).astype(np.float32)
    found = detect(audio, vad="none")
    assert found[0].start == 0
    assert found[-1].end == len(audio)
    assert all(a.end == b.start for a, b in itertools.pairwise(found))


def test_pyannote_finds_the_speech_of_a_real_call(call: np.ndarray[Any, np.dtype[np.float32]], engine: Engine) -> None:
    with contextlib.closing(GpuWorker()) as worker:
        ctx = JobContext(
            options=engine.resolve(TranscriptionOptions(vad="pyannote")),
            device=engine.device,
            worker=worker,
            models=engine.models,
            store=engine.store,
        )
        activity = vad.pyannote_frames(ctx, call)
        silero = vad.silero_frames(ctx, call)
        (window,) = vad.detect(ctx, call).windows
    assert len(activity.probabilities) == pytest.approx(len(call) / activity.step, abs=1)
    assert 0 <= activity.probabilities.min() <= activity.probabilities.max() <= 1
    assert 6.0 < window.start / RATE < 6.9
    assert window.end / RATE > 29.5
    # The two detectors agree on nearly all of the recording.
    times = np.arange(0, len(call), 1_600)
    both = [a.probabilities[np.minimum(times // a.step, len(a.probabilities) - 1)] > 0.5 for a in (activity, silero)]
    assert np.mean(both[0] == both[1]) > 0.85


def test_pyannote_is_asked_where_silero_hears_nothing_in_loud_sound(
    ctx: JobContext, call: np.ndarray[Any, np.dtype[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(_: JobContext, audio: np.ndarray[Any, np.dtype[np.float32]]) -> SpeechFrames:
        return SpeechFrames(np.zeros(-(-len(audio) // STEP), np.float32), STEP)

    assert vad.detect(ctx, call).silero is not None
    monkeypatch.setattr(vad, "silero_frames", deaf)
    found = vad.detect(ctx, call)
    assert found.silero is not None
    assert not found.silero.probabilities.any()
    assert found.windows
    assert ctx.warnings == []
    # Quiet sound is not worth it.
    quiet = vad.detect(ctx, call * np.float32(0.001))
    assert quiet.windows == []


def test_loud_sound_without_speech_is_named(ctx: JobContext) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 10 * RATE).astype(np.float32)
    assert vad.detect(ctx, noise).windows == []
    assert ctx.warnings == [
        "no speech was found, though 10.0 s of sound are loud; vad=none transcribes them all the same"
    ]


def test_without_detection_silence_has_no_windows() -> None:
    steps = np.random.default_rng(0).integers(-1, 2, 20 * RATE) / 32768
    assert detect(steps.astype(np.float32), vad="none") == []
    assert detect(np.zeros(5 * RATE, np.float32), vad="none") == []


def test_minutes_of_digital_silence_cost_little_and_change_nothing_around_them(
    call: np.ndarray[Any, np.dtype[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, runs = silero_module.silero_session(), []

    class Counted:
        def run(self, names: Any, inputs: Any) -> Any:
            runs.append(len(inputs["input"]))
            return session.run(names, inputs)

    monkeypatch.setattr(silero_module, "silero_session", Counted)
    monkeypatch.setattr(silero_module, "physical_cores", lambda: 1)
    silence = np.zeros(600 * RATE, np.float32)
    (alone,) = detect(call)
    runs.clear()
    (found,) = detect(np.concatenate([silence, call, silence]))
    # The first words after the silence are heard twice.
    assert 0 < sum(runs) <= len(call) // STEP + 100 + LEAD + AFTER_PAUSE
    assert found.start - len(silence) == pytest.approx(alone.start, abs=0.1 * RATE)
    assert found.end - len(silence) == pytest.approx(alone.end, abs=0.5 * RATE)
