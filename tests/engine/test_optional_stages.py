"""An optional stage that fails costs its own result and never the text, no matter where it fails.

And none of it keeps the text waiting, or goes to the network when that is forbidden.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fakes import DEADLINE, until

from whisper_api import Canceled, Engine, EngineClosed, OutOfMemory, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.models.download import SourceFailed
from whisper_api.schema import PartialSegments, Transcript

pytestmark = pytest.mark.models

RATE = 16_000
EVERYTHING = TranscriptionOptions(language="en", diarize=True, align=True, beam_size=1)
# What a job needs that comes to a place: other stages would only take time.
NEEDS = {
    "times": TranscriptionOptions(language="en", diarize=False, align=True, beam_size=1),
    "speakers": TranscriptionOptions(language="en", diarize=True, align=False, beam_size=1),
    "names": TranscriptionOptions(language="en", diarize=True, align=False, beam_size=1),
}

# The part that fails, and the fields of the transcript that are missing then.
PLACES = {
    "whisper_api.engine.align.models.AlignmentSource.load": "times",
    "whisper_api.engine.align.models.AlignmentSource.estimated_bytes": "times",
    "whisper_api.engine.align.models.Emissions.run": "times",
    "whisper_api.engine.align.align.align": "times",
    "whisper_api.engine.diarize.segmentation.SegmentationSource.load": "speakers",
    "whisper_api.engine.diarize.segmentation.SegmentWindows.run": "speakers",
    "whisper_api.engine.diarize.pipeline.diarize": "speakers",
    "whisper_api.engine.diarize.assignment.assign_speakers": "speakers",
    "whisper_api.engine.diarize.enrollment.decode_references": "names",
    "whisper_api.engine.diarize.embed_speaker.embed_speaker": "names",
    "whisper_api.engine.diarize.enrollment.match_speakers": "names",
}
# Made anew for each test: an error that was raised keeps the frames of its job, and their models, as long as it lives.
ERRORS: dict[str, Callable[[], BaseException]] = {
    "memory": MemoryError,
    "our own": lambda: OutOfMemory("one item does not fit"),
    "torch": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    "fault": lambda: ValueError("/a/path/of/the/machine: a fault"),
    "disk": lambda: OSError(5, "Input/output error", "/a/path/of/the/machine"),
    "thread": lambda: RuntimeError("can't start new thread"),
}
# Each place fails once from lack of memory and once from a fault; every other error occurs at one of the places.
CASES = [
    *((place, error) for place in PLACES for error in ("memory", "fault")),
    ("whisper_api.engine.align.models.AlignmentSource.load", "disk"),
    ("whisper_api.engine.align.models.Emissions.run", "torch"),
    ("whisper_api.engine.diarize.segmentation.SegmentationSource.load", "thread"),
    ("whisper_api.engine.diarize.segmentation.SegmentWindows.run", "our own"),
    ("whisper_api.engine.diarize.enrollment.decode_references", "disk"),
    ("whisper_api.engine.diarize.embed_speaker.embed_speaker", "torch"),
]


@pytest.fixture(scope="module")
def call(sample_call: Path) -> npt.NDArray[np.float32]:
    return decode(sample_call).audio[7 * RATE : 11 * RATE]


@pytest.fixture(scope="module")
def whole(
    models_dir: Path,
    tiny_en_model_dir: Path,
    ecapa_path: Path,
    random_alignment: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    """An engine with every model; the alignment model has random weights."""
    root = tmp_path_factory.mktemp("models")
    (root / "align").symlink_to(random_alignment, target_is_directory=True)
    for kind in ("whisper", "diarization"):
        (root / kind).symlink_to(models_dir / kind, target_is_directory=True)
    with Engine(device="cpu", model="tiny.en", models_dir=root, offline=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(whole: Engine, call: npt.NDArray[np.float32]) -> Transcript:
    return whole.transcribe(call, EVERYTHING, known_speakers={"Sheila": call[: 3 * RATE]})


def text(transcript: Transcript) -> str:
    return " ".join(word for segment in transcript.segments for word in segment.text.split())


def failing(monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException) -> list[int]:
    """Let a function of the package raise an error. Gives a list that has an entry for each of its calls."""
    calls: list[int] = []

    def fail(*ignored: object, **also_ignored: object) -> Any:
        calls.append(1)
        raise error

    monkeypatch.setattr(place, fail)
    return calls


@pytest.mark.parametrize(("place", "error"), CASES)
def test_an_optional_stage_that_fails_costs_no_text(
    place: str,
    error: str,
    whole: Engine,
    call: npt.NDArray[np.float32],
    expected: Transcript,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if place.endswith(".load"):
        whole.models.evict_idle()
    calls = failing(monkeypatch, place, ERRORS[error]())
    transcript = whole.transcribe(call, EVERYTHING, known_speakers={"Sheila": call[: 3 * RATE]})
    assert calls
    assert text(transcript) == text(expected)
    cost = PLACES[place]
    assert transcript.word_times == ("attention" if cost == "times" else "ctc")
    assert bool(transcript.speakers) == (cost != "speakers")
    assert all(word.end > word.start for word in transcript.words)
    new = set(transcript.warnings) - set(expected.warnings)
    assert new
    assert not any("/a/path" in warning for warning in transcript.warnings)
    if error in ("memory", "our own", "torch"):
        assert any("memory" in warning for warning in new)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        *((place, Canceled) for place in PLACES if not place.endswith("estimated_bytes")),
        ("whisper_api.engine.align.models.Emissions.run", EngineClosed),
        ("whisper_api.engine.diarize.segmentation.SegmentWindows.run", EngineClosed),
        ("whisper_api.engine.diarize.embed_speaker.embed_speaker", EngineClosed),
    ],
)
def test_cancellation_and_the_end_of_the_engine_are_those_of_the_job(
    place: str,
    error: type[Exception],
    whole: Engine,
    call: npt.NDArray[np.float32],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if place.endswith(".load"):
        whole.models.evict_idle()
    failing(monkeypatch, place, error("stopped"))
    known = {"Sheila": call[: 3 * RATE]} if PLACES[place] == "names" else None
    with pytest.raises(error):
        whole.transcribe(call, NEEDS[PLACES[place]], known_speakers=known)


def test_alignment_without_memory_keeps_the_text_though_it_cannot_be_decoded_again(
    whole: Engine,
    call: npt.NDArray[np.float32],
    expected: Transcript,
    monkeypatch: pytest.MonkeyPatch,
    decode_operation: type[Any],
) -> None:
    full = threading.Event()
    decode_windows = decode_operation.run

    def align(*ignored: object) -> Any:
        full.set()
        raise MemoryError

    def run(operation: Any, inputs: Any) -> Any:
        if full.is_set():
            raise MemoryError
        return decode_windows(operation, inputs)

    monkeypatch.setattr("whisper_api.engine.align.models.Emissions.run", align)
    monkeypatch.setattr(decode_operation, "run", run)
    transcript = whole.transcribe(call, EVERYTHING)
    assert text(transcript) == text(expected)
    assert transcript.word_times == "none"
    assert any("no word times" in warning and "memory" in warning for warning in transcript.warnings)


def test_an_error_of_the_callers_own_functions_is_no_warning(whole: Engine, call: npt.NDArray[np.float32]) -> None:
    def tell(stretch: PartialSegments) -> None:
        if stretch.aligned:
            raise MemoryError("of the caller")

    with pytest.raises(MemoryError, match="of the caller"):
        whole.transcribe(call, EVERYTHING, on_partial=tell)


class SlowSource:
    """A source of the alignment model that answers once its gate is open, and then has no model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = threading.Event()
        self.gate = threading.Event()
        self.waited: list[bool] = []
        monkeypatch.setattr("whisper_api.engine.models.store.fetch_from", self.fetch)

    def fetch(self, source: str, entry: Any, into: Path, token: str | None, watch: Any, share: Any) -> Any:
        self.asked.set()
        if not self.waited:
            # Wait until the stage is stopped or the text is complete.
            until(lambda: watch.check() or self.gate.is_set(), "the first text is told")
            self.waited.append(self.gate.is_set())
        raise SourceFailed("it is not there any more")


@pytest.fixture
def online(models_dir: Path, tiny_en_model_dir: Path, tmp_path: Path) -> Iterator[Engine]:
    """An engine without an alignment model, which may fetch one."""
    (tmp_path / "whisper").symlink_to(models_dir / "whisper", target_is_directory=True)
    with Engine(device="cpu", model="tiny.en", models_dir=tmp_path) as engine:
        yield engine


def test_the_first_text_does_not_wait_for_the_alignment_model_to_be_fetched(
    online: Engine, call: npt.NDArray[np.float32], expected: Transcript, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SlowSource(monkeypatch)
    transcript = online.transcribe(call, NEEDS["times"], on_partial=lambda stretch: source.gate.set())
    assert source.waited == [True]
    assert text(transcript) == text(expected)
    assert transcript.word_times == "attention"
    assert any("whisper-api models pull align-en" in warning for warning in transcript.warnings)


def test_a_job_is_canceled_while_its_alignment_model_is_fetched(
    online: Engine, call: npt.NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SlowSource(monkeypatch)
    cancel = threading.Event()
    ends: list[BaseException] = []

    def run() -> None:
        try:
            online.transcribe(call, NEEDS["times"], cancel=cancel)
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert source.asked.wait(DEADLINE)
    cancel.set()
    thread.join(DEADLINE)
    assert [type(error) for error in ends] == [Canceled]
    assert not source.gate.is_set()


OFFLINE = """
import json, pytest, socket, sys
asked = []
def hear(event, arguments):
    # The decoder process uses a socket of this machine.
    if isinstance(arguments[0] if arguments else None, socket.socket) and arguments[0].family == socket.AF_UNIX:
        return
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"):
        asked.append((event, arguments[1:]))
sys.addaudithook(hear)
import tokenizers
# Its requests are made in Rust, where Python's audit hooks do not see them.
class Recorded:
    from_file = tokenizers.Tokenizer.from_file
    @staticmethod
    def from_pretrained(name, *ignored):
        asked.append(("tokenizer", name))
        raise OSError("no network")
tokenizers.Tokenizer = Recorded
from small_alignment import shrink_bundle
from whisper_api import Engine, ModelError, TranscriptionOptions
audio, engines = sys.argv[1], json.loads(sys.argv[2])
shrink_bundle("en", pytest.MonkeyPatch())
for name, (root, model) in engines.items():
    with Engine(device="cpu", model=model, models_dir=root, offline=True) as engine:
        jobs = [("silero", None, "en"), ("silero", True, "auto"), ("silero", False, "de"), ("pyannote", None, "en")]
        for vad, diarize, language in jobs:
            options = TranscriptionOptions(language=language, diarize=diarize, vad=vad, beam_size=1)
            try:
                engine.preload(options)
                engine.preload_rest(options)
                known = {"Sheila": audio} if diarize else None
                transcript = engine.transcribe(audio, options, known_speakers=known)
                print(name, "text", len(transcript.text) > 10, transcript.word_times)
            except ModelError as error:
                print(name, "error", type(error).__name__, error)
    print(name, "asked", asked)
    asked.clear()
"""


@pytest.fixture(scope="module")
def offline(
    models_dir: Path,
    ecapa_path: Path,
    base_model_dir: Path,
    random_alignment: Path,
    call: npt.NDArray[np.float32],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, list[str]]:
    """What a script prints of offline engines with all models, with Whisper alone, and without a tokenizer.

    It runs in the environment of a user with a token and without HF_HUB_OFFLINE.
    """
    root = tmp_path_factory.mktemp("offline")
    audio = root / "call.wav"
    with wave.open(str(audio), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((call * 32767).astype("<i2").tobytes())
    for name in ("whole", "whisper", "mine"):
        (root / name).mkdir()
    for name in ("whole", "whisper"):
        (root / name / "whisper").symlink_to(models_dir / "whisper", target_is_directory=True)
    (root / "whole" / "diarization").symlink_to(models_dir / "diarization", target_is_directory=True)
    (root / "whole" / "align").symlink_to(random_alignment, target_is_directory=True)
    for model_file in base_model_dir.iterdir():
        if model_file.name not in ("tokenizer.json", "manifest.json"):
            (root / "mine" / model_file.name).symlink_to(model_file)
    engines = {
        "whole": (str(root / "whole"), "base"),
        "whisper": (str(root / "whisper"), "base"),
        "mine": (str(root), str(root / "mine")),
    }
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_TOKEN": "hf_aTokenOfNobody", "HF_HOME": str(root / "hf")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", OFFLINE, str(audio), json.dumps(engines)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    printed: dict[str, list[str]] = {name: [] for name in engines}
    for line in done.stdout.splitlines():
        name, _, rest = line.partition(" ")
        printed[name].append(rest)
    return printed


def test_an_offline_engine_asks_no_network(offline: dict[str, list[str]]) -> None:
    *results, asked = offline["whole"]
    assert asked == "asked []"
    assert results == ["text True ctc", "text True ctc", "text True attention", "text True ctc"]


def test_an_offline_engine_with_whisper_alone_asks_no_network(offline: dict[str, list[str]]) -> None:
    first, error, *others, asked = offline["whisper"]
    assert asked == "asked []"
    assert {first, *others} == {"text True attention"}
    # The job asks for diarization, which is not possible.
    assert error.startswith("error ModelUnavailable ")


def test_an_offline_engine_asks_no_network_for_a_tokenizer(offline: dict[str, list[str]]) -> None:
    *results, asked = offline["mine"]
    assert asked == "asked []"
    assert len(results) == 4
    for line in results:
        assert line.startswith("error ModelCorrupt ")
        assert "has no tokenizer.json, and downloads are switched off: copy the file to that directory" in line
