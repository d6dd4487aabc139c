"""Known speakers and turns with the real models."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from server.harness import finish, submit
from whisper_api.engine.diarize.open_models import CAMPPLUS

Cut = Callable[[float, float], bytes]


@pytest.mark.usefixtures("no_speakers")
def test_an_enrolled_voice_is_named_in_the_turns_of_a_call(client: httpx.Client, cut: Cut) -> None:
    made = client.post("/speakers", data={"name": "Sheila"}, files={"samples[]": ("s.wav", cut(21.9, 5.9))})
    assert made.status_code == 201, made.text
    speaker = made.json()
    assert (speaker["model"], speaker["samples"], speaker["warnings"]) == ("campplus", 1, [])
    silence = b"RIFF\x24\x7d\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0data\0\x7d\0\0"
    nobody = client.post("/speakers", data={"name": "X"}, files={"samples[]": ("s.wav", silence + b"\x80" * 32000)})
    assert nobody.status_code == 400
    assert "recording 1: nobody can be heard" in nobody.json()["detail"]
    try:
        job_id = submit(
            client,
            cut(11.0, 17.0),
            task="diarize",
            diarize="true",
            identify="true",
            output_format="rttm",
            keep_result="true",
        )
        assert finish(client, job_id)["status"] == "Completed"
        result = client.get(f"/transcription/{job_id}/result").json()
        assert (result["segments"], result["language"], result["model"]) == ([], "", "")
        assert result["speakers"] == ["SPEAKER_00", "Sheila"]
        assert result["speaker_scores"]["Sheila"] >= CAMPPLUS.same_person
        assert result["text"].count("SPEAKER audio 1 ") == len(result["turns"]) > 1
        assert {turn["speaker"] for turn in result["turns"]} == {"SPEAKER_00", "Sheila"}
        # Corrections rename speakers of turns, too.
        names = {"speakers": {"Sheila": "Sheila B.", "SPEAKER_00": "Diane"}}
        assert client.put(f"/transcription/{job_id}/corrections", json=names).json()["speakers"] == names["speakers"]
        corrected = client.get(f"/transcription/{job_id}/result").json()
        assert set(corrected["speaker_scores"]) == {"Sheila B."}
        assert "Sheila_B." in corrected["text"]
        subtitles = client.get(f"/transcription/{job_id}/result", params={"format": "srt"}).text
        assert "\nDiane\n" in subtitles
        assert "SPEAKER_00" not in subtitles
    finally:
        assert client.delete(f"/speakers/{speaker['speaker_id']}").status_code == 200
