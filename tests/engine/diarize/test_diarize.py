"""Diarization of real speech with real models."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from whisper_api.engine.context import JobContext
from whisper_api.engine.diarize.activity import SpeakerSpans
from whisper_api.engine.diarize.analysis import CHUNK, Analysis, analyze
from whisper_api.engine.diarize.clustering import ClusteringOptions, SpeakerBounds
from whisper_api.engine.diarize.pipeline import Diarization, diarize
from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.models.store import ModelStore
from whisper_api.engine.options import resolve
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import Canceled, ModelUnavailable
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Progress

Floats = npt.NDArray[np.float32]
Job = Callable[..., JobContext]
RATE = 16_000

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def job(models_dir: Path, ecapa_path: Path) -> Iterator[Job]:
    """Makes jobs that share a worker and resident models."""
    worker, models = GpuWorker(), ModelCache()

    def make(
        store: ModelStore | None = None,
        cancel: threading.Event | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        **options: Any,
    ) -> JobContext:
        ctx = JobContext(
            options=resolve(TranscriptionOptions(**options), model="base", language="auto"),
            device=Device("cpu"),
            worker=worker,
            models=models,
            store=store or ModelStore(models_dir, offline=True),
            cancel=cancel,
            on_progress=on_progress,
        )
        ctx.begin("diarize")
        return ctx

    yield make
    worker.close()
    models.close()


@pytest.fixture(scope="module")
def call(sample_call: Path) -> Floats:
    with wave.open(str(sample_call)) as file:
        return np.asarray(np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768, dtype=np.float32)


@pytest.fixture(scope="module")
def analysis(job: Job, call: Floats) -> Analysis:
    return analyze(job(), call)


def errors(turns: list[tuple[float, float, str]], rttm: Path) -> float:
    """Diarization error rate over 10 ms cells, no collar, overlap counted, for two speakers on either side."""
    reference = [line.split() for line in rttm.read_text().splitlines()]
    truth = grid([(float(f[3]), float(f[3]) + float(f[4]), f[7]) for f in reference])
    found = grid(turns)
    if len(found) == 1:
        found = np.concatenate([found, np.zeros_like(found)])
    assert len(truth) == len(found) == 2
    both = np.maximum(truth.sum(0), found.sum(0)).sum()
    right = max((truth & found).sum(), (truth & found[::-1]).sum())
    return float(both - right) / float(truth.sum())


def grid(turns: list[tuple[float, float, str]]) -> npt.NDArray[np.bool_]:
    labels = sorted({label for _, _, label in turns})
    cells = np.zeros((len(labels), 3000), dtype=np.bool_)
    for start, end, label in turns:
        cells[labels.index(label), round(start * 100) : round(end * 100)] = True
    return cells


def plain(found: Diarization) -> list[tuple[float, float, str]]:
    return [(turn.start, turn.end, turn.speaker) for turn in found.turns]


def test_the_two_speakers_of_a_call_are_found_without_a_given_number(job: Job, call: Floats, sample_call: Path) -> None:
    progress: list[float] = []
    ctx = job(on_progress=lambda at: progress.append(at.fraction), speaker_embeddings=True)
    found = diarize(ctx, call)
    assert errors(plain(found), sample_call.with_suffix(".rttm")) <= 0.10
    assert ctx.warnings == []
    assert found.turns[0].speaker == "SPEAKER_00"
    assert [turn.start for turn in found.turns] == sorted(turn.start for turn in found.turns)
    assert all(0 <= turn.start < turn.end <= 30.0 for turn in found.turns)
    assert found.embeddings is not None
    assert list(found.embeddings) == ["SPEAKER_00", "SPEAKER_01"]
    one, other = found.embeddings.values()
    assert np.linalg.norm([one, other], axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert float(one @ other) < 0.7
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert len(set(progress)) > 5


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("max_gap", (0.08, 0.1, 0.12)),
        ("small_gap", (1.0, 3.0)),
        ("initial_distance", (0.3, 0.4, 0.45)),
        ("min_seconds", (0.9, 1.0, 1.2)),
        ("min_spans", (3, 4, 5, 6)),
    ],
)
def test_no_setting_is_brittle(setting: str, values: tuple[float, ...], analysis: Analysis, sample_call: Path) -> None:
    for value in values:
        options: Any = {setting: value}
        turns = analysis.turns(analysis.speakers(SpeakerBounds(), ClusteringOptions(**options)))
        found = [(turn.start, turn.end, turn.speaker) for turn in turns]
        assert errors(found, sample_call.with_suffix(".rttm")) <= 0.10, f"{setting} {value}"


def test_moments_have_embeddings_of_their_own_times(analysis: Analysis) -> None:
    moments, spans = analysis.moments, analysis.spans
    assert len(moments.times) == len(analysis.moment_embeddings) > len(spans.times) == len(analysis.embeddings)
    embeddings = analysis.moment_embeddings.astype(np.float32)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx(np.ones(len(embeddings)), abs=2e-3)
    # More than one chunk of audio: a moment resembles the span around it most, in the second chunk too.
    assert spans.times[-1] > CHUNK
    for times in ((0, CHUNK), (CHUNK, 30)):
        at = [number for number, time in enumerate(moments.times) if times[0] < time < times[1] and time in spans.times]
        here = embeddings[at] @ analysis.embeddings.T
        own = here[np.arange(len(at)), np.searchsorted(spans.times, moments.times[at])]
        assert own.mean() > here.mean() + 0.1


def test_frames_get_speakers_without_moments(analysis: Analysis) -> None:
    none = SpeakerSpans(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros((0, 40), dtype=np.bool_))
    bare = dataclasses.replace(analysis, moments=none, moment_embeddings=np.zeros((0, 192), dtype=np.float16))
    centroids = analysis.speakers(SpeakerBounds())
    assert {turn.speaker for turn in bare.turns(centroids)} == {turn.speaker for turn in analysis.turns(centroids)}


def test_the_number_of_speakers_can_be_given(job: Job, call: Floats) -> None:
    for options, wanted in (({"num_speakers": 1}, 1), ({"num_speakers": 3}, 3), ({"max_speakers": 1}, 1)):
        ctx = job(**options)
        assert len({turn.speaker for turn in diarize(ctx, call[: 20 * RATE]).turns}) == wanted
        assert ctx.warnings == []


def test_a_number_of_speakers_that_is_not_reached_is_a_warning(job: Job, call: Floats) -> None:
    ctx = job(num_speakers=40)
    found = diarize(ctx, call[12 * RATE : 15 * RATE])
    count = len({turn.speaker for turn in found.turns})
    assert 1 <= count < 40
    assert ctx.warnings == [f"40 speakers were asked for, {count} could be told apart"]


def test_a_repeated_recording_has_no_more_speakers(job: Job, call: Floats) -> None:
    found = diarize(job(), np.concatenate([call] * 2))
    assert len({turn.speaker for turn in found.turns}) == 2


def test_a_recording_of_one_person_has_one_speaker(job: Job, call: Floats) -> None:
    # The reference gives these seconds to one of the two.
    alone = np.concatenate([call[int(16.1 * RATE) : int(17.9 * RATE)], call[int(22.9 * RATE) : int(27.0 * RATE)]])
    assert {turn.speaker for turn in diarize(job(), alone).turns} == {"SPEAKER_00"}


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.3, 6.0])
def test_silence_has_no_turns(seconds: float, job: Job) -> None:
    ctx = job(speaker_embeddings=True)
    found = diarize(ctx, np.zeros(round(seconds * RATE), dtype=np.float32))
    assert found.turns == ()
    assert found.embeddings == {}
    assert ctx.warnings == []


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.7])
def test_less_than_a_second_works(seconds: float, job: Job, call: Floats) -> None:
    start = 12 * RATE
    found = diarize(job(), call[start : start + round(seconds * RATE)])
    assert {turn.speaker for turn in found.turns} <= {"SPEAKER_00"}
    assert all(turn.end <= seconds for turn in found.turns)


def test_a_canceled_job_stops_between_work_items(job: Job, call: Floats) -> None:
    cancel = threading.Event()
    seen: list[float] = []

    def on_progress(at: Progress) -> None:
        seen.append(at.stage_fraction)
        if at.stage_fraction > 0.2:
            cancel.set()

    with pytest.raises(Canceled):
        diarize(job(cancel=cancel, on_progress=on_progress), call)
    assert max(seen) < 0.5


def test_two_jobs_at_once_get_the_same_turns_as_alone(job: Job, call: Floats) -> None:
    halves = [call[: 15 * RATE], call[15 * RATE :]]
    alone = [plain(diarize(job(), half)) for half in halves]
    together: dict[int, Any] = {}

    def run(number: int) -> None:
        together[number] = plain(diarize(job(), halves[number]))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, turns in enumerate(alone):
        assert [label for _, _, label in together[number]] == [label for _, _, label in turns]
        times, others = (np.array([turn[:2] for turn in found]) for found in (turns, together[number]))
        assert np.abs(times - others).max() < 0.04


def test_the_error_names_missing_models(job: Job, call: Floats, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="campplus"):
        diarize(job(ModelStore(tmp_path, offline=True)), call)


def test_where_only_the_earlier_models_are_they_are_used_and_that_is_said(
    job: Job, call: Floats, sample_call: Path, ecapa_path: Path, tmp_path: Path
) -> None:
    shutil.copytree(ecapa_path.parent, tmp_path / "diarization" / "ecapa")
    ctx = job(ModelStore(tmp_path, offline=True))
    found = diarize(ctx, call)
    assert errors(plain(found), sample_call.with_suffix(".rttm")) <= 0.10
    assert "ECAPA-TDNN" in found.model
    segmentation, embedding = ctx.warnings
    assert "`whisper-api models pull segmentation-3.0`" in segmentation
    assert "`whisper-api models pull campplus`" in embedding


def test_people_who_talk_at_once_are_two_speakers(job: Job, call: Floats) -> None:
    # The reference gives these two stretches to different people; here they are heard at the same time.
    one, other = call[int(22.9 * RATE) : int(27.0 * RATE)], call[int(16.1 * RATE) : int(17.9 * RATE)]
    mixed = one.copy()
    mixed[RATE : RATE + len(other)] += other
    turns = diarize(job(num_speakers=2), np.concatenate([one, other, mixed])).turns
    start = (len(one) + len(other)) / RATE + 1.2
    speakers = {turn.speaker for turn in turns if turn.start < start + 1.0 and turn.end > start}
    assert len(speakers) == 2


def test_a_pipeline_that_cannot_be_loaded_gives_way_to_open_models(
    job: Job, call: Floats, ecapa_path: Path, tmp_path: Path
) -> None:
    for name in ("segmentation-3.0", "campplus"):
        shutil.copytree(ecapa_path.parent.parent / name, tmp_path / "diarization" / name)
    broken = tmp_path / "diarization" / "community-1"
    for name in ("config.yaml", "segmentation/pytorch_model.bin", "embedding/pytorch_model.bin", "manifest.json"):
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_text('{"files": {}}' if name.endswith("json") else "pipeline: {name: Nothing}")
    store = ModelStore(tmp_path, offline=True)
    if store.find("community-1") is None:
        pytest.fail("the broken pipeline is not found, so this test would show nothing")
    ctx = job(store)
    found = diarize(ctx, call[: 10 * RATE])
    assert found.turns
    (warning,) = ctx.warnings
    assert warning.startswith("the speakers were told apart with open models, because community-1 cannot be used")
