"""The form: each field, its default, its words, and what it changes."""

from __future__ import annotations

import json

import httpx
import pytest
from stereo import wav

from server.conftest import Start
from server.harness import RunningServer, finish, post, problem, submit, transcribed, until
from whisper_api.engine.audio.decode import decode

FORMATS = ("srt", "vtt", "txt", "tsv", "json", "aud", "ass", "md", "cues")
ALL_FIELDS = (
    *("language", "model", "task", "diarize", "num_speakers", "min_speakers", "max_speakers", "prompt", "hotwords"),
    *("align", "temperature", "beam_size", "vad_onset", "vad_offset", "output_format", "response_format", "sync"),
    *("max_line_width", "max_line_count", "highlight_words", "karaoke", "subtitle_preset", "speakers"),
    *("min_duration", "max_duration", "min_gap", "max_characters_per_second"),
    *("keep_result", "hf_token", "device", "device_index", "metadata", "url"),
)


# --- logprobs ---


def test_the_probabilities_of_tokens_come_when_they_are_asked_for(client: httpx.Client, hello: bytes) -> None:
    assert all("logprobs" not in segment for segment in transcribed(client, hello)["segments"])
    result = transcribed(client, hello, logprobs="true")
    tokens = [token for segment in result["segments"] for token in segment["logprobs"]]
    assert bytes(byte for token in tokens for byte in token["bytes"]).decode().strip() == result["text"].strip()
    assert all(token["logprob"] <= 0 for token in tokens)


# --- file ---


def test_the_file_is_needed(client: httpx.Client) -> None:
    problem(client.post("/transcribe", files={"language": (None, "en")}), 400, "no_file")


def test_a_field_named_file_is_no_file(client: httpx.Client) -> None:
    problem(client.post("/transcribe", files={"file": (None, "en")}), 400, "no_file")


def test_the_file_needs_no_name_with_its_type(client: httpx.Client, hello: bytes) -> None:
    assert "hello" in transcribed(client, hello, file_name="no-name")["text"].lower()


# --- audio_track ---


def test_audio_track(client: httpx.Client, two_tracks: bytes) -> None:
    assert "hello" in transcribed(client, two_tracks, audio_track="2")["text"].lower()
    result = transcribed(client, two_tracks)
    assert result["text"] == ""
    assert any("2 audio tracks" in warning and "audio_track" in warning for warning in result["warnings"])
    result = transcribed(client, two_tracks, audio_track="1")
    assert not any("audio tracks" in warning for warning in result["warnings"])


def test_a_missing_audio_track_is_refused(client: httpx.Client, two_tracks: bytes, hello: bytes) -> None:
    for path in ("/transcribe", "/detect-language"):
        body = problem(post(client, two_tracks, path=path, audio_track="3"), 400, "invalid_field")
        assert "there is no number 3" in body["detail"]
        assert "2 audio tracks: 1 is flac, 2 is flac" in body["detail"]
    problem(post(client, hello, audio_track="2"), 400, "invalid_field")
    problem(post(client, hello, audio_track="0"), 400, "invalid_field")


def test_audio_track_of_openais_route(client: httpx.Client, two_tracks: bytes) -> None:
    def ask(track: str) -> httpx.Response:
        fields = {"audio_track": track, "language": "en"}
        return client.post("/v1/audio/transcriptions", data=fields, files={"file": ("a.mka", two_tracks)})

    assert "hello" in ask("2").json()["text"].lower()
    refused = ask("3")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "audio_track")


# --- channels ---


def test_channels(client: httpx.Client, hello: bytes) -> None:
    sound = decode(hello).audio
    file = wav([0.0 * sound, sound])
    result = transcribed(client, file, channels="separate", diarize="true", align="true")
    assert result["speakers"] == ["SPEAKER_01"]
    assert {(segment["channel"], segment["speaker"]) for segment in result["segments"]} == {(1, "SPEAKER_01")}
    assert all(word["channel"] == 1 for segment in result["segments"] for word in segment["words"])
    assert "channel 0 is silent (counted from 0)" in result["warnings"]
    result = transcribed(client, file)
    assert all("channel" not in segment for segment in result["segments"])


def test_too_many_channels_are_refused_at_the_upload(client: httpx.Client, hello: bytes) -> None:
    file = wav([decode(hello).audio] * 9)
    body = problem(post(client, file, channels="separate"), 400, "invalid_field")
    assert "the file has 9 channels; separate takes up to 8" in body["detail"]
    problem(post(client, hello, channels="left"), 400, "invalid_field")


def test_channels_of_openais_route(client: httpx.Client, hello: bytes) -> None:
    sound = decode(hello).audio
    fields = {"channels": "separate", "language": "en", "response_format": "diarized_json"}
    files = {"file": ("a.wav", wav([0.0 * sound, sound]))}
    answered = client.post("/v1/audio/transcriptions", data=fields, files=files).json()
    assert {segment["speaker"] for segment in answered["segments"]} == {"B"}


# --- language ---


def test_language_is_french_unless_given(client: httpx.Client, hello: bytes) -> None:
    assert transcribed(client, hello, language=None)["language"] == "fr"
    assert transcribed(client, hello, language="")["language"] == "fr"


@pytest.mark.parametrize("word", ["en", "EN", "en-GB", "English", " en "])
def test_language_by_code_or_name(client: httpx.Client, hello: bytes, word: str) -> None:
    result = transcribed(client, hello, language=word)
    assert result["language"] == "en"
    assert result["language_probability"] is None


def test_language_is_detected_when_asked_for(client: httpx.Client, speech: bytes) -> None:
    result = transcribed(client, speech, language="auto")
    assert result["language"] == "en"
    assert 0.5 < result["language_probability"] <= 1.0


def test_an_unknown_language_is_refused(client: httpx.Client, hello: bytes) -> None:
    body = problem(post(client, hello, language="klingon"), 400, "invalid_field")
    assert "language" in body["detail"]
    assert "klingon" in body["detail"]


# --- model ---


def test_model_is_that_of_the_configuration_unless_given(client: httpx.Client, hello: bytes) -> None:
    assert transcribed(client, hello)["model"] == "base"
    assert transcribed(client, hello, model="")["model"] == "base"
    assert transcribed(client, hello, model="base")["model"] == "base"


def test_another_model(client: httpx.Client, hello: bytes) -> None:
    assert transcribed(client, hello, model="tiny.en")["model"] == "tiny.en"


@pytest.mark.parametrize("name", ["no-such-model", "/etc/passwd", "someone/else", "../base", "ecapa", "align-en"])
def test_model_that_cannot_be_served(client: httpx.Client, hello: bytes, name: str) -> None:
    body = problem(post(client, hello, model=name), 422, "unknown_model")
    assert name in body["detail"]


def test_model_with_a_slip_of_the_pen_is_answered_with_the_name_meant(client: httpx.Client, hello: bytes) -> None:
    assert "base" in problem(post(client, hello, model="bsae"), 422, "unknown_model")["detail"]


# --- task ---


def test_task(client: httpx.Client, hello: bytes) -> None:
    assert transcribed(client, hello, task="transcribe", model="tiny.en")["warnings"] == []
    warnings = transcribed(client, hello, task="translate", model="tiny.en")["warnings"]
    assert any("translate" in warning for warning in warnings)
    body = problem(post(client, hello, task="sing"), 400, "invalid_field")
    assert "transcribe" in body["detail"]
    assert "translate" in body["detail"]


# --- diarize and the number of speakers ---


@pytest.mark.parametrize("word", [None, "", "true", "1", "yes", "ON"])
def test_speakers_are_diarized_on_demand(client: httpx.Client, hello: bytes, word: str | None) -> None:
    result = transcribed(client, hello, diarize=word)
    assert result["speakers"] == ["SPEAKER_00"]
    assert [segment["speaker"] for segment in result["segments"]] == ["SPEAKER_00"]


@pytest.mark.parametrize("word", ["false", "0", "no", "off", "False", "NO"])
def test_speakers_are_not_diarized_when_the_field_is_false(client: httpx.Client, hello: bytes, word: str) -> None:
    result = transcribed(client, hello, diarize=word)
    assert result["speakers"] == []
    assert [segment["speaker"] for segment in result["segments"]] == [None]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"num_speakers": "1"}, 1),
        ({"num_speakers": "2"}, 2),
        ({"max_speakers": "1"}, 1),
        ({"min_speakers": "2", "max_speakers": "2"}, 2),
    ],
)
def test_number_of_speakers(client: httpx.Client, conversation: bytes, fields: dict[str, str], count: int) -> None:
    result = transcribed(client, conversation, **{"diarize": "true", "align": "true", **fields})
    assert len(result["speakers"]) == count


def test_no_fewer_speakers_than_at_most(client: httpx.Client, hello: bytes) -> None:
    body = problem(post(client, hello, min_speakers="3", max_speakers="2"), 400, "invalid_field")
    assert "min_speakers" in body["detail"]


# --- prompt, hotwords ---


def test_prompt_and_hotwords_change_the_text(client: httpx.Client, speech: bytes) -> None:
    plain = transcribed(client, speech)["text"]
    assert "New Jersey" in plain
    small = "we write in small letters without any marks that is how it is done here every word of it"
    assert transcribed(client, speech, prompt=small)["text"] != plain
    assert transcribed(client, speech, hotwords="JERSEY, MEN")["text"] != plain


@pytest.mark.parametrize("field", ["prompt", "hotwords"])
def test_invalid_prompts_are_refused(client: httpx.Client, hello: bytes, field: str) -> None:
    for value in ("a\0b", "a\x1bb", "word " * 100_000):
        body = problem(post(client, hello, **{field: value}), 400)
        assert value not in body["detail"]


def test_prompt_in_another_script_over_several_lines(client: httpx.Client, hello: bytes) -> None:
    transcribed(client, hello, prompt="Zürich, Ærø\r\n東京 🎙")


# --- decoding ---


def test_temperature_and_beam_size(client: httpx.Client, hello: bytes) -> None:
    for value in ("0", "0.5", "1.0", ""):
        transcribed(client, hello, temperature=value)
    for value in ("1", "5", "32", ""):
        transcribed(client, hello, beam_size=value)


def test_voice_activity(client: httpx.Client, hello: bytes) -> None:
    assert transcribed(client, hello, vad_onset="0.3", vad_offset="0.2")["segments"]
    silence = transcribed(client, hello, vad_onset="0.99")
    assert silence["text"] == ""
    assert silence["segments"] == []
    body = problem(post(client, hello, vad_onset="0.3", vad_offset="0.4"), 400, "invalid_field")
    assert "vad_offset" in body["detail"]


def test_words_have_times_unless_declined(client: httpx.Client, hello: bytes) -> None:
    for word in (None, "", "true", "yes"):
        [segment] = transcribed(client, hello, align=word)["segments"]
        assert [entry["word"].strip(".,!").lower() for entry in segment["words"]] == ["hello"]
    for word in ("false", "0", "no", "OFF"):
        [segment] = transcribed(client, hello, align=word)["segments"]
        assert segment["words"] == []


# --- output_format ---


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("field", ["output_format", "response_format"])
def test_the_text_is_in_the_format_asked_for(client: httpx.Client, hello: bytes, field: str, name: str) -> None:
    job_id = submit(client, hello, **{field: name})
    assert finish(client, job_id)["status"] == "Completed"
    text = client.get(f"/transcription/{job_id}/result").json()["text"]
    assert text == client.get(f"/transcription/{job_id}/result", params={"format": name}).text
    signs = {"srt": "1\n00:", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n", "json": "{", "aud": "0", "txt": "Hello"}
    signs |= {"ass": "[Script Info]\n", "md": "**0:0", "cues": "{"}
    assert text.startswith(signs[name])
    if name == "json":
        assert json.loads(text)["segments"]


def test_the_text_is_plain_unless_a_format_is_given(client: httpx.Client, hello: bytes) -> None:
    assert transcribed(client, hello)["text"].strip() == "Hello"
    assert transcribed(client, hello, output_format="")["text"].strip() == "Hello"
    assert transcribed(client, hello, output_format="SRT")["text"].startswith("1\n")


def test_both_names_of_the_format(client: httpx.Client, hello: bytes) -> None:
    assert transcribed(client, hello, output_format="vtt", response_format="vtt")["text"].startswith("WEBVTT")
    body = problem(post(client, hello, output_format="vtt", response_format="srt"), 400, "invalid_field")
    assert "response_format" in body["detail"]


@pytest.mark.parametrize("field", ["output_format", "response_format"])
def test_a_format_that_is_not_known_is_answered_with_those_that_are(
    client: httpx.Client, hello: bytes, field: str
) -> None:
    detail = problem(post(client, hello, **{field: "docx"}), 400, "invalid_field")["detail"]
    assert all(name in detail for name in FORMATS)


# --- sync ---


@pytest.mark.parametrize("word", ["true", "1", "yes", "on", "True", "ON"])
def test_sync(client: httpx.Client, hello: bytes, word: str) -> None:
    assert post(client, hello, sync=word).status_code == 200


@pytest.mark.parametrize("word", [None, "", "false", "0", "no", "off"])
def test_a_false_sync_field_makes_a_job(client: httpx.Client, hello: bytes, word: str | None) -> None:
    assert finish(client, submit(client, hello, sync=word))["status"] == "Completed"


# --- device ---


def test_the_served_device_may_be_named(client: httpx.Client, hello: bytes) -> None:
    for name in ("cpu", "CPU", "auto", ""):
        assert transcribed(client, hello, device=name, device_index="0")["text"]


@pytest.mark.parametrize("fields", [{"device": "cuda"}, {"device": "tpu"}, {"device_index": "1"}])
def test_another_device_is_not_served(client: httpx.Client, hello: bytes, fields: dict[str, str]) -> None:
    problem(post(client, hello, **fields), 422, "device_not_served")


# --- hf_token ---


def test_a_token_is_taken_and_never_shown(server: RunningServer, client: httpx.Client, hello: bytes) -> None:
    token = "hf_" + "Secret" * 5
    job_id = submit(client, hello, hf_token=token)
    finish(client, job_id)
    assert token not in client.get(f"/transcription/{job_id}").text
    assert token not in client.get(f"/transcription/{job_id}/result").text
    assert token not in server.log


def test_a_token_is_kept_only_as_long_as_its_job(start_server: Start, hello: bytes) -> None:
    """The token is in neither the row nor the write-ahead log, before any sweep."""
    # The write-ahead log is emptied as often as the grace ends.
    server = start_server({"WHISPER_RESULT_GRACE_SECONDS": 1})
    token = b"hf_" + b"Hidden" * 5
    with server.client() as client:
        finish(client, submit(client, hello, hf_token=token.decode()))
    until(lambda: not any(token in file.read_bytes() for file in server.data_dir.rglob("*") if file.is_file()))


def test_the_log_has_no_text_of_transcripts_and_prompts(
    server: RunningServer, client: httpx.Client, hello: bytes
) -> None:
    job_id = submit(client, hello, prompt="Mistletoe and wine", hotwords="Rumpelstiltskin")
    finish(client, job_id)
    assert "Hello" in client.get(f"/transcription/{job_id}/result").json()["text"]
    until(lambda: job_id in server.log)
    for said in ("Mistletoe", "Rumpelstiltskin", "Hello"):
        assert said not in server.log


# --- any of them ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("diarize", "perhaps"),
        ("align", "2"),
        ("sync", "maybe"),
        ("keep_result", "7"),
        ("task", "x"),
        ("num_speakers", "0"),
        ("num_speakers", "101"),
        ("num_speakers", "two"),
        ("num_speakers", "1.5"),
        ("min_speakers", "0"),
        ("max_speakers", "-2"),
        ("temperature", "1.5"),
        ("temperature", "-0.1"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("beam_size", "0"),
        ("beam_size", "33"),
        ("beam_size", "1e3"),
        ("beam_size", "9" * 400),
        ("vad_onset", "0"),
        ("vad_onset", "1"),
        ("vad_offset", "1.5"),
        ("vad_offset", "low"),
        ("device_index", "first"),
    ],
)
def test_a_bad_value_is_400_and_names_the_field_and_what_is_expected(
    client: httpx.Client, hello: bytes, field: str, value: str
) -> None:
    detail = problem(post(client, hello, **{field: value}), 400, "invalid_field")["detail"]
    assert field in detail
    assert "expected" in detail


def test_an_empty_value_means_the_default(client: httpx.Client, hello: bytes) -> None:
    statuses, results = [], []
    for value in (None, ""):
        job_id = submit(client, hello, **dict.fromkeys(ALL_FIELDS, value))
        statuses.append(finish(client, job_id))
        results.append(client.get(f"/transcription/{job_id}/result").json())
    assert [status["status"] for status in statuses] == ["Completed", "Completed"]
    assert statuses[0].get("warnings") == statuses[1].get("warnings")
    assert results[0] == results[1]
    assert (results[0]["language"], results[0]["speakers"]) == ("fr", ["SPEAKER_00"])


def test_unknown_fields_are_ignored_and_named(client: httpx.Client, hello: bytes) -> None:
    job_id = submit(client, hello, colour="blue", langauge="en")
    status = finish(client, job_id)
    assert status["status"] == "Completed"
    for warnings in (status["warnings"], client.get(f"/transcription/{job_id}/result").json()["warnings"]):
        text = " ".join(warnings)
        assert "colour" in text
        assert "langauge" in text
        assert "blue" not in text


def test_the_last_value_of_a_repeated_field_counts(client: httpx.Client, hello: bytes) -> None:
    parts: list[tuple[str, tuple[str | None, bytes]]] = [
        (name, (None, value))
        for name, value in [
            ("diarize", b"false"),
            ("align", b"false"),
            ("sync", b"true"),
            ("language", b"fr"),
            ("language", b"en"),
        ]
    ]
    response = client.post("/transcribe", files=[*parts, ("file", ("a.wav", hello))])
    assert response.status_code == 200, response.text
    assert response.json()["language"] == "en"
    assert any("language" in warning for warning in response.json()["warnings"])


def test_the_order_of_file_and_fields_does_not_matter(client: httpx.Client, hello: bytes) -> None:
    fields: list[tuple[str, tuple[str | None, bytes]]] = [
        (name, (None, value))
        for name, value in [("diarize", b"no"), ("align", b"no"), ("sync", b"yes"), ("language", b"en")]
    ]
    for parts in ([("file", ("a.wav", hello)), *fields], [*fields, ("file", ("a.wav", hello))]):
        response = client.post("/transcribe", files=parts)
        assert response.status_code == 200, response.text
        assert response.json()["language"] == "en"
