"""pyannote's pipeline with its model calls as work items, beside the same pipeline left as it is.

The published weights need an account, so the pipeline here is put together from the segmentation that whisperx brings
along, an embedding and a PLDA of random weights: what it finds is nonsense, but must be the same nonsense.
"""

from __future__ import annotations

import importlib.util
import shutil
import threading
import wave
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from whisper_api.engine.context import JobContext
from whisper_api.engine.diarize.community import CommunityEmbedding, CommunitySource, run_pipeline
from whisper_api.engine.diarize.embed_speaker import embed_speaker
from whisper_api.engine.diarize.pipeline import diarize
from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.models.store import ModelStore
from whisper_api.engine.options import resolve
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import Canceled, ModelCorrupt
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import Progress

Floats = npt.NDArray[np.float32]

CONFIG = """
pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: VBxClustering
    segmentation: $model/segmentation
    segmentation_step: 0.4
    embedding: $model/embedding
    embedding_exclude_overlap: true
    plda: $model/plda
params:
  clustering: {threshold: 0.6, Fa: 0.07, Fb: 0.8}
  segmentation: {threshold: 0.5, min_duration_off: 0.0}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.embedding import WeSpeakerResNet34

    path = tmp_path_factory.mktemp("models") / "diarization" / "community-1"
    for name in ("segmentation", "embedding", "plda"):
        (path / name).mkdir(parents=True)
    (path / "config.yaml").write_text(CONFIG)
    (path / "manifest.json").write_text("{}")
    spec = importlib.util.find_spec("whisperx")
    assert spec is not None
    assert spec.origin is not None
    shutil.copy(Path(spec.origin).parent / "assets" / "pytorch_model.bin", path / "segmentation")

    torch.manual_seed(0)
    model = WeSpeakerResNet34()
    content: dict[str, Any] = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pyannote.audio": {
            "architecture": {"module": WeSpeakerResNet34.__module__, "class": "WeSpeakerResNet34"},
            "specifications": Specifications(
                problem=Problem.REPRESENTATION, resolution=Resolution.CHUNK, duration=5.0, classes=["a", "b"]
            ),
        },
    }
    torch.save(content, path / "embedding" / "pytorch_model.bin")
    rng = np.random.default_rng(0)
    lda = np.linalg.qr(rng.standard_normal((256, 128)))[0]
    np.savez(path / "plda" / "xvec_transform.npz", mean1=np.zeros(256), mean2=np.zeros(128), lda=lda)
    np.savez(path / "plda" / "plda.npz", mu=np.zeros(128), tr=np.eye(128), psi=np.linspace(5, 0.1, 128))
    return path


@pytest.fixture(scope="module")
def pipeline(directory: Path) -> Any:
    return CommunitySource(str(directory), "cpu").load()


@pytest.fixture(scope="module")
def speech(sample_call: Path) -> Floats:
    """Nine seconds of the call, with both speakers and overlap."""
    with wave.open(str(sample_call)) as file:
        audio = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    return np.asarray(audio[7 * 16_000 : 16 * 16_000], dtype=np.float32)


class CountingWorker(GpuWorker):
    """A worker that records the operation of each work item."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def submit(self, job: Hashable, operation: Any, input: Any, cost: float, *, ahead: bool = False) -> Any:
        self.operations.append(type(operation).__name__)
        return super().submit(job, operation, input, cost, ahead=ahead)


@pytest.fixture
def worker() -> Iterator[CountingWorker]:
    worker = CountingWorker()
    yield worker
    worker.close()


def job(worker: GpuWorker, store: ModelStore, models: ModelCache | None = None, **settings: Any) -> JobContext:
    options = resolve(TranscriptionOptions(**settings.pop("options", {})), model="base", language="auto")
    models = models or ModelCache()
    ctx = JobContext(options=options, device=Device("cpu"), worker=worker, models=models, store=store, **settings)
    ctx.begin("diarize")
    return ctx


def tracks(annotation: Any) -> list[tuple[float, float, str]]:
    return [(turn.start, turn.end, label) for turn, _, label in annotation.itertracks(yield_label=True)]


def test_work_items_find_the_same_speakers_as_the_unchanged_pipeline(
    pipeline: Any, speech: Floats, worker: CountingWorker, tmp_path: Path
) -> None:
    import torch

    file = {"uri": "call", "waveform": torch.from_numpy(speech)[None], "sample_rate": 16_000}
    expected = pipeline.apply(file)
    found = run_pipeline(job(worker, ModelStore(tmp_path)), speech, pipeline)
    assert tracks(found.speaker_diarization) == tracks(expected.speaker_diarization) != []
    assert tracks(found.exclusive_speaker_diarization) == tracks(expected.exclusive_speaker_diarization)
    np.testing.assert_allclose(found.speaker_embeddings, expected.speaker_embeddings, rtol=1e-3, atol=1e-4)
    # Windows of 5 s each 2 s over 9 s, each a work item of both models.
    assert worker.operations == ["CommunitySegmentation"] * 3 + ["CommunityEmbedding"] * 3


def test_half_precision_gives_the_same_embeddings_and_turns(
    directory: Path, pipeline: Any, speech: Floats, worker: CountingWorker, tmp_path: Path
) -> None:
    half = CommunitySource(str(directory), "cpu", "bfloat16").load()
    exact, rounded = (run_pipeline(job(worker, ModelStore(tmp_path)), speech, model) for model in (pipeline, half))
    assert tracks(rounded.speaker_diarization) == tracks(exact.speaker_diarization) != []
    for one, other in zip(exact.speaker_embeddings, rounded.speaker_embeddings, strict=True):
        assert one @ other >= 0.999 * np.linalg.norm(one) * np.linalg.norm(other)


def test_a_window_s_embeddings_are_those_of_the_network_left_as_it_is(
    directory: Path, pipeline: Any, speech: Floats
) -> None:
    import torch
    from pyannote.audio.models.embedding import WeSpeakerResNet34

    model = WeSpeakerResNet34().eval()
    checkpoint = torch.load(directory / "embedding" / "pytorch_model.bin", weights_only=False)
    model.load_state_dict(checkpoint["state_dict"])
    windows = np.stack([speech[start : start + 80_000] for start in (0, 32_000, 64_000)])
    masks = (np.random.default_rng(0).random((3, 3, 293)) > 0.5).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(windows)[:, None], weights=torch.from_numpy(masks)).numpy()
    inputs = list(zip(windows, masks, strict=True))
    # pyannote's pipeline has no public way to its embedding network.
    network, half = (
        each._embedding.model_  # noqa: SLF001
        for each in (pipeline, CommunitySource(str(directory), "cpu", "bfloat16").load())
    )
    found = np.stack(CommunityEmbedding(network, "cpu", 2).run(inputs))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    rounded = np.stack(CommunityEmbedding(half, "cpu", 2).run(inputs))
    norms = np.linalg.norm(rounded, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert float(((rounded * expected).sum(axis=-1) / norms).min()) > 0.999


def test_the_stage_takes_a_local_copy(directory: Path, speech: Floats, worker: CountingWorker) -> None:
    store = ModelStore(directory.parent.parent, offline=True)
    found_model = store.find("community-1")
    assert found_model is not None
    assert found_model.path == directory
    ctx = job(worker, store, options={"num_speakers": 2, "speaker_embeddings": True})
    found = diarize(ctx, speech)
    assert found.model == "pyannote community-1"
    assert found.turns[0].speaker == "SPEAKER_00"
    assert all(a.end <= b.start + 1e-9 for a, b in zip(found.word_turns, found.word_turns[1:], strict=False))
    assert found.embeddings is not None
    assert set(found.embeddings) == {turn.speaker for turn in found.turns}
    for vector in found.embeddings.values():
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_a_voice_is_embedded_as_the_pipeline_does_it(directory: Path, speech: Floats, worker: CountingWorker) -> None:
    ctx = job(worker, ModelStore(directory.parent.parent, offline=True), options={"num_speakers": 2})
    sample = embed_speaker(ctx, speech[: 3 * 16_000], community=True)
    assert sample is not None
    voice = np.array(sample.vector, np.float32)
    assert voice.shape == (256,)
    assert np.linalg.norm(voice) == pytest.approx(1, abs=1e-5)
    assert "CommunityEmbedding" in worker.operations
    # The embedding is the same as that of a recording of this voice alone.
    (alone,) = diarize(
        job(worker, ModelStore(directory.parent.parent, offline=True), options={"num_speakers": 1}),
        speech[: 3 * 16_000],
    ).embeddings.values()
    assert float(voice @ alone) == pytest.approx(1, abs=1e-4)
    assert embed_speaker(ctx, np.zeros(3 * 16_000, np.float32), community=True) is None


def test_the_open_models_take_over_when_the_pipeline_fails(
    directory: Path, ecapa_path: Path, speech: Floats, worker: CountingWorker, tmp_path: Path
) -> None:
    open_models = [ecapa_path.parent.parent / name for name in ("segmentation-3.0", "campplus")]
    for path in (directory, *open_models):
        shutil.copytree(path, tmp_path / "diarization" / path.name)
    # The number of speakers is larger than the number of windows to cluster.
    ctx = job(worker, ModelStore(tmp_path, offline=True), options={"num_speakers": 60})
    found = diarize(ctx, speech)
    assert found.turns
    assert "CAM++" in found.model
    fallback, count = ctx.warnings
    assert fallback.startswith("the speakers were told apart with open models, because community-1 cannot be used; ")
    assert count.startswith("60 speakers were asked for")


def test_silence_has_no_turns(pipeline: Any, worker: CountingWorker, tmp_path: Path) -> None:
    found = run_pipeline(job(worker, ModelStore(tmp_path)), np.zeros(3 * 16_000, dtype=np.float32), pipeline)
    assert tracks(found.exclusive_speaker_diarization) == []


def test_cancelling_stops_it_between_windows(
    pipeline: Any, speech: Floats, worker: CountingWorker, tmp_path: Path
) -> None:
    cancel = threading.Event()

    def on_progress(at: Progress) -> None:
        if at.fraction > 0:
            cancel.set()

    with pytest.raises(Canceled):
        run_pipeline(job(worker, ModelStore(tmp_path), cancel=cancel, on_progress=on_progress), speech, pipeline)
    assert "CommunityEmbedding" not in worker.operations


def test_another_pipeline_is_refused(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "copy")
    (tmp_path / "copy" / "config.yaml").write_text(CONFIG.replace("SpeakerDiarization", "VoiceActivityDetection"))
    with pytest.raises(ModelCorrupt, match="VoiceActivityDetection"):
        CommunitySource(str(tmp_path / "copy"), "cpu").load()


def test_a_damaged_checkpoint_is_refused_by_name(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "copy")
    (tmp_path / "copy" / "embedding" / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(ModelCorrupt, match=r"pytorch_model\.bin"):
        CommunitySource(str(tmp_path / "copy"), "cpu").load()
