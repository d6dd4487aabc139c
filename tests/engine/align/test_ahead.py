"""A short clip: the alignment model hears it while Whisper decodes it, and the words are the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace

from whisper_api import Engine, TranscriptionOptions
from whisper_api.engine.align.ahead import EmissionsAhead
from whisper_api.engine.align.models import EmissionInput, Emissions, chosen_columns
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.context import JobContext
from whisper_api.engine.vad import Span
from whisper_api.engine.whisper.window_decoder import WindowDecoder
from whisper_api.engine.worker import device
from whisper_api.errors import OutOfMemory
from whisper_api.schema import SAMPLE_RATE, Transcript

Floats = npt.NDArray[np.float32]

LONG = 120.0
WANTED = TranscriptionOptions(language="en", diarize=False, beam_size=1)


@pytest.fixture(scope="module")
def clip(short_call: Path) -> Floats:
    """One window of speech."""
    return decode(short_call).audio


@pytest.fixture(scope="module")
def aligning(
    models_dir: Path, tiny_en_model_dir: Path, random_alignment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """An engine with two lanes and an alignment model of random weights, both models loaded."""
    root = tmp_path_factory.mktemp("models")
    (root / "whisper").symlink_to(models_dir / "whisper", target_is_directory=True)
    (root / "align").symlink_to(random_alignment, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "physical_cores", lambda: 2)
        engine = Engine(device="cpu", model="tiny.en", models_dir=root, offline=True)
    with engine:
        engine.preload(WANTED)
        engine.preload_rest(WANTED)
        yield engine


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[EmissionInput]:
    """What the alignment model hears; without columns, it is heard ahead."""
    found: list[EmissionInput] = []
    run = Emissions.run

    def record(operation: Emissions, inputs: Sequence[EmissionInput]) -> list[Floats]:
        found.extend(inputs)
        return run(operation, inputs)

    monkeypatch.setattr(Emissions, "run", record)
    return found


@pytest.fixture(scope="module")
def as_before(aligning: Engine, clip: Floats) -> Transcript:
    """The transcript when the alignment model waits for the text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmissionsAhead, "of", lambda *_: None)
        return aligning.transcribe(clip, WANTED)


@pytest.mark.cpu("a GPU has no idle cores")
@pytest.mark.models
def test_a_clip_is_heard_once_and_its_words_are_the_same(
    aligning: Engine, clip: Floats, as_before: Transcript, heard: list[EmissionInput]
) -> None:
    found = aligning.transcribe(clip, WANTED)
    window, *later = heard
    assert window.columns is None
    # Voice without words is aligned again, if there is any, with its own text.
    assert all(item.columns is not None and len(item.samples) < len(window.samples) for item in later)
    assert (found.word_times, found.segments) == ("ctc", as_before.segments)
    assert found.words


@pytest.mark.cpu("a GPU has no idle cores")
@pytest.mark.models
def test_the_model_does_not_wait_for_the_text(aligning: Engine, clip: Floats, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    run, first_item = Emissions.run, WindowDecoder.first_item

    def end(operation: Emissions, inputs: Sequence[EmissionInput]) -> list[Floats]:
        result = run(operation, inputs)
        done.set()
        return result

    def begin_later(*arguments: object, **options: object) -> object:
        assert done.wait(LONG)
        return first_item(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Emissions, "run", end)
    monkeypatch.setattr(WindowDecoder, "first_item", begin_later)
    assert aligning.transcribe(clip, WANTED).word_times == "ctc"


@pytest.mark.models
@pytest.mark.parametrize("busy", ["another job", "as many windows as lanes", "speakers"])
def test_without_an_idle_lane_the_model_waits_for_the_text(
    busy: str, aligning: Engine, clip: Floats, heard: list[EmissionInput], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, options = clip, WANTED
    if busy == "another job":
        monkeypatch.setattr(JobContext, "submit_if_idle", lambda *_: None)
    elif busy == "speakers":
        # Here they end with a warning, since no model is here.
        options = replace(WANTED, diarize=None)
    else:
        audio = np.concatenate([clip, np.zeros(25 * SAMPLE_RATE, np.float32), clip])
    assert aligning.transcribe(audio, options).word_times == "ctc"
    assert heard
    assert all(item.columns is not None for item in heard)


@pytest.mark.cpu("a GPU has no idle cores")
@pytest.mark.models
def test_a_failure_ahead_costs_nothing(
    aligning: Engine, clip: Floats, as_before: Transcript, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failed = Emissions.run, []

    def fail_ahead(operation: Emissions, inputs: Sequence[EmissionInput]) -> list[Floats]:
        if inputs[0].columns is None:
            failed.append(True)
            raise OutOfMemory("no memory left")
        return run(operation, inputs)

    monkeypatch.setattr(Emissions, "run", fail_ahead)
    found = aligning.transcribe(clip, WANTED)
    assert failed
    assert (found.segments, found.warnings) == (as_before.segments, as_before.warnings)


@pytest.mark.cpu("a GPU has no idle cores")
@pytest.mark.parametrize(
    ("lanes", "windows", "ahead"),
    [(1, 1, 0), (2, 0, 0), (2, 1, 1), (2, 2, 0), (4, 1, 1), (4, 2, 2), (4, 3, 1), (4, 9, 0)],
)
def test_a_lane_is_left_to_each_window(lanes: int, windows: int, ahead: int, ctx: JobContext) -> None:
    spans = [Span(number * SAMPLE_RATE, (number + 1) * SAMPLE_RATE) for number in range(windows)]
    found = EmissionsAhead.of(ctx, np.zeros(windows * SAMPLE_RATE, np.float32), spans, lanes)
    assert len(found.windows if found else ()) == ahead


@pytest.mark.parametrize("wildcard", [False, True])
def test_columns_chosen_later_are_those_chosen_at_once(wildcard: bool) -> None:
    every = np.log(np.random.default_rng(7).dirichlet(np.ones(6), 20)).astype(np.float32)
    item = EmissionInput(np.zeros(1, np.float32), np.array([0, 2, 5]), wildcard)
    before = every.copy()
    found = chosen_columns(every, item, blank=0)
    np.testing.assert_array_equal(found[:, :3], before[:, [0, 2, 5]])
    np.testing.assert_array_equal(every, before)
    if wildcard:
        np.testing.assert_array_equal(found[:, 3], before[:, 1:].max(axis=1))
    assert found.shape == (20, 3 + wildcard)
