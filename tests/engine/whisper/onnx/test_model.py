"""The two ways to run Whisper against each other, and windows side by side against windows alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_api.engine.audio.decode import decode
from whisper_api.engine.whisper.ctranslate2 import Ct2Decode, Ct2Whisper
from whisper_api.engine.whisper.model import DecodedTokens, DecodeSettings, DetectionInput, Row, Whisper
from whisper_api.engine.whisper.onnx import model as whisper_onnx
from whisper_api.engine.whisper.onnx.model import TOGETHER, OnnxAdvance, OnnxWhisper, RunningDecode
from whisper_api.engine.whisper.onnx.search import Decoding
from whisper_api.engine.whisper.onnx.sessions import feed_together
from whisper_api.engine.whisper.settings import Ct2Probe
from whisper_api.engine.worker.worker import GpuWorker

pytestmark = pytest.mark.models

RATE = 16_000
Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def call(sample_call: Path) -> Floats:
    return decode(sample_call).audio


def ct2(model: Path) -> Ct2Whisper:
    return Ct2Whisper(model, device="cpu", device_index=0, compute_type="float32", threads=2)


@pytest.fixture(scope="module")
def exact(tiny_en_model_dir: Path) -> OnnxWhisper:
    return OnnxWhisper(tiny_en_model_dir, int8=False, threads=1)


@pytest.fixture(scope="module")
def quick(tiny_en_model_dir: Path) -> OnnxWhisper:
    return OnnxWhisper(tiny_en_model_dir, int8=True, threads=1)


@pytest.fixture(scope="module")
def peer(tiny_en_model_dir: Path) -> Ct2Whisper:
    return ct2(tiny_en_model_dir)


@pytest.fixture(scope="module")
def multilingual(base_model_dir: Path) -> tuple[OnnxWhisper, Ct2Whisper]:
    """The larger model in both."""
    return OnnxWhisper(base_model_dir, int8=False, threads=1), ct2(base_model_dir)


@pytest.fixture
def worker() -> Iterator[GpuWorker]:
    worker = GpuWorker(lanes=2)
    yield worker
    worker.close()


def settings(whisper: Whisper, frames: int, **changes: Any) -> DecodeSettings:
    start = tuple(whisper.tokenizer("en").sot_sequence)
    default = DecodeSettings(
        frames,
        prompt_length=len(start) + 1,
        beam_size=5,
        temperature=0.0,
        suppress=whisper.non_speech_tokens,
        align_from=start,
    )
    return replace(default, **changes)


def row(whisper: Whisper, audio: Floats, following: int = 0) -> Row:
    tokenizer = whisper.tokenizer("en")
    return Row(audio, (*tokenizer.sot_sequence, tokenizer.no_timestamps), len(audio) // 160, following)


def decoded(worker: GpuWorker, whisper: Whisper, audio: Floats, frames: int, **changes: Any) -> DecodedTokens:
    operation = whisper.decode(settings(whisper, frames, **changes), 4, 60.0)
    result: DecodedTokens = worker.submit("job", operation, row(whisper, audio), 1.0).result(120)
    return result


@pytest.mark.parametrize(("begin", "end", "frames"), [(6.4, 14.3, 1300), (14.3, 21.6, 1200), (0.0, 30.0, 3000)])
@pytest.mark.parametrize("beam_size", [1, 5])
def test_a_window_decodes_as_ctranslate2_decodes_it(
    worker: GpuWorker,
    exact: OnnxWhisper,
    peer: Ct2Whisper,
    call: Floats,
    begin: float,
    end: float,
    frames: int,
    beam_size: int,
) -> None:
    audio = call[int(begin * RATE) : int(end * RATE)]
    ours = decoded(worker, exact, audio, frames, beam_size=beam_size)
    theirs = decoded(worker, peer, audio, frames, beam_size=beam_size)
    assert ours.tokens == theirs.tokens
    assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=2e-3)
    assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=2e-3)
    assert ours.capped == theirs.capped
    assert ours.attention is not None
    assert theirs.attention is not None
    np.testing.assert_allclose(ours.attention.probabilities, theirs.attention.probabilities, atol=0.02)
    assert len(ours.attention.tokens) == pytest.approx(len(theirs.attention.tokens), abs=3)


def test_both_backends_give_the_probability_of_each_token(
    worker: GpuWorker, multilingual: tuple[OnnxWhisper, Ct2Whisper], call: Floats
) -> None:
    exact, peer = multilingual
    audio = call[int(6.4 * RATE) : int(14.3 * RATE)]
    start = tuple(exact.tokenizer("en").sot_sequence)
    wanted = {"logprobs_from": start, "align_from": None}
    ours, theirs = (decoded(worker, whisper, audio, 1300, **wanted) for whisper in (exact, peer))
    assert ours.tokens == theirs.tokens
    assert len(ours.logprobs) == len(ours.tokens)
    # The search may not begin with a space and may end the text, the other may begin with it and not end: so the first
    # and the last token differ.
    inner = slice(1, -1)
    np.testing.assert_allclose(np.exp(ours.logprobs[inner]), np.exp(theirs.logprobs[inner]), atol=0.03)
    assert ours.attention is None
    assert theirs.attention is None
    for whisper in (exact, peer):
        assert decoded(worker, whisper, audio, 1300).logprobs == ()


def test_both_hear_the_same_language(multilingual: tuple[OnnxWhisper, Ct2Whisper], call: Floats) -> None:
    exact, peer = multilingual
    audio = call[int(6.4 * RATE) : int(14.3 * RATE)]
    parts = ((50, 200), (200, 400))
    (mine,) = exact.encode_and_detect(1300, 1, 60.0).run([DetectionInput(audio, parts)])
    (other,) = peer.encode_and_detect(1300, 1, 60.0).run([DetectionInput(audio, parts)])
    encoded, ours, their_encoded, theirs = mine.encoded, mine.languages, other.encoded, other.languages
    np.testing.assert_allclose(encoded, their_encoded, atol=5e-3)
    assert ours.keys() == theirs.keys()
    assert max(ours, key=lambda code: ours[code]) == "en"
    for code in ours:
        assert ours[code] == pytest.approx(theirs[code], abs=2e-3)
    for part, their_part in zip(mine.parts, other.parts, strict=True):
        assert max(part, key=lambda code: part[code]) == "en"
        for code in part:
            assert part[code] == pytest.approx(their_part[code], abs=5e-3)


def test_a_window_gives_the_same_alone_and_beside_others(worker: GpuWorker, quick: OnnxWhisper, call: Floats) -> None:
    pieces = [(6.4, 14.3, 1300), (14.3, 21.6, 1200), (21.6, 30.0, 1400), (0.0, 12.0, 1700), (7.0, 9.0, 700)]
    changes: list[dict[str, Any]] = [{}, {"align_from": None}, {"beam_size": 1}, {"beam_size": 2}, {"temperature": 0.4}]

    def work(number: int) -> tuple[Any, Row]:
        begin, end, frames = pieces[number]
        operation = quick.decode(settings(quick, frames, **changes[number]), 4, 60.0)
        return operation, row(quick, call[int(begin * RATE) : int(end * RATE)], following=3)

    alone = [worker.submit("job", *work(number), 1.0).result(120) for number in range(len(pieces))]
    futures: list[Future[Any]] = [
        worker.submit(f"job {number % 3}", *work(number), 1.0) for number in range(len(pieces))
    ]
    together = [future.result(120) for future in futures]
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert [each.avg_logprob for each in together] == [each.avg_logprob for each in alone]


def test_windows_of_one_recording_are_decoded_side_by_side(
    worker: GpuWorker, quick: OnnxWhisper, call: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = OnnxAdvance.run

    def watched(self: OnnxAdvance, inputs: list[RunningDecode]) -> Any:
        sizes.append(len(inputs))
        return run(self, inputs)

    monkeypatch.setattr(OnnxAdvance, "run", watched)
    operation = quick.decode(settings(quick, 1300), 4, 60.0)
    audio = call[int(6.4 * RATE) : int(14.3 * RATE)]
    futures = [worker.submit("job", operation, row(quick, audio, 7 - number), 13.0) for number in range(8)]
    texts = {future.result(120).tokens for future in futures}
    assert len(texts) == 1
    assert max(sizes) == TOGETHER
    assert sum(sizes) / len(sizes) > 2


def test_a_short_window_does_not_wait_for_long_ones(worker: GpuWorker, quick: OnnxWhisper, call: Floats) -> None:
    ended: list[str] = []
    lock = threading.Lock()

    def note(name: str) -> Any:
        def noted(_: Future[Any]) -> None:
            with lock:
                ended.append(name)

        return noted

    long = quick.decode(settings(quick, 3000), 4, 60.0)
    for number in range(6):
        future = worker.submit("long", long, row(quick, call, 5 - number), 30.0)
        future.add_done_callback(note("long"))
    short = quick.decode(settings(quick, 700), 4, 60.0)
    last = worker.submit("short", short, row(quick, call[7 * RATE : 9 * RATE]), 7.0)
    last.add_done_callback(note("short"))
    last.result(120)
    assert ended.index("short") <= 2


def test_a_decoding_that_an_error_interrupted_starts_again(
    worker: GpuWorker, quick: OnnxWhisper, call: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = call[int(6.4 * RATE) : int(14.3 * RATE)]
    expected = decoded(worker, quick, audio, 1300)
    failed: list[int] = []

    def failing(states: list[Any], feeds: list[Any]) -> Any:
        result = feed_together(states, feeds)
        if len(states) > 1 and not failed:
            failed.append(len(states))
            raise RuntimeError("a step that fails")
        return result

    monkeypatch.setattr(whisper_onnx, "feed_together", failing)
    operation = quick.decode(settings(quick, 1300), 4, 60.0)
    futures = [worker.submit("job", operation, row(quick, audio, 3 - number), 13.0) for number in range(4)]
    assert {future.result(120).tokens for future in futures} == {expected.tokens}
    assert failed


def test_a_window_that_fails_again_and_again_fails(
    worker: GpuWorker, quick: OnnxWhisper, call: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Decoding, logits: Floats) -> None:
        raise RuntimeError("a step that fails")

    operation = quick.decode(settings(quick, 700), 4, 60.0)
    audio = call[7 * RATE : 9 * RATE]
    monkeypatch.setattr(Decoding, "accept", failing)
    futures = [worker.submit("job", operation, row(quick, audio, 3 - number), 7.0) for number in range(4)]
    for future in futures:
        with pytest.raises(RuntimeError, match="fail"):
            future.result(120)


def test_a_model_that_was_unloaded_is_not_run(base_model_dir: Path) -> None:
    whisper = OnnxWhisper(base_model_dir, int8=True, threads=1)
    whisper.unload()
    with pytest.raises(RuntimeError, match="unloaded"):
        whisper.start(np.zeros((100, 512), np.float32))


def test_batch_sizes_are_measured_with_windows_that_run_to_the_cap(
    peer: Ct2Whisper, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[DecodedTokens] = []
    run = Ct2Decode.run

    def watched(self: Ct2Decode, inputs: list[Row]) -> list[DecodedTokens]:
        results = run(self, inputs)
        found.extend(results)
        return results

    monkeypatch.setattr(Ct2Decode, "run", watched)
    assert Ct2Probe(peer, 1, frames=500).run([1, 2]) == [True, True]
    assert len(found) == 3
    assert all(each.capped for each in found)
