"""An alignment model that is stored but not loaded: no text waits for it, and its absence loses no text."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fakes import until
from msgspec.structs import replace
from stereo import wav

from whisper_api import Canceled, Engine, TranscriptionOptions
from whisper_api.engine.align.models import AlignmentModel, AlignmentSource
from whisper_api.engine.audio.decode import decode
from whisper_api.schema import PartialSegments, Transcript

pytestmark = pytest.mark.models

RATE = 16_000
DEADLINE = 120.0
WANTED = TranscriptionOptions(language="en", diarize=False, beam_size=1)
CHECKPOINT = "wav2vec2_fairseq_base_ls960_asr_ls960.pth"


@pytest.fixture(scope="module")
def audio(short_call: Path) -> npt.NDArray[np.float32]:
    """Two windows of speech."""
    speech = decode(short_call).audio
    return np.concatenate([speech, np.zeros(25 * RATE, np.float32), speech])


@contextlib.contextmanager
def engine_with(models_dir: Path, root: Path) -> Iterator[Engine]:
    """An engine with the real Whisper and the alignment model below this directory."""
    (root / "whisper").symlink_to(models_dir / "whisper", target_is_directory=True)
    with Engine(device="cpu", model="tiny.en", models_dir=root, offline=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def aligning(
    models_dir: Path, tiny_en_model_dir: Path, random_alignment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """An engine with an alignment model, which is loaded again for every job."""
    root = tmp_path_factory.mktemp("models")
    (root / "align").symlink_to(random_alignment, target_is_directory=True)
    assert (root / "align" / "en" / CHECKPOINT).is_file()
    with engine_with(models_dir, root) as engine:
        yield engine


@pytest.fixture
def unloaded(aligning: Engine) -> Engine:
    aligning.models.evict_idle()
    return aligning


def test_the_first_text_does_not_wait_for_the_alignment_model(
    unloaded: Engine, audio: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    waited: list[bool] = []
    load = AlignmentSource.load

    def load_later(source: AlignmentSource) -> AlignmentModel:
        waited.append(told.wait(DEADLINE))
        return load(source)

    monkeypatch.setattr(AlignmentSource, "load", load_later)
    stretches: list[PartialSegments] = []

    def tell(stretch: PartialSegments) -> None:
        stretches.append(stretch)
        told.set()

    transcript = unloaded.transcribe(audio, WANTED, on_partial=tell)
    assert waited == [True]
    assert not stretches[0].aligned
    assert transcript.word_times == "ctc"
    assert {stretch.index for stretch in stretches if stretch.aligned} == {stretch.index for stretch in stretches}


def test_each_channel_is_aligned_as_it_is_alone(aligning: Engine, short_call: Path) -> None:
    call = decode(short_call).audio
    pieces = [call[: 3 * RATE], call[4 * RATE : 7 * RATE]]
    stretches: list[PartialSegments] = []
    options = replace(WANTED, channels="separate")
    found = aligning.transcribe(wav(pieces), options, on_partial=stretches.append)
    assert (found.word_times, found.channels) == ("ctc", (0, 1))
    for channel, piece in enumerate(pieces):
        expected = aligning.transcribe(wav([piece]), WANTED)
        words = [replace(word, channel=None) for word in found.words if word.channel == channel]
        assert [word.word for word in words] == [word.word for word in expected.words]
        for word, other in zip(words, expected.words, strict=True):
            assert (word.start, word.end) == pytest.approx((other.start, other.end), abs=0.0011)
    aligned = {stretch.index: stretch.segments for stretch in stretches if stretch.aligned}
    live = sorted((word.channel, word.start) for index in aligned for s in aligned[index] for word in s.words)
    assert live == sorted((word.channel, word.start) for word in found.words)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the last window"])
def test_an_alignment_model_that_cannot_be_loaded_is_done_without(
    late: bool,
    models_dir: Path,
    audio: npt.NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = tmp_path / "align" / "en" / CHECKPOINT
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no weights")
    decoded = threading.Event()
    load = AlignmentSource.load

    def load_then(source: AlignmentSource) -> AlignmentModel:
        if late:
            assert decoded.wait(DEADLINE)
        return load(source)

    monkeypatch.setattr(AlignmentSource, "load", load_then)
    shown: dict[int, PartialSegments] = {}

    def tell(stretch: PartialSegments) -> None:
        shown[stretch.index] = stretch
        if len(shown) == 2:
            decoded.set()

    with engine_with(models_dir, tmp_path) as engine:
        transcript = engine.transcribe(audio, WANTED, on_partial=tell)
        damaged.unlink()
        expected = engine.transcribe(audio, WANTED)
    assert transcript.word_times == "attention"
    (warning,) = transcript.warnings
    assert "whisper-api models pull align-en" in warning
    assert str(tmp_path) not in warning
    assert all(stretch.aligned for stretch in shown.values())
    assert [piece.words for index in sorted(shown) for piece in shown[index].segments] == words(transcript)
    assert words(transcript) == words(expected) != []


def words(transcript: Transcript) -> list[object]:
    return [segment.words for segment in transcript.segments]


def test_a_job_that_is_canceled_while_the_model_loads_gives_it_back(
    unloaded: Engine, audio: npt.NDArray[np.float32]
) -> None:
    cancel = threading.Event()
    with pytest.raises(Canceled):
        unloaded.transcribe(audio, WANTED, cancel=cancel, on_partial=lambda stretch: cancel.set())
    # The load goes on for the next job that wants the model.
    until(lambda: [model.leases for model in unloaded.models.resident()] == [0, 0], "both models are there, unused")


def test_aligned_words_have_a_length_and_stretches_tell_the_times_they_keep(
    aligning: Engine, audio: npt.NDArray[np.float32]
) -> None:
    stretches: dict[int, PartialSegments] = {}

    def tell(stretch: PartialSegments) -> None:
        stretches[stretch.index] = stretch

    transcript = aligning.transcribe(audio, WANTED, on_partial=tell)
    assert transcript.word_times == "ctc"
    words = transcript.words
    assert len(words) > 10
    assert all(0 <= word.start < word.end <= transcript.duration for word in words)
    assert all(before.end <= after.start for before, after in pairwise(words))
    assert all(before.end <= after.start for before, after in pairwise(transcript.segments))
    told = [word for index in sorted(stretches) for segment in stretches[index].segments for word in segment.words]
    assert told == list(words)
