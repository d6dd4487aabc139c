"""The fields of a form: each with good, empty and bad values, and that nothing else comes of any text."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from whisper_api.config import Config
from whisper_api.errors import InvalidOption
from whisper_api.formats import FORMATS
from whisper_api.options import TranscriptionOptions
from whisper_api.server.responses.problems import Problem, problem_of
from whisper_api.server.uploads.forms import UploadForm, read_form

CONFIG = Config()
FIELDS = (
    *(
        "language",
        "model",
        "diarize",
        "prompt",
        "hf_token",
        "output_format",
        "response_format",
        "sync",
        "task",
        "align",
    ),
    *("num_speakers", "min_speakers", "max_speakers", "hotwords", "temperature", "beam_size", "vad_onset"),
    *("max_line_width", "max_line_count", "highlight_words", "karaoke", "subtitle_preset", "speakers"),
    *("min_duration", "max_duration", "min_gap", "max_characters_per_second"),
    *("vad_offset", "keep_result", "device", "device_index", "metadata", "url"),
)
TRUE = ("true", "True", "TRUE", "1", "yes", "on", " true ")
FALSE = ("false", "False", "0", "no", "No", "off", "OFF")


def form(*fields: tuple[str, str], config: Config = CONFIG, **named: str) -> UploadForm:
    return read_form([*fields, *named.items()], config, device="cpu")


def wav(seconds: float) -> str:
    """Silence as a data URL."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(2 * int(8000 * seconds)))
    return f"data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}"


def option(name: str, value: str) -> Any:
    return getattr(form((name, value)).options, name)


def refused(name: str, value: str, *others: tuple[str, str]) -> str:
    with pytest.raises(InvalidOption) as raised:
        form((name, value), *others)
    problem = problem_of(raised.value)
    assert (problem.status, problem.code) == (400, "invalid_field")
    assert name in problem.detail
    return problem.detail


# --- defaults ---


def test_defaults_are_those_of_the_configuration() -> None:
    assert form() == UploadForm(options=TranscriptionOptions(language="fr"), output_format="txt", sync=False)
    config = Config(model="small", language="German", output_format="srt", default_sync=True)
    assert form(config=config) == UploadForm(
        options=TranscriptionOptions(model="small", language="de"), output_format="srt", sync=True
    )
    assert form(config=Config(language="auto")).options.language == "auto"


@pytest.mark.parametrize("empty", ["", " ", "\t\r\n "])
def test_an_empty_value_means_the_default(empty: str) -> None:
    config = Config(model="small", language="de", output_format="srt", default_sync=True)
    assert form(*((name, empty) for name in FIELDS), config=config) == form(config=config)


def test_fields_of_the_form_win_over_the_configuration() -> None:
    config = Config(model="small", language="de", output_format="srt", default_sync=True)
    read = form(model="tiny", language="en", output_format="vtt", sync="no", config=config)
    assert (read.options.model, read.options.language) == ("tiny", "en")
    assert (read.output_format, read.sync) == ("vtt", False)
    assert form(model="auto", config=config).options.model == "small"


# --- one after the other ---


@pytest.mark.parametrize("name", ["diarize", "align", "sync", "keep_result"])
def test_yes_and_no(name: str) -> None:
    def value(word: str) -> Any:
        read = form((name, word))
        return getattr(read if name in UploadForm.__struct_fields__ else read.options, name)

    assert [value(word) for word in TRUE] == [True] * len(TRUE)
    assert [value(word) for word in FALSE] == [False] * len(FALSE)
    for word in ("maybe", "2", "-1", "tru", "yes no", "\0", "oui"):
        assert "true or false" in refused(name, word)


def test_diarization_is_optional_unless_a_field_asks_for_it() -> None:
    assert form().options.diarize is None
    assert form(diarize="true").options.diarize is True
    assert form(diarize="false").options.diarize is False


@pytest.mark.parametrize(
    ("word", "code"), [("en", "en"), ("EN", "en"), ("fr-CA", "fr"), ("French", "fr"), (" de ", "de"), ("Auto", "auto")]
)
def test_languages(word: str, code: str) -> None:
    assert option("language", word) == code


@pytest.mark.parametrize("word", ["klingon", "e", "en,fr", "en\0", "x" * 5000])
def test_languages_that_whisper_does_not_know(word: str) -> None:
    assert len(refused("language", word)) < 1500


def test_model_names_are_kept_as_sent() -> None:
    assert option("model", " large-v3 ") == "large-v3"
    assert option("model", "AUTO") is None
    for name in ("a\0b", "a\nb", "x" * 256):
        refused("model", name)


def test_tasks() -> None:
    assert option("task", "transcribe") == "transcribe"
    assert option("task", "TRANSLATE") == "translate"
    assert "transcribe, translate" in refused("task", "sing")


@pytest.mark.parametrize("name", ["prompt", "hotwords"])
def test_text(name: str) -> None:
    for text in ("Zürich, 東京 🎙", "one\r\ntwo\tthree", "null", "0", "x" * 10_000):
        assert option(name, text) == text
    assert option(name, "  a b ") == "a b"
    for text in ("a\0b", "a\x1b[31mb", "a\x7fb", "a\x9bb", "secret" * 2000):
        assert "secret" not in refused(name, text)


@pytest.mark.parametrize("name", ["num_speakers", "min_speakers", "max_speakers"])
def test_numbers_of_speakers(name: str) -> None:
    assert [option(name, word) for word in ("1", "2", "100", " 3 ")] == [1, 2, 100, 3]
    for word in ("0", "-1", "101", "two", "1.5", "1,5", "9" * 5000, "٣", "0x10", "1e400", "nan", "\0"):
        assert "a whole number from 1 to 100" in refused(name, word)


def test_fewer_speakers_at_most_than_at_least() -> None:
    assert form(min_speakers="2", max_speakers="2").options.max_speakers == 2
    refused("min_speakers", "3", ("max_speakers", "2"))


def test_decoding() -> None:
    assert [option("temperature", word) for word in ("0", "0.5", "1", "1e-3")] == [0.0, 0.5, 1.0, 0.001]
    assert [option("beam_size", word) for word in ("1", "5", "32")] == [1, 5, 32]
    for word in ("-0.1", "1.1", "nan", "inf", "-inf", "hot", "0,5", "9" * 400):
        assert "a number from 0 to 1" in refused("temperature", word)
    for word in ("0", "33", "-5", "many", "nan", "1.5"):
        assert "a whole number from 1 to 32" in refused("beam_size", word)


def test_voice_activity() -> None:
    assert option("vad_onset", "0.4") == 0.4
    assert option("vad_offset", "0.1") == 0.1
    for name in ("vad_onset", "vad_offset"):
        for word in ("0", "1", "-0.5", "nan", "inf", "loud"):
            assert "above 0 and below 1" in refused(name, word)
    refused("vad_offset", "0.5", ("vad_onset", "0.4"))
    refused("vad_offset", "0.9")


@pytest.mark.parametrize("name", ["output_format", "response_format"])
def test_formats(name: str) -> None:
    for word in FORMATS:
        assert form((name, word)).output_format == word
        assert form((name, f" {word.upper()} ")).output_format == word
    for word in ("docx", "srt,vtt", "verbose_json", "txt\0", "x" * 5000):
        detail = refused(name, word)
        assert all(known in detail for known in FORMATS)
        assert len(detail) < 200


def test_both_names_of_the_format() -> None:
    assert form(output_format="srt", response_format="SRT").output_format == "srt"
    assert "response_format" in refused("output_format", "srt", ("response_format", "vtt"))
    assert form(output_format="", response_format="vtt").output_format == "vtt"


def test_a_token_may_have_only_characters_of_a_header() -> None:
    assert form(hf_token=" hf_Abc-1 ").hf_token == "hf_Abc-1"
    for token in ("hf_é", "hf\0", "hf\r\nX: y", "x" * 300):
        assert token not in refused("hf_token", token)


def test_the_repr_of_a_form_hides_private_fields() -> None:
    private = form(hf_token="hf_token_of_mine", prompt="prompt of mine", hotwords="hotwords of mine")
    assert "of_mine" not in f"{private!r} {private}"
    assert "of mine" not in f"{private!r} {private}"


def test_metadata_is_a_json_object() -> None:
    assert form().metadata is None
    assert form(metadata=' {"case": 7, "tags": ["a"], "ü": null} ').metadata == {"case": 7, "tags": ["a"], "ü": None}
    assert form(metadata="{}").metadata == {}
    for text in ("[]", "7", "null", "true", "{", "{'a': 1}", '{"a": NaN}', "x" * 20_000, "[" * 10_000):
        refused("metadata", text)
    assert form(metadata='{"a": "%s"}' % ("x" * 16_000)).metadata
    assert "16384" in refused("metadata", '{"a": "%s"}' % ("é" * 8_200))


def test_an_address_is_read_elsewhere() -> None:
    assert form(url="http://example.com/a.wav") == form()


def test_known_speakers_come_with_their_recordings() -> None:
    def read(*fields: tuple[str, str]) -> UploadForm:
        return read_form(fields, CONFIG, device="cpu", known_speakers=True)

    assert read() == form()
    silent = wav(3.0)
    for ending in ("", "[]"):
        given = [(f"known_speaker_names{ending}", name) for name in ("Ada", " Grace ")]
        given += [(f"known_speaker_references{ending}", silent)] * 2
        # A browser sends untouched fields like this.
        given += [(f"known_speaker_names{ending}", ""), (f"known_speaker_references{ending}", " ")]
        known = read(*given)
        assert [speaker.name for speaker in known.known_speakers] == ["Ada", "Grace"]
        assert all(speaker.recording.startswith(b"RIFF") for speaker in known.known_speakers)
        assert known.warnings == ()
    for fields in (
        [("known_speaker_names", "Ada")],
        [("known_speaker_references", silent)],
        [("known_speaker_names", "Ada"), ("known_speaker_references", "data:audio/wav;base64,AAAA")],
        [("known_speaker_names", "Ada"), ("known_speaker_references", wav(1.0))],
    ):
        with pytest.raises(InvalidOption, match="known_speaker"):
            read(*fields)
    # Only some routes accept known speakers.
    (warning,) = form(known_speaker_names="Ada").warnings
    assert "known_speaker_names" in warning


# --- the device ---


@pytest.mark.parametrize(
    ("served", "fields"),
    [
        ("cpu", {"device": "cpu"}),
        ("cpu", {"device": "CPU", "device_index": "0"}),
        ("cpu", {"device": "auto"}),
        ("cpu", {"device_index": "0"}),
        ("cuda:0", {"device": "cuda"}),
        ("cuda:0", {"device": "cuda:0", "device_index": "0"}),
        ("cuda:1", {"device": "cuda"}),
        ("cuda:1", {"device": "cuda:1"}),
        ("cuda:1", {"device": "cuda", "device_index": "1"}),
        ("cuda:1", {"device_index": "1"}),
    ],
)
def test_the_served_device_may_be_named(served: str, fields: dict[str, str]) -> None:
    assert read_form([*fields.items()], CONFIG, device=served) == form()


@pytest.mark.parametrize(
    ("served", "fields"),
    [
        ("cpu", {"device": "cuda"}),
        ("cpu", {"device": "cuda:0"}),
        ("cpu", {"device": "gpu"}),
        ("cpu", {"device": "\0"}),
        ("cpu", {"device": "x" * 5000}),
        ("cpu", {"device_index": "1"}),
        ("cuda:0", {"device": "cpu"}),
        ("cuda:0", {"device": "cuda:1"}),
        ("cuda:0", {"device": "cuda:"}),
        ("cuda:1", {"device": "cuda", "device_index": "0"}),
        ("cuda:1", {"device": "cuda:1", "device_index": "0"}),
    ],
)
def test_no_other_device_is_served(served: str, fields: dict[str, str]) -> None:
    with pytest.raises(Problem) as raised:
        read_form([*fields.items()], CONFIG, device=served)
    assert (raised.value.status, raised.value.code) == (422, "device_not_served")
    assert served in raised.value.detail
    assert len(raised.value.detail) < 200


def test_an_index_that_is_no_number() -> None:
    for word in ("first", "-1", "0.5", "\0"):
        assert "a whole number" in refused("device_index", word)


# --- what is warned about ---


def test_unknown_fields_are_named_once() -> None:
    read = form(("langauge", "en"), ("colour", "blue"), ("colour", "red"), ("language", "en"))
    [warning] = read.warnings
    assert warning.count("'langauge'") == warning.count("'colour'") == 1
    assert "blue" not in warning
    assert read.options == form(language="en").options


def test_a_field_that_comes_twice_is_named_and_the_last_counts() -> None:
    read = form(("language", "en"), ("task", "sing"), ("language", "de"), ("task", ""))
    assert (read.options.language, read.options.task) == ("de", "transcribe")
    [warning] = read.warnings
    assert "'language'" in warning
    assert "'task'" in warning


def test_warnings_are_bounded() -> None:
    read = form(*[(f"{number}{'x' * 1000}\x1b", "") for number in range(100)])
    [warning] = read.warnings
    assert len(warning) < 800
    assert warning.isprintable()
    assert warning.endswith("and 90 more")


# --- any text ---

NAMES = st.one_of(st.sampled_from(FIELDS), st.text())
WORDS = st.sampled_from([*TRUE, *FALSE, *FORMATS, "cpu", "cuda:0", "auto", "null", "1", "0.5", "-1", "nan", "en", "fr"])
VALUES = st.one_of(WORDS, st.text(), st.floats().map(str), st.integers().map(str))


@given(st.lists(st.tuples(NAMES, VALUES)), st.sampled_from(["cpu", "cuda:0", "cuda:7"]))
@example([("num_speakers", "1" * 5000)], "cpu")
@example([("temperature", "1_0")], "cpu")
@example([("device", "cuda:\u0663")], "cuda:0")
def test_no_text_makes_anything_but_a_form_or_a_refusal(fields: list[tuple[str, str]], device: str) -> None:
    try:
        read = read_form(fields, CONFIG, device=device)
    except (InvalidOption, Problem) as error:
        problem = problem_of(error)
        assert problem.status in (400, 422)
        assert problem.detail.isprintable()
        assert len(problem.detail) < 2000
        return
    # The accepted options fit their types and can be stored.
    assert msgspec.json.decode(msgspec.json.encode(read), type=UploadForm, strict=True) == read
    assert read.output_format in FORMATS


def test_reading_a_form_loads_no_model_library() -> None:
    """Importing the module, and reading a form without a language, imports no library that runs models."""
    program = (
        "import sys; from whisper_api.config import Config; from whisper_api.server.uploads import forms;"
        "assert not {'numpy', 'faster_whisper', 'torch'} & set(sys.modules), 'imported with the module';"
        "forms.read_form([], Config(language='auto'), device='cpu');"
        "assert not {'torch', 'whisperx'} & set(sys.modules), 'imported by reading'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
