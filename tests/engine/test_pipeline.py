"""The engine as its users call it: inputs, options, progress, cancellation, threads, warnings."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from whisper_api import (
    Canceled,
    Engine,
    EngineClosed,
    InvalidAudio,
    InvalidOption,
    ModelUnavailable,
    Progress,
    Transcript,
    TranscriptionOptions,
    UnknownModel,
    render,
)
from whisper_api.engine.audio.decode import decode
from whisper_api.engine.languages import translates
from whisper_api.engine.whisper.model import Row
from whisper_api.formats import FORMATS

pytestmark = pytest.mark.models

RATE = 16_000
Floats = np.ndarray[Any, np.dtype[np.float32]]
QUICK = TranscriptionOptions(language="en", align=False, diarize=False, beam_size=1)


@pytest.fixture(scope="module")
def call(sample_call: Path) -> Floats:
    return decode(sample_call).audio


@pytest.fixture(scope="module")
def short(call: Floats) -> Floats:
    """Eight seconds in which both people speak, of New Jersey and of Chicago."""
    return call[12 * RATE : 20 * RATE]


@pytest.fixture(scope="module")
def offline(models_dir: Path, base_model_dir: Path) -> Iterator[Engine]:
    """An engine that may fetch nothing."""
    with Engine(device="cpu", model="base", models_dir=models_dir, offline=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def transcript(engine: Engine, sample_call: Path, ecapa_path: Path) -> Transcript:
    """The call with all that the engine does, as far as models can be had without an account."""
    return engine.transcribe(sample_call, TranscriptionOptions(language="auto", diarize=True))


def test_the_call_becomes_a_transcript_with_words_and_speakers(transcript: Transcript) -> None:
    assert transcript.language == "en"
    assert transcript.language_probability is not None
    assert transcript.language_probability > 0.9
    assert transcript.duration == pytest.approx(30.0, abs=0.01)
    assert "New Jersey" in transcript.text
    assert "Chicago" in transcript.text
    assert transcript.speakers == ("SPEAKER_00", "SPEAKER_01")
    assert transcript.model == "base"
    assert transcript.model_revision
    assert transcript.diarization_model
    assert set(transcript.timings) == {"decode", "load", "vad", "asr", "align", "diarize"}
    assert all(seconds >= 0 for seconds in transcript.timings.values())


def test_every_word_has_a_place_and_a_speaker(transcript: Transcript) -> None:
    words = transcript.words
    assert len(words) > 50
    assert all(0 <= word.start < word.end <= transcript.duration for word in words)
    assert all(a.end <= b.start for a, b in itertools.pairwise(words))
    assert all(word.speaker in transcript.speakers for word in words)
    for segment in transcript.segments:
        assert segment.words
        assert segment.start <= segment.words[0].start
        assert segment.words[-1].end <= segment.end
        assert {word.speaker for word in segment.words} == {segment.speaker}
        assert "".join(segment.text.split()) == "".join("".join(word.word.split()) for word in segment.words)
    assert [segment.id for segment in transcript.segments] == list(range(len(transcript.segments)))


def test_the_sentences_have_the_right_speakers(transcript: Transcript) -> None:
    def speaker(*said: str) -> str | None:
        (found,) = {s.speaker for s in transcript.segments if all(text in s.text for text in said)}
        return found

    diane = speaker("This is Diane")
    sheila = speaker("And I'm Sheila")
    assert diane != sheila
    assert speaker("I'm in New Jersey now") == diane
    assert speaker("call me a Yankee") == sheila


def test_options_come_back_with_every_default_filled_in(transcript: Transcript) -> None:
    options = transcript.options
    assert options.model == "base"
    assert options.language == "auto"
    assert options.beam_size == 5
    assert (options.vad_onset, options.vad_offset) == (0.5, 0.35)
    assert options.vad_min_silence is not None
    assert options.vad_padding is not None


def test_a_transcript_survives_json(transcript: Transcript) -> None:
    assert msgspec.json.decode(msgspec.json.encode(transcript), type=Transcript) == transcript


def test_every_format_can_be_had(transcript: Transcript) -> None:
    for name in FORMATS:
        # The turns have no text, and the cues have each word by itself.
        text = {"rttm": "SPEAKER_00", "cues": '"Jersey'}.get(name, "New Jersey")
        assert text in render(transcript, name)


def test_word_times_say_where_they_come_from(offline: Engine, short: Floats) -> None:
    plain = offline.transcribe(short, QUICK)
    assert plain.word_times == "none"
    assert plain.words == ()
    timed = offline.transcribe(short, msgspec.structs.replace(QUICK, align=True))
    if timed.word_times == "ctc":
        assert timed.alignment_model
        assert timed.warnings == ()
    else:
        assert timed.word_times == "attention"
        assert timed.alignment_model is None
        assert "cross-attention" in timed.warnings[0]
    assert timed.words
    assert len(timed.segments) > 1  # sentences


def test_a_translation_has_english_words_whatever_language_is_spoken(offline: Engine, short: Floats) -> None:
    options = TranscriptionOptions(language="ja", task="translate", diarize=False)
    translated = offline.transcribe(short, options)
    assert translated.word_times == "attention"
    assert translated.segments
    for segment in translated.segments:
        assert [word.word for word in segment.words] == segment.text.split()
        assert segment.text in render(translated, "srt").splitlines()


def test_all_inputs_give_the_same_text(engine: Engine, short_call: Path) -> None:
    expected = engine.transcribe(str(short_call), QUICK).text
    assert "Chicago" in expected
    content = short_call.read_bytes()
    for source in (short_call, content, io.BytesIO(content), decode(short_call).audio):
        assert engine.transcribe(source, QUICK).text == expected


def test_silence_is_an_empty_transcript_and_no_error(engine: Engine) -> None:
    seen: list[Progress] = []
    transcript = engine.transcribe(np.zeros(3 * RATE, np.float32), TranscriptionOptions(), on_progress=seen.append)
    assert transcript.segments == ()
    assert transcript.text == ""
    assert transcript.speakers == ()
    assert transcript.duration == 3.0
    assert transcript.warnings == ()
    assert seen[-1].fraction == 1.0
    assert render(transcript, "srt") == ""


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"just some words\n" * 50, "text")], ids=["empty", "text"]
)
def test_a_source_that_is_no_audio_is_refused_by_name(engine: Engine, content: bytes, message: str) -> None:
    with pytest.raises(InvalidAudio, match=message):
        engine.transcribe(content, QUICK)


def test_a_language_that_does_not_exist_is_refused(engine: Engine, call: Floats) -> None:
    with pytest.raises(InvalidOption, match="language"):
        engine.transcribe(call, TranscriptionOptions(language="klingon"))


def test_a_model_that_does_not_exist_is_named(engine: Engine, call: Floats) -> None:
    with pytest.raises(UnknownModel, match="base"):
        engine.transcribe(call, msgspec.structs.replace(QUICK, model="bass"))


def test_a_model_that_cannot_be_had_is_an_error_only_when_asked_for(tmp_path: Path, base_model_dir: Path) -> None:
    tone = np.zeros(RATE, np.float32)
    with Engine(device="cpu", model=str(base_model_dir), models_dir=tmp_path, offline=True) as engine:
        with pytest.raises(ModelUnavailable, match="large-v3"):
            engine.transcribe(tone, msgspec.structs.replace(QUICK, model="large-v3"))
        assert engine.transcribe(tone, QUICK).segments == ()


def test_diarization_without_a_model_is_a_warning_unless_asked_for_by_name(
    tmp_path: Path, base_model_dir: Path, short: Floats
) -> None:
    with Engine(device="cpu", model=str(base_model_dir), models_dir=tmp_path, offline=True) as engine:
        piece = short[: 4 * RATE]
        transcript = engine.transcribe(piece, msgspec.structs.replace(QUICK, diarize=None))
        assert transcript.speakers == ()
        assert any("speakers were not told apart" in warning for warning in transcript.warnings)
        with pytest.raises(ModelUnavailable):
            engine.transcribe(piece, msgspec.structs.replace(QUICK, diarize=True))


def test_a_model_that_cannot_translate_is_used_with_a_warning(
    engine: Engine, tiny_en_model_dir: Path, short: Floats
) -> None:
    options = msgspec.structs.replace(QUICK, model="tiny.en", task="translate")
    transcript = engine.transcribe(short, options)
    assert transcript.segments
    assert any("not trained to translate" in warning for warning in transcript.warnings)
    assert translates("large-v3")
    assert not translates("large-v3-turbo")
    assert not translates("distil-large-v3")


def test_progress_rises_to_one_through_the_stages(engine: Engine, short_call: Path) -> None:
    seen: list[Progress] = []
    engine.transcribe(short_call, msgspec.structs.replace(QUICK, align=True), on_progress=seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1.0
    stages = [stage for stage, _ in itertools.groupby(progress.stage for progress in seen)]
    assert stages == ["decode", "load", "vad", "asr", "align", "done"]
    assert str(seen[-1]) == "100% done"


def test_cancelling_stops_within_a_work_item_and_leaves_the_engine_usable(
    engine: Engine, call: Floats, monkeypatch: pytest.MonkeyPatch, decode_operation: type[Any]
) -> None:
    cancel = threading.Event()
    several_windows = np.tile(call, 4)

    def stop_when_recognition_has_begun(progress: Progress) -> None:
        if progress.stage == "asr":
            cancel.set()

    batches: list[int] = []
    run = decode_operation.run

    def counted(self: Any, inputs: Sequence[Row]) -> Any:
        batches.append(len(inputs))
        return run(self, inputs)

    monkeypatch.setattr(decode_operation, "run", counted)
    with pytest.raises(Canceled):
        engine.transcribe(several_windows, QUICK, on_progress=stop_when_recognition_has_begun, cancel=cancel)
    assert len(batches) <= 1
    assert "Chicago" in engine.transcribe(call[12 * RATE : 20 * RATE], QUICK).text


def test_a_job_canceled_before_it_begins_does_nothing(engine: Engine, call: Floats) -> None:
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(Canceled):
        engine.transcribe(call, QUICK, cancel=cancel)


def test_threads_in_different_languages_get_what_each_gets_alone(engine: Engine, call: Floats) -> None:
    jobs = [
        (call[int(start * RATE) : int(end * RATE)], msgspec.structs.replace(QUICK, language=language, task=task))
        for language, start, end, task in (
            ("en", 6.4, 10.4, "transcribe"),
            ("fr", 14.3, 18.3, "transcribe"),
            ("de", 21.6, 25.6, "transcribe"),
            ("auto", 6.4, 14.4, "translate"),
        )
    ]
    alone = [engine.transcribe(audio, options) for audio, options in jobs]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(lambda job: engine.transcribe(*job), jobs))
    assert [transcript.text for transcript in together] == [transcript.text for transcript in alone]
    assert [transcript.language for transcript in together] == ["en", "fr", "de", "en"]
    assert len({transcript.text for transcript in together}) == len(jobs)


def test_a_closed_engine_says_so(models_dir: Path, base_model_dir: Path, call: Floats) -> None:
    engine = Engine(device="cpu", model="base", models_dir=models_dir)
    engine.transcribe(call[:RATE], QUICK)
    engine.close()
    engine.close()
    assert engine.models.resident() == []
    with pytest.raises(EngineClosed):
        engine.transcribe(call, QUICK)


def test_models_are_freed_after_each_job_when_told_so(models_dir: Path, base_model_dir: Path, call: Floats) -> None:
    with Engine(device="cpu", model="base", models_dir=models_dir, keep_alive=0) as engine:
        for _ in range(2):
            assert "Hello" in engine.transcribe(call[6 * RATE : 10 * RATE], QUICK).text
            assert engine.models.resident() == []


def test_preloading_loads_what_the_first_job_needs(offline: Engine, ecapa_path: Path) -> None:
    offline.models.evict_idle()
    offline.preload(QUICK)
    (resident,) = offline.models.resident()
    assert resident.leases == 0
    assert "base" in str(resident.source)
    offline.preload_rest(msgspec.structs.replace(QUICK, diarize=True))
    # Whisper, two models of speaker segmentation, and speaker embedding.
    assert len(offline.models.resident()) == 4


def test_transcription_alone_never_loads_torch(models_dir: Path, base_model_dir: Path, short_call: Path) -> None:
    code = (
        "import sys\n"
        "from whisper_api import Engine, TranscriptionOptions, render\n"
        f"with Engine(device='cpu', model='base', models_dir={str(models_dir)!r}) as engine:\n"
        "    options = TranscriptionOptions(language='auto', align=False, diarize=False)\n"
        f"    text = render(engine.transcribe({str(short_call)!r}, options), 'txt')\n"
        "assert 'Chicago' in text\n"
        "loaded = {'torch', 'transformers', 'pandas', 'starlette', 'whisperx', 'pyannote'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
