"""Alignment gives what whisperx.align gives for the same model, and a time for every word."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import wave
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace
from small_alignment import CONVOLUTIONS, save_bundle, sharpened

from whisper_api.engine import sentences
from whisper_api.engine.align import align as stage
from whisper_api.engine.align import wav2vec
from whisper_api.engine.align.models import AlignmentModel, AlignmentSource, EmissionInput, Emissions, model_id
from whisper_api.engine.context import JobContext
from whisper_api.engine.models.cache import ModelCache
from whisper_api.engine.models.store import ModelStore
from whisper_api.engine.options import resolve
from whisper_api.engine.worker.device import Device
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.errors import ModelCorrupt, UnknownModel
from whisper_api.options import TranscriptionOptions
from whisper_api.schema import SAMPLE_RATE, Segment

Audio = npt.NDArray[np.float32]
Spans = Callable[[str, str], list[tuple[int, int]]]

FRAME = 0.0205
"""Seconds; a frame and the rounding of two times."""
LATIN = "enisratdhulcgmobwfkzvüpäößjyxqéèàâçêîôûñáíóúì'"
JAPANESE = "こんにちは今日いい天気ですねどに行きまか東京大学で勉強したー"


@dataclass(frozen=True)
class Loaded:
    """A models directory with one small random model, as this project and as whisperx read it."""

    root: Path
    language: str
    model: Any
    metadata: dict[str, Any]


def save_hub_model(directory: Path, alphabet: str, norm: str, delimiter: str) -> None:
    """A wav2vec 2.0 CTC model of random weights with its processor, as the hub has them."""
    import torch
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    directory.mkdir(parents=True)
    # The blank is not label 0, and a capital and its small letter are two labels, as in some published vocabularies.
    labels = ["<unk>", delimiter, *dict.fromkeys(alphabet), "E", "<pad>", "<s>", "</s>"]
    vocabulary = directory / "vocab.json"
    vocabulary.write_text(json.dumps({label: index for index, label in enumerate(labels)}), encoding="utf-8")
    tokenizer = Wav2Vec2CTCTokenizer(str(vocabulary), pad_token="<pad>", word_delimiter_token=delimiter)
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer", do_normalize=True)
    Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(directory)
    torch.manual_seed(2)
    network = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=len(labels),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            conv_dim=[channels for channels, _, _ in CONVOLUTIONS],
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            feat_extract_norm=norm,
            do_stable_layer_norm=norm == "layer",
            conv_bias=norm == "layer",
            pad_token_id=labels.index("<pad>"),
        )
    )
    network.lm_head.weight.data = sharpened(network.lm_head.weight.data)
    network.save_pretrained(directory)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    import whisperx.alignment

    root = tmp_path_factory.mktemp("bundle")
    with pytest.MonkeyPatch.context() as patch:
        save_bundle(root / "align" / "fr", "fr", patch)
        model, metadata = whisperx.alignment.load_align_model("fr", "cpu", model_dir=str(root / "align" / "fr"))
        yield Loaded(root, "fr", model, metadata)


def hub_model(root: Path, language: str, alphabet: str, norm: str, delimiter: str = "|") -> Loaded:
    import whisperx.alignment

    directory = root / "align" / language
    save_hub_model(directory, alphabet, norm, delimiter)
    model, metadata = whisperx.alignment.load_align_model(language, "cpu", model_name=str(directory))
    return Loaded(root, language, model, metadata)


@pytest.fixture(scope="module")
def dutch(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return hub_model(tmp_path_factory.mktemp("dutch"), "nl", LATIN, "layer")


@pytest.fixture(scope="module")
def portuguese(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model without labels for the space and for "|"; in WhisperX both have the times of their neighbours."""
    return hub_model(tmp_path_factory.mktemp("portuguese"), "pt", LATIN, "group", "<space>")


@pytest.fixture(scope="module")
def japanese(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return hub_model(tmp_path_factory.mktemp("japanese"), "ja", JAPANESE, "group")


@pytest.fixture(scope="module")
def speech(sample_call: Path) -> Audio:
    with wave.open(str(sample_call)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (SAMPLE_RATE, 1, 2)
        frames = file.readframes(file.getnframes())
    return (np.frombuffer(frames, np.int16) / 32768).astype(np.float32)


@pytest.fixture(scope="module")
def contexts() -> Iterator[Callable[[Loaded], JobContext]]:
    worker, models = GpuWorker(), ModelCache()
    yield lambda loaded: context_of(loaded, worker, models)
    models.close()
    worker.close()


def context_of(loaded: Loaded, worker: GpuWorker, models: ModelCache) -> JobContext:
    store = ModelStore(loaded.root, offline=True)
    options = resolve(TranscriptionOptions(), model="base", language="auto")
    return JobContext(options=options, device=Device("cpu"), worker=worker, models=models, store=store)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the dtype in which the times are exactly those of WhisperX."""
    monkeypatch.setattr(stage, "has_bfloat16", lambda device: False)


def with_whisperx(loaded: Loaded, audio: Audio, segments: list[Segment], spans: Spans) -> list[dict[str, Any]]:
    """The result of whisperx.align, with another sentence splitter, since the data of its own must be downloaded."""
    import whisperx.alignment

    class Splitter:
        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return spans(text, loaded.language)

    given = [{"start": s.start, "end": s.end, "text": s.text, "avg_logprob": s.avg_logprob} for s in segments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(whisperx.alignment, "nltk_load", lambda path: Splitter())
        result = whisperx.alignment.align(given, loaded.model, loaded.metadata, audio, "cpu")
    found: list[dict[str, Any]] = result["segments"]
    return found


def assert_equal(ours: tuple[Segment, ...], theirs: list[dict[str, Any]]) -> None:
    assert [segment.id for segment in ours] == list(range(len(ours)))
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs, strict=True):
        assert (mine.text, mine.start, mine.end) == (reference["text"].strip(), reference["start"], reference["end"])
        assert mine.avg_logprob == reference["avg_logprob"]
        if not reference["words"]:  # whisperx could not align the segment
            assert all(word.interpolated for word in mine.words)
            continue
        assert [word.word for word in mine.words] == [word["word"] for word in reference["words"]]
        for word, other in zip(mine.words, reference["words"], strict=True):
            if "start" in other:
                assert (word.start, word.end, word.score) == (other["start"], other["end"], other.get("score"))
            assert word.interpolated == ("score" not in other)


def assert_well_formed(segments: tuple[Segment, ...]) -> None:
    for segment in segments:
        assert segment.start <= segment.end
        assert bool(segment.words) == bool(segment.text)
        last = segment.start
        for word in segment.words:
            assert word.word == word.word.strip() != ""
            assert last <= word.start <= word.end <= segment.end
            assert word.interpolated or word.score is not None
            last = word.start


PHRASES = {
    "fr": [
        "Bonjour à tous.", "M. Dupont est arrivé à 15 h 30.", "Ça coûte 3.14 €, n'est-ce pas ?", "Oui !",
        "L'été, enfin…", "Il y a 42 personnes", "«\u00a0C'est fini.\u00a0»", "%%% ###", "où ça\u00a0?", "- Non.",
        "一二三", "😀 Très drôle.", "aujourd'hui | demain", "A\tB", "fin.\nSuite", "Voilà  deux   espaces",
    ],
    "nl": [
        "Goedemorgen allemaal.", "Dhr. Jansen kwam om 15.30 uur.", "Echt waar?", "Ja!", "Het kost ca. 3,50 euro",
        "E-mail", "|", "2024", "…", "Éénmaal, Andermaal.", "a", "X Y Z.", "«Wat?» vroeg hij.", "Łódź & Øre",
        "\u00a0x", "ok\u3000ok",
    ],
    "pt": [
        "Bom dia a todos.", "O Sr. Silva | chegou.", "| | É verdade?", "Sim!", "|", "||.", "Custa 3.14 € |", "não",
        "A | B |",
    ],
    "ja": [
        "こんにちは。", "今日はいい天気ですね！", "どこに行きますか？", "東京大学で３.14を勉強したい", "ABC",
        "「はい」と", " ", "42", "…", "は　い", "|",
    ],
}  # fmt: skip


def random_segments(language: str, duration: float, count: int, seed: int) -> list[Segment]:
    """Texts of one to five phrases over times that may be too short for them, or beyond the end of the audio."""
    rng = random.Random(seed)
    segments = []
    for index in range(count):
        join = rng.choice(["", " "]) if language == "ja" else " "
        text = join.join(rng.choice(PHRASES[language]) for _ in range(rng.randint(1, 5)))
        text = rng.choice(["", " ", "  "]) + text + rng.choice(["", "", " "])
        text = rng.choice([text] * 8 + ["", "   ", text.upper()])
        start = rng.choice([rng.uniform(0, duration * 0.9)] * 8 + [0.0, duration - 0.01, duration + 1.0])
        length = rng.choice([rng.uniform(0.5, 6)] * 8 + [0.0, 0.01, 0.02, 0.1])
        segments.append(Segment(id=index, start=start, end=start + length, text=text, avg_logprob=-0.5))
    return segments


def one_span(text: str, language: str) -> list[tuple[int, int]]:
    return [(len(text) - len(text.lstrip()), len(text.rstrip()))] if text.strip() else []


@pytest.mark.parametrize(
    ("name", "spans"),
    [("bundle", sentences.spans), ("dutch", sentences.spans), ("portuguese", sentences.spans), ("japanese", one_span)],
)
def test_equals_whisperx(
    name: str,
    spans: Spans,
    request: pytest.FixtureRequest,
    speech: Audio,
    contexts: Callable[[Loaded], JobContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: Loaded = request.getfixturevalue(name)
    monkeypatch.setattr(stage, "spans", spans)
    noise = np.random.default_rng(0).normal(scale=0.1, size=4 * SAMPLE_RATE).astype(np.float32)
    for seed, audio in enumerate((speech, noise, speech[: 3 * SAMPLE_RATE], np.zeros(20_000, np.float32))):
        segments = random_segments(loaded.language, len(audio) / SAMPLE_RATE, 10, seed)
        aligned = stage.align(contexts(loaded), audio, segments, loaded.language)
        assert_equal(aligned.segments, with_whisperx(loaded, audio, segments, spans))
        assert_well_formed(aligned.segments)


def test_segments_are_told_as_they_get_their_times_those_that_cannot_be_aligned_too(
    dutch: Loaded, speech: Audio, contexts: Callable[[Loaded], JobContext]
) -> None:
    segments = random_segments("nl", len(speech) / SAMPLE_RATE, 12, 7)
    # The text is too long for the audio.
    segments.append(Segment(id=12, start=1.0, end=1.1, text="veel te veel tekst " * 20, avg_logprob=-0.1))
    told: dict[int, list[Segment]] = {}

    def tell(index: int, sentences: Sequence[Segment]) -> None:
        assert index not in told
        told[index] = list(sentences)

    aligned = stage.align(contexts(dutch), speech, segments, "nl", tell)
    together = [sentence for index in sorted(told) for sentence in told[index]]
    assert sorted(told) == list(range(len(segments)))
    assert [replace(sentence, id=0) for sentence in together] == [replace(each, id=0) for each in aligned.segments]
    assert all(word.interpolated for word in told[12][0].words)


def test_numbers_have_the_times_of_attention_and_the_other_words_those_of_the_model(
    bundle: Loaded, speech: Audio, contexts: Callable[[Loaded], JobContext]
) -> None:
    segment = Segment(id=0, start=1.0, end=9.0, text="Il y a 42 personnes, et ça coûte 3 000 €.", avg_logprob=-0.1)
    ctx = contexts(bundle)
    plain = [word for found in stage.align(ctx, speech, [segment], "fr").segments for word in found.words]
    # Attention hears each word in the middle of the time that the model leaves it.
    heard = tuple(
        replace(
            word, start=word.start + (word.end - word.start) / 4, end=word.end - (word.end - word.start) / 4, score=0.9
        )
        for word in plain
    )
    aligned = stage.align(ctx, speech, [replace(segment, words=heard)], "fr").segments
    assert_well_formed(aligned)
    mixed = [word for found in aligned for word in found.words]
    numbers = {"42", "3", "000", "€."}
    assert {word.word for word in mixed if word.timing == "attention"} == numbers
    for word, before, attended in zip(mixed, plain, heard, strict=True):
        if word.word in numbers:
            assert (word.start, word.end) == pytest.approx((attended.start, attended.end), abs=1e-9)
            assert word.score == 0.9
        else:
            assert word == before


def test_japanese_sentences_have_the_characters_of_whisperx_once_each(
    japanese: Loaded, speech: Audio, contexts: Callable[[Loaded], JobContext]
) -> None:
    parts = ["こんにちは。", "今日はいい天気ですね！", "どこに行きますか？"]
    segments = [Segment(id=0, start=1.0, end=9.0, text="".join(parts), avg_logprob=-0.1)]
    aligned = stage.align(contexts(japanese), speech, segments, "ja")
    assert [segment.text for segment in aligned.segments] == [
        "こんにちは。",
        "今日はいい天気ですね！",
        "どこに行きますか？",
    ]
    assert_well_formed(aligned.segments)
    words = [(word.word, word.start, word.end, word.score) for segment in aligned.segments for word in segment.words]
    (whole,) = with_whisperx(japanese, speech, segments, one_span)
    assert words == [(word["word"], word["start"], word["end"], word["score"]) for word in whole["words"]]


def test_confidence_values_of_a_segment_are_carried_over(
    bundle: Loaded, speech: Audio, contexts: Callable[[Loaded], JobContext]
) -> None:
    known: dict[str, Any] = {"avg_logprob": -0.3, "compression_ratio": 1.4, "no_speech_prob": 0.1}
    known |= {"temperature": 0.2, "flags": ("low_confidence",)}
    aligned = stage.align(
        contexts(bundle), speech, [Segment(id=7, start=1.0, end=6.0, text=" Oui. Non merci.", **known)], "fr"
    )
    assert aligned.model == "VOXPOPULI_ASR_BASE_10K_FR"
    assert [segment.text for segment in aligned.segments] == ["Oui.", "Non merci."]
    for segment in aligned.segments:
        assert {name: getattr(segment, name) for name in known} == known


def test_words_that_cannot_be_aligned_are_spread_by_their_characters(
    bundle: Loaded, speech: Audio, contexts: Callable[[Loaded], JobContext]
) -> None:
    ctx = contexts(bundle)
    long = Segment(id=0, start=2.0, end=2.1, text=" un mot trop long pour un si court moment")
    outside = Segment(id=1, start=100.0, end=102.0, text=" ab cdef gh")
    empty = Segment(id=2, start=3.0, end=4.0, text=" ")
    aligned = stage.align(ctx, speech, [long, outside, empty], "fr").segments
    assert [segment.text for segment in aligned] == [long.text.strip(), outside.text.strip(), ""]
    assert [(word.start, word.end) for word in aligned[1].words] == [(100.0, 100.5), (100.5, 101.5), (101.5, 102.0)]
    assert all(word.interpolated and word.score is None for segment in aligned for word in segment.words)
    assert_well_formed(aligned)
    assert ctx.warnings == ["2 of 3 segments could not be aligned; the times of their words are interpolated."]


def test_a_character_that_lower_casing_doubles_does_not_shift_the_others(
    dutch: Loaded, speech: Audio, contexts: Callable[[Loaded], JobContext]
) -> None:
    # "İ" and "i" with the combining dot above are the same labels.
    one, two = (
        stage.align(contexts(dutch), speech, [Segment(id=0, start=1.0, end=5.0, text=text)], "nl").segments[0]
        for text in ("İstanbul is mooi", "i\u0307stanbul is mooi")
    )
    assert [(word.start, word.end) for word in one.words] == [(word.start, word.end) for word in two.words]


@pytest.mark.parametrize("name", ["bundle", "dutch", "japanese"])
def test_a_padded_batch_gives_what_each_segment_gives_alone(
    name: str, request: pytest.FixtureRequest, speech: Audio
) -> None:
    loaded: Loaded = request.getfixturevalue(name)
    alone = AlignmentSource(loaded.language, loaded.root / "align" / loaded.language).load()
    together = dataclasses.replace(alone, together=True)
    pieces = [speech[:32_000], speech[50_000:50_300], speech[60_000:140_000], speech[:400], speech[7_000:39_001]]
    columns = np.arange(len(set(alone.dictionary.values())))
    inputs = [EmissionInput(piece, columns, True) for piece in pieces]
    for one, many in zip(Emissions(alone).run(inputs), Emissions(together).run(inputs), strict=True):
        assert one.dtype == many.dtype == np.float32
        np.testing.assert_allclose(many, one, atol=2e-3)


@pytest.mark.parametrize("name", ["bundle", "dutch"])
def test_half_precision_changes_probabilities_a_little(
    name: str, request: pytest.FixtureRequest, speech: Audio
) -> None:
    loaded: Loaded = request.getfixturevalue(name)
    source = AlignmentSource(loaded.language, loaded.root / "align" / loaded.language)
    half = dataclasses.replace(source, dtype="float16")
    assert half.estimated_bytes() == source.estimated_bytes() // 2
    inputs = [EmissionInput(speech[:16_000], np.arange(20), False), EmissionInput(speech[:9_000], np.arange(20), False)]
    exact = Emissions(source.load()).run(inputs)
    rounded = Emissions(dataclasses.replace(half.load(), together=True)).run(inputs)
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == np.float32
        np.testing.assert_allclose(np.exp(other), np.exp(one), atol=0.05)


@pytest.mark.cpu("sets the precision of its device itself")
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", ["bundle", "dutch", "portuguese"])
def test_a_batch_whose_numbers_exceed_half_precision_is_computed_in_float32(
    name: str, together: bool, request: pytest.FixtureRequest, speech: Audio, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: Loaded = request.getfixturevalue(name)
    source = AlignmentSource(loaded.language, loaded.root / "align" / loaded.language, dtype="float16")
    model = dataclasses.replace(source.load(), together=together)
    inputs = [EmissionInput(speech[:16_000], np.arange(20), False), EmissionInput(speech[:9_000], np.arange(20), False)]
    with monkeypatch.context() as patch:
        patch.setattr(AlignmentModel, "in_float32", lambda model: pytest.fail("it was computed twice"))
        Emissions(model).run(inputs)
    network: Any = model.network
    labels = network.lm_head if hasattr(network, "lm_head") else network.aux
    labels.weight.data *= 30_000 / labels.weight.data.abs().max()
    found = Emissions(model).run(inputs)
    exact = Emissions(model.in_float32()).run(inputs)
    for one, other in zip(found, exact, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)
    # The model itself, which other lanes may run, is as before.
    assert model.may_overflow


@pytest.mark.parametrize("name", ["bundle", "dutch", "portuguese"])
def test_bfloat16_keeps_words_where_they_are(
    name: str,
    request: pytest.FixtureRequest,
    speech: Audio,
    contexts: Callable[[Loaded], JobContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: Loaded = request.getfixturevalue(name)
    text = " ".join(phrase for phrase in PHRASES[loaded.language] if phrase.isascii())
    segments = [Segment(id=i, start=i * 6.0, end=i * 6.0 + 5.5, text=text[:60]) for i in range(5)]
    exact = stage.align(contexts(loaded), speech, segments, loaded.language).segments
    monkeypatch.setattr(stage, "has_bfloat16", lambda device: True)
    rounded = stage.align(contexts(loaded), speech, segments, loaded.language).segments
    words, others = ([word for segment in found for word in segment.words] for found in (exact, rounded))
    assert [word.word for word in words] == [word.word for word in others]
    apart = np.abs([one.start - other.start for one, other in zip(words, others, strict=True)])
    assert float(np.median(apart)) == 0.0
    assert float((apart <= FRAME).mean()) >= 0.95


@pytest.mark.parametrize("name", ["bundle", "dutch", "portuguese"])
def test_packed_weights_give_what_the_network_gives(name: str, request: pytest.FixtureRequest, speech: Audio) -> None:
    import torch

    loaded: Loaded = request.getfixturevalue(name)
    source = AlignmentSource(loaded.language, loaded.root / "align" / loaded.language)
    network = source.load().network
    packed = wav2vec.convert(network)
    assert packed is not None
    # One frame, two frames, the border of a block, and more than one block of rows in the attention.
    for samples in (400, 719, 720, 320 * 50 + 80, 320 * 51 + 80, 200_000):
        waveform = torch.from_numpy(speech[:samples]) + 0.05
        with torch.inference_mode():
            output: Any = network(waveform[None])
            expected = (output.logits if hasattr(output, "logits") else output[0])[0]
            found = packed(waveform).float()
        assert found.shape == expected.shape
        # Bfloat16 has eight bits: the logits here reach tens.
        assert float((found - expected).abs().mean() / expected.std()) < 0.03


def test_packed_weights_do_not_depend_on_what_runs_beside_them(bundle: Loaded, speech: Audio) -> None:
    source = AlignmentSource(bundle.language, bundle.root / "align" / bundle.language, dtype="bfloat16")
    model = source.load()
    assert model.packed is not None
    pieces = [speech[: 16_000 * seconds] for seconds in (3, 5, 2, 7)]
    inputs = [EmissionInput(piece, np.arange(20), True) for piece in pieces]
    alone = [Emissions(model).run([item])[0] for item in inputs]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda item: Emissions(model).run([item])[0], inputs))
    for one, *others in zip(alone, beside, Emissions(model).run(inputs), strict=True):
        for other in others:
            np.testing.assert_array_equal(one, other)


def test_audio_shorter_than_a_frame_has_one_frame(bundle: Loaded, speech: Audio) -> None:
    source = AlignmentSource(bundle.language, bundle.root / "align" / bundle.language, dtype="bfloat16")
    assert source.estimated_bytes() == dataclasses.replace(source, dtype="float32").estimated_bytes() // 2
    found = Emissions(source.load()).run([EmissionInput(speech[:samples], np.arange(3), False) for samples in (1, 399)])
    assert [len(emission) for emission in found] == [1, 1]
    assert np.isfinite(found).all()


class RecordingWorker(GpuWorker):
    """A worker that records the cost of each work item: the seconds of its audio."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[float] = []

    def submit(self, job: Hashable, operation: Any, input: Any, cost: float, *, ahead: bool = False) -> Any:
        self.costs.append(cost)
        return super().submit(job, operation, input, cost, ahead=ahead)


def test_segments_are_aligned_in_the_order_of_their_length_so_that_batches_need_little_padding(
    bundle: Loaded, speech: Audio
) -> None:
    rng = random.Random(0)
    samples = [rng.randrange(1_000, 5_000) for _ in range(3 * stage.LOOK_AHEAD // 2)]
    segments = [Segment(id=i, start=0.0, end=n / SAMPLE_RATE, text="oui") for i, n in enumerate(samples)]
    with contextlib.closing(RecordingWorker()) as worker, contextlib.closing(ModelCache()) as models:
        stage.align(context_of(bundle, worker, models), speech, segments, bundle.language)
    # A long recording is not sorted as a whole, so that its beginning gets its times first.
    windows = [samples[: stage.LOOK_AHEAD], samples[stage.LOOK_AHEAD :]]
    expected = [count for window in windows for count in sorted(window)]
    assert [cost * SAMPLE_RATE for cost in worker.costs] == pytest.approx(expected, abs=1)


def test_models_are_those_of_whisperx() -> None:
    from whisperx.alignment import DEFAULT_ALIGN_MODELS_HF, DEFAULT_ALIGN_MODELS_TORCH, LANGUAGES_WITHOUT_SPACES

    expected = DEFAULT_ALIGN_MODELS_HF | DEFAULT_ALIGN_MODELS_TORCH
    assert {language: model_id(language) for language in expected} == expected
    assert all(stage.has_model(language) for language in expected)
    assert set(LANGUAGES_WITHOUT_SPACES) == stage.CHARACTER_LANGUAGES


def test_a_language_without_a_model_is_refused(bundle: Loaded, contexts: Callable[[Loaded], JobContext]) -> None:
    assert not stage.has_model("sw")
    with pytest.raises(UnknownModel, match="sw"):
        stage.align(contexts(bundle), np.zeros(16_000, np.float32), [], "sw")


def test_a_checkpoint_is_read_by_name_and_unloaded(bundle: Loaded, tmp_path: Path) -> None:
    directory = bundle.root / "align" / "fr"
    (tmp_path / "other.pt").write_bytes(b"another model in the same directory")
    checkpoint = next(directory.iterdir())
    (tmp_path / checkpoint.name).symlink_to(checkpoint)
    source = AlignmentSource("fr", tmp_path)
    assert source.estimated_bytes() == checkpoint.stat().st_size
    model: AlignmentModel = source.load()
    assert model.blank == 0
    assert not model.network.training
    source.unload(model)
    assert all(parameter.is_meta for parameter in model.network.parameters())


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelCorrupt, match=str(tmp_path)):
        AlignmentSource("nl", tmp_path).load()
    with pytest.raises(ModelCorrupt, match=str(tmp_path)):
        AlignmentSource("fr", tmp_path).load()
