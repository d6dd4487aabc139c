"""Recognition with the real model: text, language, prompts, fallback, caps, batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whisper_api import Engine, InvalidOption, TranscriptionOptions
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.context import JobContext
from whisper_api.engine.invented import InventedText, Voice
from whisper_api.engine.silero import SILERO_FRAME
from whisper_api.engine.vad import Span, SpeechFrames
from whisper_api.engine.whisper.model import DecodedTokens, DecodeSettings, DetectionInput, Row, Whisper, token_cap
from whisper_api.engine.whisper.prompt import prompt_tokens
from whisper_api.engine.whisper.recognizer import Recognizer
from whisper_api.engine.whisper.window import compression_ratio
from whisper_api.engine.worker.worker import GpuWorker
from whisper_api.schema import Segment

pytestmark = pytest.mark.models

RATE = 16_000
Floats = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture(scope="module")
def call(sample_call: Path) -> Floats:
    return decode(sample_call).audio


@pytest.fixture
def whisper(engine: Engine, base_model_dir: Path) -> Iterator[Whisper]:
    with engine.models.lease(engine.whisper.source(engine.store.ensure("base"))) as whisper:
        yield whisper


@pytest.fixture(scope="module")
def worker(engine: Engine) -> Iterator[GpuWorker]:
    """As many lanes as the engine has, with its models."""
    worker = GpuWorker(lanes=engine.whisper.lanes, scope=engine.device.scope)
    yield worker
    worker.close()


def context(engine: Engine, worker: GpuWorker, **options: Any) -> JobContext:
    return JobContext(
        options=engine.resolve(TranscriptionOptions(**options)),
        device=engine.device,
        worker=worker,
        models=engine.models,
        store=engine.store,
    )


def recognize(
    engine: Engine,
    worker: GpuWorker,
    whisper: Whisper,
    audio: Floats,
    spans: Sequence[Span],
    language: str = "en",
    *,
    words: bool = False,
    **options: Any,
) -> list[Segment]:
    recognizer = Recognizer(
        context(engine, worker, **options), whisper, "base", audio, spans, engine.whisper.batching()
    )
    return list(recognizer.transcribe(language, word_times=words))


FIRST = Span(int(6.4 * RATE), int(14.3 * RATE))
SECOND = Span(int(14.3 * RATE), int(21.6 * RATE))


def test_the_call_is_understood(engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats) -> None:
    first, second = recognize(engine, worker, whisper, call, [FIRST, SECOND])
    assert "I didn't know you were there" in first.text
    assert "New Jersey" in first.text
    assert "Chicago" in second.text
    assert (first.start, first.end) == (6.4, 14.3)
    assert first.avg_logprob is not None
    assert -1 < first.avg_logprob < 0
    assert first.flags == ()


def test_words_are_the_text_and_their_times_rise(
    engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats
) -> None:
    for segment in recognize(engine, worker, whisper, call, [FIRST, SECOND], words=True):
        assert " ".join(word.word for word in segment.words) == segment.text
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert segment.start <= times[0]
        assert times[-1] <= segment.end


def test_only_windows_with_numbers_have_words_when_no_other_times_are_asked_for(
    engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(whisper.tokenizer("en").encode(" 5,000% $")) & whisper.unspelled_tokens
    assert not set(whisper.tokenizer("en").encode(" Well, it's a day. été")) & whisper.unspelled_tokens
    # The call has no numbers, so a name stands for one.
    monkeypatch.setitem(vars(whisper), "unspelled_tokens", frozenset(whisper.tokenizer("en").encode(" Texas")))
    recognizer = Recognizer(context(engine, worker), whisper, "base", call, [FIRST, SECOND], engine.whisper.batching())
    first, second = recognizer.transcribe("en", word_times=False, number_times=True)
    assert "Texas" in second.text
    assert not first.words
    (timed,) = recognize(engine, worker, whisper, call, [SECOND], words=True)
    assert (second.words, second.text) == (timed.words, timed.text)


def test_a_batch_gives_what_each_window_gives_alone(
    engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats
) -> None:
    spans = [FIRST, SECOND, Span(int(21.6 * RATE), len(call)), FIRST]
    together = [segment.text for segment in recognize(engine, worker, whisper, call, spans)]
    alone = [recognize(engine, worker, whisper, call, [span])[0].text for span in spans]
    assert together == alone


def test_the_language_is_judged_and_its_encoding_used_again(
    engine: Engine,
    worker: GpuWorker,
    whisper: Whisper,
    call: Floats,
    monkeypatch: pytest.MonkeyPatch,
    decode_operation: type[Any],
) -> None:
    encoded: list[bool] = []
    run = decode_operation.run

    def watched(self: Any, inputs: Sequence[Row]) -> Any:
        encoded.append(self.settings.encoded)
        return run(self, inputs)

    monkeypatch.setattr(decode_operation, "run", watched)
    recognizer = Recognizer(context(engine, worker), whisper, "base", call, [FIRST, SECOND], engine.whisper.batching())
    language, probability = recognizer.resolve_language("auto")
    assert language == "en"
    assert probability is not None
    assert probability > 0.9
    texts = [segment.text for segment in recognizer.transcribe("en", word_times=False)]
    assert all(encoded)
    assert texts == [segment.text for segment in recognize(engine, worker, whisper, call, [FIRST, SECOND])]


def test_a_wrong_language_is_used_as_asked_and_warned_about(
    engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats
) -> None:
    ctx = context(engine, worker, language="de")
    recognizer = Recognizer(ctx, whisper, "base", call, [FIRST], engine.whisper.batching())
    assert recognizer.resolve_language("de") == ("de", None)
    list(recognizer.transcribe("de", word_times=False))
    (warning,) = ctx.warnings
    assert warning.startswith("the audio sounds like 'en' (probability 0.9")
    assert "'de'" in warning


def test_a_model_without_cantonese_writes_chinese_and_says_so(
    engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats
) -> None:
    ctx = context(engine, worker)
    recognizer = Recognizer(ctx, whisper, "base", call, [], engine.whisper.batching())
    assert recognizer.resolve_language("yue") == ("zh", None)
    (warning,) = ctx.warnings
    assert "'yue'" in warning
    assert "'zh'" in warning


def test_a_language_that_the_model_knows_no_relative_of_is_refused(
    engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(whisper.__dict__, "languages", frozenset({"en", "fr"}))
    recognizer = Recognizer(context(engine, worker), whisper, "base", call, [FIRST], engine.whisper.batching())
    with pytest.raises(InvalidOption, match="'ja'; it knows en, fr"):
        recognizer.resolve_language("ja")


def test_an_english_only_model_says_so(
    engine: Engine, worker: GpuWorker, tiny_en_model_dir: Path, call: Floats
) -> None:
    with engine.models.lease(engine.whisper.source(engine.store.ensure("tiny.en"))) as tiny:
        ctx = context(engine, worker)
        recognizer = Recognizer(ctx, tiny, "tiny.en", call, [FIRST], engine.whisper.batching())
        assert recognizer.resolve_language("fr") == ("en", None)
        assert "English only" in ctx.warnings[0]
        assert recognizer.resolve_language("multi") == ("en", None)
        assert ctx.warnings[1] == "the model knows English only: it cannot tell languages apart"
        (segment,) = recognizer.transcribe("en", word_times=True)
    assert "New Jersey" in segment.text
    assert segment.words


def test_translation_gives_english(engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats) -> None:
    (segment,) = recognize(engine, worker, whisper, call, [FIRST], task="translate")
    assert "New Jersey" in segment.text


def test_a_prompt_and_hotwords_change_the_spelling(
    engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats
) -> None:
    span = Span(int(14.4 * RATE), int(17.9 * RATE))
    (plain,) = recognize(engine, worker, whisper, call, [span])
    (prompted,) = recognize(
        engine, worker, whisper, call, [span], hotwords="Sheyla", prompt="A call between Diane and Sheyla."
    )
    assert "Sheyla" not in plain.text
    assert "Sheyla" in prompted.text


@pytest.mark.parametrize(("prompt", "hotwords"), [("word " * 2_000, "name " * 2_000), ("word " * 2_000, None)])
def test_a_prompt_longer_than_the_context_is_cut(whisper: Whisper, prompt: str, hotwords: str | None) -> None:
    tokenizer = whisper.tokenizer("en")
    tokens = prompt_tokens(tokenizer, prompt, hotwords)
    assert len(tokens) <= 224
    assert tokens[0] == tokenizer.sot_prev
    assert tokens[-4:] == (*tokenizer.sot_sequence, tokenizer.no_timestamps)
    assert "word" in tokenizer.decode(list(tokens))
    assert ("name" in tokenizer.decode(list(tokens))) is bool(hotwords)


def test_numerals_can_be_suppressed(whisper: Whisper) -> None:
    tokenizer = whisper.tokenizer("en")
    tokens = set(whisper.numeral_tokens)
    assert set(tokenizer.encode("1")) <= tokens
    assert set(tokenizer.encode("50%")) & tokens
    assert set(tokenizer.encode(" $")) <= tokens
    assert not set(tokenizer.encode(" hello world")) & tokens
    # WhisperX's rule for these tokens, on every hundredth of the vocabulary.
    for token in range(0, tokenizer.eot, 100):
        if any(sign in "0123456789%$£" for sign in tokenizer.decode([token])):
            assert token in tokens


def test_fallback_goes_from_the_beam_to_rising_temperatures_and_keeps_the_best(
    engine: Engine,
    worker: GpuWorker,
    whisper: Whisper,
    call: Floats,
    monkeypatch: pytest.MonkeyPatch,
    decode_operation: type[Any],
) -> None:
    asked: list[tuple[int, int, float]] = []
    good = whisper.tokenizer("en").encode(" hello there my friend")
    loop = whisper.tokenizer("en").encode(" no" * 60)

    def scripted(self: Any, inputs: Sequence[Row]) -> list[DecodedTokens]:
        asked.append((self.settings.frames, self.settings.beam_size, self.settings.temperature))
        if self.settings.temperature < 0.4:
            return [DecodedTokens(tuple(loop), -0.1, 0.1, False, None) for _ in inputs]
        return [DecodedTokens(tuple(good), -0.5, 0.1, False, None) for _ in inputs]

    monkeypatch.setattr(decode_operation, "run", scripted)
    (segment,) = recognize(engine, worker, whisper, call, [FIRST], beam_size=1)
    first = engine.whisper.batching().padded_frames(FIRST.seconds)
    assert asked == [(first, 1, 0.0), (3000, 5, 0.0), (3000, 1, 0.2), (3000, 1, 0.4)]
    assert segment.text == "hello there my friend"
    assert segment.temperature == 0.4
    assert segment.flags == ()


def test_text_that_stays_bad_is_kept_with_flags_and_silence_is_dropped(
    engine: Engine,
    worker: GpuWorker,
    whisper: Whisper,
    call: Floats,
    monkeypatch: pytest.MonkeyPatch,
    decode_operation: type[Any],
) -> None:
    loop = tuple(whisper.tokenizer("en").encode(" no" * 60))
    asked: list[float] = []

    def looping(self: Any, inputs: Sequence[Row]) -> list[DecodedTokens]:
        asked.append(self.settings.temperature)
        return [DecodedTokens(loop, -0.1 - self.settings.temperature, 0.1, False, None) for _ in inputs]

    monkeypatch.setattr(decode_operation, "run", looping)
    ctx = context(engine, worker)
    recognizer = Recognizer(ctx, whisper, "base", call, [FIRST], engine.whisper.batching())
    (segment,) = recognizer.transcribe("en", word_times=False)
    assert asked == [0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ctx.warnings == ["1 of 1 windows stay doubtful after every attempt; their segments have flags"]
    assert segment.flags == ("repetitive",)
    assert segment.temperature == 0.0

    def silent(self: Any, inputs: Sequence[Row]) -> list[DecodedTokens]:
        return [DecodedTokens(loop, -1.5, 0.9, False, None) for _ in inputs]

    monkeypatch.setattr(decode_operation, "run", silent)
    assert recognize(engine, worker, whisper, call, [FIRST, SECOND]) == []


def test_text_that_fills_the_cap_is_not_lost_but_split(
    engine: Engine,
    worker: GpuWorker,
    whisper: Whisper,
    call: Floats,
    monkeypatch: pytest.MonkeyPatch,
    decode_operation: type[Any],
) -> None:
    words = tuple(whisper.tokenizer("en").encode(" a quick brown fox jumps over the lazy dog while birds sing"))
    lengths: list[int] = []

    def dense(self: Any, inputs: Sequence[Row]) -> list[DecodedTokens]:
        lengths.extend(row.speech_frames for row in inputs)
        return [DecodedTokens(words, -0.2, 0.1, row.speech_frames > 800, None) for row in inputs]

    monkeypatch.setattr(decode_operation, "run", dense)
    segments = recognize(engine, worker, whisper, call, [Span(0, 15 * RATE)])
    assert len(segments) >= 2
    assert [segment.id for segment in segments] == list(range(len(segments)))
    assert segments[0].start == 0.0
    assert segments[-1].end == 15.0
    assert all(a.end == b.start for a, b in itertools.pairwise(segments))
    assert all(segment.flags == () for segment in segments)


def test_speech_without_text_is_decoded_again_in_pieces(
    engine: Engine,
    worker: GpuWorker,
    whisper: Whisper,
    call: Floats,
    monkeypatch: pytest.MonkeyPatch,
    decode_operation: type[Any],
) -> None:
    tokenizer = whisper.tokenizer("en")
    word, sentence = (
        tuple(tokenizer.encode(text)) for text in (" Hello", " a quick brown fox jumps over the lazy dog")
    )
    lengths: list[int] = []

    def leaves_out(self: Any, inputs: Sequence[Row]) -> list[DecodedTokens]:
        lengths.extend(row.speech_frames for row in inputs)
        return [DecodedTokens(word if row.speech_frames > 800 else sentence, -0.2, 0.1, False, None) for row in inputs]

    monkeypatch.setattr(decode_operation, "run", leaves_out)
    span = Span(0, 19 * RATE)
    pieces = list(
        Recognizer(
            context(engine, worker), whisper, "base", call, [span], engine.whisper.batching(), [span]
        ).transcribe("en", word_times=False)
    )
    assert len(pieces) >= 4
    assert (pieces[0].start, pieces[-1].end) == (0.0, 19.0)
    assert all(piece.text == "a quick brown fox jumps over the lazy dog" for piece in pieces)
    assert all(piece.flags == () for piece in pieces)
    # Three seconds of speech in a window of silence are no reason.
    lengths.clear()
    short = Recognizer(
        context(engine, worker), whisper, "base", call, [span], engine.whisper.batching(), [Span(0, 3 * RATE)]
    )
    assert [segment.text for segment in short.transcribe("en", word_times=False)] == ["Hello"]
    assert lengths == [1900]


def test_words_of_a_loop_are_text_and_no_failure_of_the_decoder(
    engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats
) -> None:
    loop = np.tile(call[18 * RATE : round(18.7 * RATE)], 14)
    window = Span(0, len(loop))
    recognizer = Recognizer(
        context(engine, worker), whisper, "base", loop, [window], engine.whisper.batching(), speech=[window]
    )
    found = list(recognizer.transcribe("en", word_times=False))
    # Three periods are a piece. In the last, which is shorter, the words may not be heard.
    pieces = found[:4]
    assert [piece.start for piece in pieces] == pytest.approx([0.0, 2.1, 4.2, 6.3])
    assert len({piece.text for piece in pieces}) == 1
    assert all(piece.flags == () for piece in found)
    # Where nobody is known to speak, the same sound is judged as before.
    silent = Recognizer(context(engine, worker), whisper, "base", loop, [window], engine.whisper.batching())
    assert len(list(silent.transcribe("en", word_times=False))) <= 1


def test_doubtful_text_of_windows_without_a_voice_is_left_out(
    engine: Engine,
    worker: GpuWorker,
    whisper: Whisper,
    call: Floats,
    monkeypatch: pytest.MonkeyPatch,
    decode_operation: type[Any],
) -> None:
    spans = [FIRST, SECOND]
    silent = Voice(call, SpeechFrames(np.zeros(len(call) // SILERO_FRAME + 1, np.float32), SILERO_FRAME))
    sung = Recognizer(
        context(engine, worker),
        whisper,
        "base",
        call,
        spans,
        engine.whisper.batching(),
        (),
        InventedText("drop", silent),
    )
    assert len(list(sung.transcribe("en", word_times=False))) == 2
    loop = tuple(whisper.tokenizer("en").encode(" no" * 60))
    monkeypatch.setattr(
        decode_operation, "run", lambda _, inputs: [DecodedTokens(loop, -0.1, 0.1, False, None) for _ in inputs]
    )
    assert list(sung.transcribe("en", word_times=False)) == []


def test_a_window_that_stays_without_its_text_is_flagged_or_named(
    engine: Engine,
    worker: GpuWorker,
    whisper: Whisper,
    call: Floats,
    monkeypatch: pytest.MonkeyPatch,
    decode_operation: type[Any],
) -> None:
    word = tuple(whisper.tokenizer("en").encode(" Hello"))
    no_speech = 0.1

    def leaves_out(self: Any, inputs: Sequence[Row]) -> list[DecodedTokens]:
        return [DecodedTokens(word, -0.2 if no_speech < 0.5 else -1.5, no_speech, False, None) for _ in inputs]

    monkeypatch.setattr(decode_operation, "run", leaves_out)
    span = Span(0, 5 * RATE)
    ctx = context(engine, worker)
    (segment,) = Recognizer(ctx, whisper, "base", call, [span], engine.whisper.batching(), [span]).transcribe(
        "en", word_times=False
    )
    assert segment.flags == ("low_confidence",)
    assert ctx.warnings == ["1 of 1 windows stay doubtful after every attempt; their segments have flags"]
    no_speech = 0.9
    ctx = context(engine, worker)
    silent = Recognizer(ctx, whisper, "base", call, [span], engine.whisper.batching(), [span])
    assert list(silent.transcribe("en", word_times=False)) == []
    assert ctx.warnings == ["5.0 s of what sounds like speech gave no text"]


def test_the_token_cap_holds_for_any_prompt_length(
    engine: Engine, worker: GpuWorker, whisper: Whisper, call: Floats
) -> None:
    ctx = context(engine, worker)
    tokenizer = whisper.tokenizer("en")
    for extra in (0, 150):
        prompt = (*([tokenizer.sot_prev] * bool(extra)), *([11] * extra), *tokenizer.sot_sequence)
        prompt = (*prompt, tokenizer.no_timestamps)
        # Without a margin, and with everything but digits suppressed, the decoder never ends by itself.
        settings = DecodeSettings(
            200, prompt_length=len(prompt), beam_size=1, temperature=0.0, suppress=(tokenizer.eot,)
        )
        row = Row(call[7 * RATE : 9 * RATE], prompt, 200)
        (decoded,) = ctx.run([(whisper.decode(settings, 1, 60.0), row, 2.0)])
        assert decoded.capped
        assert len(decoded.tokens) <= token_cap(200) == 60


def test_encoding_gives_a_probability_for_each_language(whisper: Whisper, call: Floats) -> None:
    (found,) = whisper.encode_and_detect(1300, 1, 60.0).run([DetectionInput(call[FIRST.start : FIRST.end])])
    encoded, languages = found.encoded, found.languages
    assert encoded.shape == (650, 512)
    assert set(languages) == whisper.languages
    assert sum(languages.values()) == pytest.approx(1.0, abs=1e-3)


def test_compression_ratio_tells_repetition() -> None:
    assert compression_ratio("") == 0
    assert compression_ratio("a quick brown fox jumps over the lazy dog") < 1.5
    assert compression_ratio("okay " * 50) > 2.4
