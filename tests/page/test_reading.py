"""Reading a transcript: playing words, finding them, moving along them, and downloads."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import FilePayload, Page, expect
from server.harness import RunningServer

from page.visits import Visit
from whisper_api.formats import DOCUMENTS, FORMATS

PLAYING = "({ time: audio.currentTime, paused: audio.paused, word: document.querySelector('.w.now')?.textContent })"


def hear(page: Page, call: bytes) -> None:
    """Choose the recording again, as a user does after a reload of the page."""
    expect(page.get_by_text("The server does not keep the recording")).to_be_visible()
    page.set_input_files("#audio-file", FilePayload(name="call.wav", mimeType="audio/wav", buffer=call))
    expect(page.locator("#total")).to_have_text("0:15")


def word_at(result: dict[str, Any], number: int) -> dict[str, Any]:
    words = [word for segment in result["segments"] for word in segment["words"]]
    found: dict[str, Any] = words[number]
    return found


@pytest.fixture
def result(page_server: RunningServer, call: str) -> dict[str, Any]:
    with page_server.client() as client:
        found: dict[str, Any] = client.get(f"/transcription/{call}/result").json()
        return found


def test_the_page_shows_the_transcript_of_the_server(reader: Visit, call: str, result: dict[str, Any]) -> None:
    page = reader.job(call)
    assert reader.words == [word["word"] for segment in result["segments"] for word in segment["words"]]
    lines = [" ".join(line.split()) for line in page.locator("#transcript .text").all_text_contents()]
    assert " ".join(lines) == " ".join(segment["text"] for segment in result["segments"])
    assert page.locator("#legend .speaker").all_text_contents() == ["Speaker 1", "Speaker 2"]
    turns = page.locator("#transcript").get_by_role("heading", level=2).all_text_contents()
    assert set(turns) == {"Speaker 1", "Speaker 2"}
    assert all(one != other for one, other in itertools.pairwise(turns))
    expect(page.locator("#facts")).to_contain_text(re.compile("0:15 · English · tiny.en"))
    reader.picture("10-transcript")


def test_a_click_on_a_word_plays_it_and_the_word_is_marked(
    reader: Visit, call: str, result: dict[str, Any], cut: Callable[[float, float], bytes]
) -> None:
    page = reader.job(call)
    hear(page, cut(6.0, 15.0))
    number = len(reader.words) // 2
    word = word_at(result, number)
    page.locator("#transcript .w").nth(number).click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.wait_for_function("document.querySelector('.w.now') !== null")
    reader.picture("11-playing")
    page.get_by_role("button", name="Pause").click()
    seen = page.evaluate(PLAYING)
    assert seen["time"] >= word["start"] - 0.05
    # The mark moves to the word that is being played.
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(
        "number => [...document.querySelectorAll('.w')].findIndex(each => each.matches('.now')) > number", arg=number
    )
    page.get_by_role("button", name="Pause").click()
    seen = page.evaluate(PLAYING)
    words = [word for segment in result["segments"] for word in segment["words"]]
    # The page may show the mark of a word up to 50 ms before or after the word begins.
    marked = {
        [each["word"] for each in words if each["start"] <= seen["time"] + slack][-1] for slack in (-0.05, 0.0, 0.05)
    }
    assert seen["word"] in marked
    # Moving the player moves the mark, also while it is paused.
    page.get_by_role("slider", name="Position").fill(str(word_at(result, 0)["start"]))
    expect(page.locator(".w.now")).to_have_text(word_at(result, 0)["word"])
    page.get_by_label("Speed").select_option("1.5")
    assert page.evaluate("audio.playbackRate") == 1.5


def test_the_page_says_when_the_browser_cannot_play_a_recording(
    reader: Visit, call: str, cut: Callable[[float, float], bytes]
) -> None:
    page = reader.job(call)
    page.set_input_files("#audio-file", FilePayload(name="call.amr", mimeType="audio/amr", buffer=b"#!AMR"))
    expect(page.get_by_role("alert").filter(has_text="cannot play this recording")).to_be_visible()
    expect(page.get_by_role("button", name="Choose the recording")).to_be_focused()
    hear(page, cut(6.0, 15.0))


def test_the_page_shows_the_characters_between_the_words(reader: Visit) -> None:
    page = reader.home()
    text = page.evaluate(
        """async () => {
          const { Transcript } = await import("./assets/transcript.js");
          const words = ["Ça", "va"].map((word, start) => ({ word, start, end: start + 0.5, score: 1, speaker: null }));
          const transcript = new Transcript(document.getElementById("transcript"));
          const segment = { id: 0, start: 0, end: 2, text: "« Ça va » !", words, speaker: null };
          transcript.showResult({ segments: [segment], speakers: [] }, { words: [], speakers: {} });
          return transcript.text;
        }"""
    )
    assert text == "« Ça va » !"


def test_words_are_found_across_words_case_and_accents(reader: Visit, call: str) -> None:
    page = reader.job(call)
    text = re.sub(r"\s+", " ", " ".join(reader.words)).lower()
    search = page.get_by_role("searchbox", name="Search")
    search.fill("HELLÓ")
    count = text.count("hello")
    assert count > 1
    expect(page.locator("#hits")).to_have_text(f"1 of {count}")
    reader.picture("12-search")
    expect(page.locator(".w.hit")).to_have_count(count)
    page.get_by_role("button", name="Next match").click()
    expect(page.locator("#hits")).to_have_text(f"2 of {count}")
    page.get_by_role("button", name="Previous match").click()
    search.press("Shift+Enter")
    expect(page.locator("#hits")).to_have_text(f"{count} of {count}")
    search.fill("this is diane")
    expect(page.locator("#hits")).to_have_text("1 of 1")
    assert page.locator(".w.hit-now").all_text_contents() == ["This", "is", "Diane"]
    search.fill("xylophone")
    expect(page.locator("#hits")).to_have_text("Not found")
    search.press("Escape")
    expect(page.locator("#hits")).to_have_text("")
    expect(page.locator(".w.hit")).to_have_count(0)


def test_words_are_reached_with_the_keyboard(
    reader: Visit, call: str, cut: Callable[[float, float], bytes], result: dict[str, Any]
) -> None:
    page = reader.job(call)
    hear(page, cut(6.0, 15.0))
    page.locator("#legend .speaker").last.focus()
    page.keyboard.press("Tab")
    words = page.locator("#transcript .w")
    expect(words.nth(0)).to_be_focused()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(words.nth(3)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(words.nth(2)).to_be_focused()
    page.keyboard.press("Control+End")
    expect(words.last).to_be_focused()
    page.keyboard.press("Control+Home")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#transcript .text").nth(1).locator(".w").first).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    first = page.locator("#transcript .text").nth(0).locator(".w").count()
    assert page.evaluate("audio.currentTime") >= word_at(result, first)["start"] - 0.05
    # Only one word is in the tab order, and its role is a button.
    expect(page.locator("#transcript [tabindex='0']")).to_have_count(1)
    expect(page.locator("#transcript .w[role=button]")).to_have_count(1)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()


def test_every_format_is_downloaded_and_the_text_copied(reader: Visit, call: str, page_server: RunningServer) -> None:
    page = reader.job(call)
    with page_server.client() as client:
        for format in (*FORMATS, *DOCUMENTS):
            page.get_by_text("Download", exact=True).click()
            if format == "srt":
                reader.picture("13-download")
            with page.expect_download() as started:
                page.get_by_role("button", name=re.compile(f"^{format.upper()}")).click()
            assert started.value.suggested_filename == f"call.{'cues.json' if format == 'cues' else format}"
            content = Path(started.value.path()).read_bytes()
            assert content == client.get(f"/transcription/{call}/result", params={"format": format}).content
        assert json.loads(client.get(f"/transcription/{call}/result", params={"format": "json"}).content)["segments"]


def test_subtitles_are_downloaded_by_the_rules_of_a_preset(
    reader: Visit, call: str, page_server: RunningServer
) -> None:
    page = reader.job(call)
    page.get_by_text("Download", exact=True).click()
    page.locator("#preset").select_option("BBC")
    reader.picture("13-subtitle-rules")
    with page.expect_download() as started:
        page.get_by_role("button", name=re.compile("^VTT")).click()
    with page_server.client() as client:
        query = {"format": "vtt", "subtitle_preset": "bbc"}
        expected = client.get(f"/transcription/{call}/result", params=query)
        # The call is spoken faster than the preset allows.
        broken = re.findall('"([^"]*)"', expected.headers["Warning"])
        assert Path(started.value.path()).read_bytes() == expected.content
    for warning in broken:
        expect(page.locator("#toast")).to_contain_text(warning)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status").filter(has_text="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("Speaker 1: Hello.")
    assert "\n\nSpeaker 2: " in copied


def test_three_hours_stay_usable(reader: Visit, call: str) -> None:
    page = reader.job(call)
    shown: dict[str, Any] = page.evaluate(
        """async () => {
          const { Transcript } = await import("./assets/transcript.js");
          const segments = Array.from({ length: 2500 }, (_, id) => {
            const words = Array.from({ length: 12 }, (_, place) => {
              const start = id * 4.3 + place * 0.33;
              return { word: `w${id}x${place}`, start, end: start + 0.3, score: 1, speaker: null };
            });
            const text = words.map((each) => each.word).join(" ");
            return { id, start: words[0].start, end: words[11].end, text, words, speaker: `SPEAKER_0${(id >> 3) % 3}` };
          });
          const begun = performance.now();
          const root = document.getElementById("transcript");
          const transcript = new Transcript(root);
          const result = { segments, speakers: ["SPEAKER_00", "SPEAKER_01", "SPEAKER_02"] };
          transcript.showResult(result, { words: [], speakers: {} });
          root.getBoundingClientRect();
          const built = performance.now() - begun;
          const skipped = [...root.querySelectorAll("p")].filter(
            (each) => !each.checkVisibility({ contentVisibilityAuto: true }),
          ).length;
          return { words: transcript.words.length, paragraphs: root.querySelectorAll("p").length, skipped, built };
        }"""
    )
    print(f"30 000 words shown in {shown['built']:.0f} ms")
    assert shown["words"] == 30_000
    # Segments far from the window are not laid out.
    assert shown["paragraphs"] > 300
    page.wait_for_function(
        """() => [...document.querySelectorAll("#transcript p")]
             .filter((each) => !each.firstElementChild.checkVisibility({ contentVisibilityAuto: true })).length > 250"""
    )


def test_much_that_comes_at_once_is_counted_once(reader: Visit) -> None:
    page = reader.home()
    counted = page.evaluate(
        """async () => {
          const { Transcript } = await import("./assets/transcript.js");
          const transcript = new Transcript(document.getElementById("transcript"));
          let times = 0;
          const done = new Promise((resolve) => (transcript.onChange = () => resolve((times += 1))));
          for (let start = 0; start < 300; start += 1)
            transcript.showStretch(start, [{ id: 0, start, end: start + 1, text: "word", words: [], speaker: null }]);
          await done;
          return [times, transcript.words.length];
        }"""
    )
    assert counted == [1, 300]
