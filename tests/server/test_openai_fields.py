"""Fields of OpenAI's clients as options, and texts and speakers in the responses."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from server.inside import inside, on_a_loop
from whisper_api.errors import InvalidOption, UnknownModel
from whisper_api.job_values import JobSegmentEvent, ResultSegment
from whisper_api.schema import Segment, TokenLogprob, Transcript
from whisper_api.server.openai.answers import diarized_segments, rendered_body, speaker_names, verbose_segments
from whisper_api.server.openai.openai_request import OpenAIRequest, chunking_options, read_fields
from whisper_api.server.openai.streaming import Deltas
from whisper_api.testing import FakeExecutor, fake_transcript
from whisper_api.word_spacing import joined


@on_a_loop
async def test_fields_become_options(tmp_path: Path) -> None:
    async with inside(tmp_path, language="fr", model="base") as app:

        def read(*fields: tuple[str, str], translate: bool = False) -> OpenAIRequest:
            return read_fields(fields, app.state, "translate" if translate else "transcribe")

        # Without the field the language is detected, whatever the default of the server is.
        options = read().options
        assert (options.language, options.model, options.align, options.diarize) == ("auto", "base", False, False)
        assert options == read(("language", " "), ("model", "")).options
        assert read(("language", "en-US")).options.language == "en"
        assert read(("language", "German")).options.language == "de"
        assert read(("languages[]", "en")).options.language == "en"
        assert read(("languages[]", "en"), ("languages[]", "fr")).options.language == "auto"
        assert read(("languages[]", "en"), ("language", "fr")).options.language == "fr"
        assert (
            read(("hotwords", "Ada"), ("keywords[]", "Bell"), ("keywords[]", "Cox")).options.hotwords
            == "Ada, Bell, Cox"
        )
        assert read(("prompt", "Ann:")).options.prompt == "Ann:"
        assert read(("temperature", "0.4")).options.temperature == 0.4
        assert read(("hallucinations", "flag")).options.hallucinations == "flag"
        assert read(("hallucinations", "keep"), translate=True).options.hallucinations == "keep"
        with pytest.raises(InvalidOption, match="hallucinations"):
            read(("hallucinations", "perhaps"))
        for name, format, align, diarize in (
            ("json", "json", False, False),
            ("text", "txt", False, False),
            ("srt", "srt", True, False),
            ("vtt", "vtt", True, False),
            ("verbose_json", "json", True, False),
            ("diarized_json", "json", True, True),
        ):
            openai_request = read(("response_format", name))
            assert (openai_request.output_format, openai_request.options.align, openai_request.options.diarize) == (
                format,
                align,
                diarize,
            )
        verbose = ("response_format", "verbose_json")
        for first, second in (("", ""), ("[]", "[]"), ("[0]", "[1]")):
            granular = read(
                verbose, (f"timestamp_granularities{first}", "word"), (f"timestamp_granularities{second}", "segment")
            )
            assert granular.granularities == {"word", "segment"}
            assert granular.warnings == ()
            assert read((f"include{first}", "logprobs")).options.logprobs
        for together in ("word,segment", "word, segment", '["word", "segment"]'):
            granular = read(verbose, ("timestamp_granularities", together))
            assert granular.granularities == {"word", "segment"}
            assert granular.warnings == ()
        assert read(("chunking_strategy", "auto"), ("languages[0]", "de")).options.language == "de"
        translation = read(("language", "de"), ("stream", "true"), translate=True)
        assert (translation.options.task, translation.options.language, translation.stream) == (
            "translate",
            "auto",
            False,
        )
        assert translation.warnings == (
            "language was ignored: a translation is in English, and the language that is spoken is detected",
            "stream was ignored: a translation is not streamed",
        )
        assert read(("language", ""), ("stream", "false"), translate=True).warnings == ()
        assert read(("user", "1"), ("model", "base"), ("model", "whisper-1")).warnings == (
            "unknown fields were ignored: 'user'",
            "of fields that were given more than once, the last counts: 'model'",
        )


@on_a_loop
async def test_invalid_fields_are_refused_by_name(tmp_path: Path) -> None:
    async with inside(tmp_path) as app:
        for field, *others in (
            ("language", ("language", "klingon")),
            ("language", ("languages[]", "klingon")),
            ("response_format", ("response_format", "xml")),
            ("temperature", ("temperature", "1.5")),
            ("stream", ("stream", "perhaps")),
            ("timestamp_granularities", ("response_format", "verbose_json"), ("timestamp_granularities", "letter")),
            ("include", ("include[]", "item"), ("response_format", "json")),
            ("known_speaker_names", ("known_speaker_names[]", "Ann")),
            ("prompt", ("prompt", "a\0b")),
            ("hotwords", ("keywords[]", "x" * 10_001)),
            ("chunking_strategy", ("chunking_strategy", "never")),
        ):
            with pytest.raises(InvalidOption) as caught:
                read_fields(others, app.state, "transcribe")
            assert caught.value.field == field
        with pytest.raises(InvalidOption):
            read_fields([("response_format", "diarized_json")], app.state, "translate")


@on_a_loop
async def test_fields_without_effect_are_warnings(tmp_path: Path) -> None:
    """OpenAI's whisper-1 does the same: it ignores ``stream`` and sends the whole result."""
    async with inside(tmp_path) as app:

        def read(*fields: tuple[str, str]) -> OpenAIRequest:
            return read_fields(fields, app.state, "transcribe")

        for name in ("srt", "vtt", "verbose_json"):
            openai_request = read(("stream", "true"), ("response_format", name))
            assert not openai_request.stream
            assert [warning.partition(":")[0] for warning in openai_request.warnings] == ["stream was ignored"]
        for name in ("json", "text", "diarized_json"):
            openai_request = read(("stream", "true"), ("response_format", name))
            assert (openai_request.stream, openai_request.warnings) == (True, ())
        for name in ("text", "srt", "vtt", "verbose_json", "diarized_json"):
            openai_request = read(("include[]", "logprobs"), ("response_format", name))
            assert not openai_request.options.logprobs
            assert [warning.partition(":")[0] for warning in openai_request.warnings] == ["include was ignored"]
        for name in ("json", "text", "srt", "vtt", "diarized_json"):
            openai_request = read(("timestamp_granularities[]", "word"), ("response_format", name))
            assert [warning.partition(":")[0] for warning in openai_request.warnings] == [
                "timestamp_granularities was ignored"
            ]
            assert read(("timestamp_granularities[]", "segment"), ("response_format", name)).warnings == ()


@on_a_loop
async def test_the_diarization_model_asks_for_diarization(tmp_path: Path) -> None:
    async with inside(tmp_path, model="base") as app:

        def read(*fields: tuple[str, str], translate: bool = False) -> OpenAIRequest:
            return read_fields(fields, app.state, "translate" if translate else "transcribe")

        for name in ("gpt-4o-transcribe-diarize", "openai/gpt-4o-transcribe-diarize", "GPT-4o-transcribe-diarize"):
            openai_request = read(("model", name))
            assert (openai_request.response_format, openai_request.options.diarize, openai_request.options.model) == (
                "diarized_json",
                True,
                "base",
            )
        asked = read(("model", "gpt-4o-transcribe-diarize"), ("response_format", "json"))
        assert (asked.response_format, asked.options.diarize) == ("json", False)
        named = read(
            ("model", "gpt-4o-transcribe-diarize"), ("response_format", "text"), ("known_speaker_names[]", "Ann")
        )
        assert named.known_speakers == ()
        assert [warning.partition(":")[0] for warning in named.warnings] == ["known_speaker_names were ignored"]
        assert read(("model", "gpt-4o-transcribe-diarize"), translate=True).response_format == "json"
        assert read(("model", "gpt-4o-transcribe")).response_format == "json"


@pytest.mark.parametrize(
    ("configured", "asked", "model"),
    [
        ("auto", None, None),
        ("auto", "whisper-1", None),
        ("auto", "auto", None),
        ("auto", "fake", None),
        ("auto", "small", "small"),
        ("auto", "turbo", "large-v3-turbo"),
        ("large-v3", "large", "large-v3"),
        ("large-v3", "whisper-1", "large-v3"),
        ("organisation/own", "organisation/own", "organisation/own"),
        ("auto", "gpt-4o-transcribe", None),
        ("base", "gpt-4o-mini-transcribe-2025-12-15", "base"),
        ("large-v3", "openai/whisper-1", "large-v3"),
        ("large-v3", "Systran/faster-whisper-base", "base"),
        ("large-v3", "openai/whisper-base", "base"),
        ("large-v3", "whisper-large-v3", "large-v3"),
    ],
)
def test_names_of_models(tmp_path: Path, configured: str, asked: str | None, model: str | None) -> None:
    class Configured(FakeExecutor):
        def model_name(self, options: object) -> str:
            return "fake" if configured == "auto" else configured

    @on_a_loop
    async def check() -> None:
        async with inside(tmp_path, Configured(), model=configured) as app:
            fields = [] if asked is None else [("model", asked)]
            assert read_fields(fields, app.state, "transcribe").options.model == model
            for unknown in ("gpt-4o", "ecapa", "organisation/other", "../base", "Base"):
                with pytest.raises(UnknownModel):
                    read_fields([("model", unknown)], app.state, "transcribe")

    check()


@pytest.mark.parametrize(
    ("whole", "parts", "options"),
    [
        (None, {}, {}),
        ("auto", {}, {}),
        ('{"type": "server_vad"}', {}, {}),
        (
            '{"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 250, "prefix_padding_ms": 100}',
            {},
            {"vad_onset": 0.4, "vad_min_silence": 0.25, "vad_padding": 0.1},
        ),
        (None, {"type": "server_vad", "threshold": "1"}, {"vad_onset": 0.99}),
        (None, {"type": "server_vad", "silence_duration_ms": "200", "new": "1"}, {"vad_min_silence": 0.2}),
    ],
)
def test_chunking_strategies(whole: str | None, parts: dict[str, str], options: dict[str, float]) -> None:
    assert chunking_options(whole, parts) == options


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("[]", {}),
        ('{"type": "other"}', {}),
        ('{"type": "server_vad", "threshold": 2}', {}),
        pytest.param('{"type": "server_vad", "new": ' + "[" * 100_000, {}, id="nested too deep"),
        (None, {"threshold": "0.5"}),
        (None, {"type": "server_vad", "prefix_padding_ms": "-1"}),
    ],
)
def test_invalid_chunking_strategies_are_refused(whole: str | None, parts: dict[str, str]) -> None:
    with pytest.raises(InvalidOption) as caught:
        chunking_options(whole, parts)
    assert caught.value.field.startswith("chunking_strategy")


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (["One.", " two ", "", "three."], "One. two three."),
        (["你好。", "再见。"], "你好。再见。"),
        (["今日は", "Tokyo", "です"], "今日はTokyoです"),
        (["안녕.", "잘 가."], "안녕. 잘 가."),
        ([], ""),
    ],
)
def test_texts_are_put_together(texts: list[str], whole: str) -> None:
    assert joined(texts) == whole


def test_speakers_get_letters_that_are_not_the_name_of_a_known_speaker() -> None:
    labels = ("SPEAKER_00", "Ann", "SPEAKER_02", "SPEAKER_27")
    assert speaker_names(labels) == {"SPEAKER_00": "A", "SPEAKER_02": "C", "SPEAKER_27": "AB"}
    assert speaker_names(("SPEAKER_00", "A", "SPEAKER_02")) == {"SPEAKER_00": "B", "SPEAKER_02": "D"}
    assert speaker_names(()) == {}
    # The label is a correction by a person, and not the ten-millionth speaker.
    assert speaker_names(("SPEAKER_00", "SPEAKER_9999999")) == {"SPEAKER_00": "A"}


def test_the_response_has_defaults_for_values_that_the_transcript_lacks() -> None:
    bare = fake_transcript("Hello.")
    verbose = msgspec.json.decode(
        rendered_body(bare, OpenAIRequest(options=bare.options, response_format="verbose_json")).content
    )
    assert verbose["segments"] == [
        {
            "id": 0,
            "seek": 0,
            "start": 0.0,
            "end": 10.0,
            "text": " Hello.",
            "tokens": [],
            "temperature": 0.0,
            "avg_logprob": 0.0,
            "compression_ratio": 0.0,
            "no_speech_prob": 0.0,
        }
    ]
    assert (verbose["language"], verbose["duration"], verbose["usage"]) == (
        "english",
        10.0,
        {"type": "duration", "seconds": 10},
    )
    assert [segment.speaker for segment in diarized_segments(bare)] == ["unknown"]
    doubtful = msgspec.structs.replace(bare.segments[0], flags=("hallucination",))
    (segment,) = verbose_segments([doubtful])
    assert msgspec.to_builtins(segment)["flags"] == ("hallucination",)
    silence = msgspec.structs.replace(bare, segments=(), duration=1.2)
    assert msgspec.json.decode(rendered_body(silence, OpenAIRequest(options=bare.options)).content) == {
        "text": "",
        "languages": [],
        "usage": {"type": "duration", "seconds": 2},
    }


def test_logprobs_are_those_of_all_segments_in_order() -> None:
    tokens = tuple(TokenLogprob(token=text, bytes=tuple(text.encode()), logprob=-0.5) for text in (" a", " b"))
    bare = fake_transcript("a")
    segments = tuple(
        Segment(id=number, start=number, end=number + 1, text=token.token, logprobs=(token,))
        for number, token in enumerate(tokens)
    )
    transcript: Transcript = msgspec.structs.replace(bare, segments=segments)
    options = msgspec.structs.replace(bare.options, logprobs=True)
    answer = msgspec.json.decode(rendered_body(transcript, OpenAIRequest(options=options)).content)
    assert answer["text"] == "a b"
    assert answer["logprobs"] == [
        {"token": " a", "bytes": [32, 97], "logprob": -0.5},
        {"token": " b", "bytes": [32, 98], "logprob": -0.5},
    ]


def test_deltas_come_in_order_and_have_each_partial_segment_once() -> None:
    deltas = Deltas()

    def add(index: int, *texts: str, aligned: bool = False) -> list[str]:
        segments = tuple(ResultSegment(id=n, start=0.0, end=1.0, text=text) for n, text in enumerate(texts))
        event = JobSegmentEvent(job_id="", index=index, aligned=aligned, segments=segments)
        return [delta.delta for delta in deltas.add(event)]

    assert add(0, " One two.", "Three.") == ["One two. Three."]
    assert add(0, "One two.", "Three", aligned=True) == []
    assert add(2, "six.") == []
    assert add(1, "four") == [" four", " six."]
    # A job that was put back starts from the beginning.
    assert add(0, "One two.") == []
    assert [delta.delta for delta in deltas.end("One two. Three. four six. Seven.")] == [" Seven."]
    assert list(deltas.end(deltas.text)) == []
    assert list(deltas.end("Something else.")) == []
