"""Subtitles on the page: shown by the rules of a preset, corrected in place, exported as they are shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect
from server.harness import RunningServer, finish, submit, until

from page.visits import Visit


def blocks(server: RunningServer, job_id: str, preset: str) -> list[tuple[str, str, str]]:
    """Start, end and text of the subtitles that the server exports."""
    with server.client() as client:
        query = {"format": "srt", "subtitle_preset": preset}
        text = client.get(f"/transcription/{job_id}/result", params=query).text
    found = []
    for block in text.strip().split("\n\n"):
        _, times, shown = block.split("\n", 2)
        start, _, end = times.replace(",", ".").partition(" --> ")
        found.append((start, end, shown))
    return found


# Start, end and text of each subtitle.
SHOWN = """[...document.querySelectorAll(".cue")].map((cue) => [
    ...[...cue.querySelectorAll(".cue-time")].map((time) => "00:0" + time.value),
    [...cue.querySelectorAll(".cue-line")].map((line) => line.textContent.replace(/^- ?/, "-")).join("\\n"),
])"""


def shown(reader: Visit) -> list[tuple[str, str, str]]:
    """Start, end and text of the subtitles that the page shows."""
    return [(start, end, text) for start, end, text in reader.page.evaluate(SHOWN)]


def test_the_page_shows_the_subtitles_that_it_exports(
    reader: Visit, page_server: RunningServer, untouched: str
) -> None:
    page = reader.job(untouched)
    before = reader.words
    page.get_by_role("button", name="Subtitles", exact=True).click()
    expect(page.locator(".cue").first).to_be_visible()
    expect(page.locator("#transcript")).to_be_hidden()
    reader.picture("40-subtitles")
    assert reader.overflow == 0
    assert shown(reader) == blocks(page_server, untouched, "default")
    assert " ".join(page.locator(".cue .w").all_text_contents()).split() == " ".join(before).split()
    # Other rules give other subtitles, and what they break is named beside each.
    page.locator("#cue-preset").select_option("bbc")
    expect(page.locator("#preset")).to_have_value("bbc")
    expect(page.locator("#cue-count")).to_contain_text("break a rule")
    until(lambda: shown(reader) == blocks(page_server, untouched, "bbc"))
    page.get_by_role("button", name="Subtitles", exact=True).click()
    expect(page.locator("#transcript")).to_be_visible()
    assert reader.words == before


def test_a_word_and_a_time_are_corrected_in_a_subtitle(
    reader: Visit, page_server: RunningServer, untouched: str
) -> None:
    page = reader.job(untouched)
    page.get_by_role("button", name="Subtitles", exact=True).click()
    second = page.locator(".cue").nth(1)
    second.locator(".w").first.dblclick()
    page.keyboard.type("Aloha,")
    page.keyboard.press("Enter")
    expect(second.locator(".w").first).to_have_text("Aloha,")
    assert any("Aloha," in text for _, _, text in blocks(page_server, untouched, "default"))

    start = page.get_by_label("Start of subtitle 2")
    minutes, _, seconds = start.input_value().partition(":")
    later = f"{minutes}:{float(seconds) + 0.05:06.3f}"
    start.fill(later)
    start.press("Enter")
    until(lambda: shown(reader) == blocks(page_server, untouched, "default"))
    expect(page.get_by_text("Correction kept")).to_be_visible()
    expect(start).to_be_focused()
    assert shown(reader)[1][0] == f"00:0{later}"

    # A time that would overlap the subtitle before is refused and not kept, and what is no time is put back.
    start.fill("0")
    start.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="segment")).to_be_visible()
    expect(start).to_have_value(later)
    start.fill("soon")
    start.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="This is no time")).to_be_visible()
    expect(start).to_have_value(later)
    # The transcript has the corrected word too.
    page.get_by_role("button", name="Subtitles", exact=True).click()
    assert "Aloha," in reader.words


def test_the_keyboard_reaches_every_word_of_the_subtitles(reader: Visit, untouched: str) -> None:
    page = reader.job(untouched)
    page.get_by_role("button", name="Subtitles", exact=True).click()
    words = page.locator(".cue .w")
    words.first.focus()
    for _ in range(words.count() - 1):
        page.keyboard.press("ArrowRight")
    expect(words.last).to_be_focused()
    page.keyboard.press("F2")
    expect(page.get_by_role("textbox", name="Correction of")).to_be_focused()
    page.keyboard.press("Escape")
    expect(words.last).to_be_focused()


def test_a_job_of_speakers_alone_shows_who_speaks_when(
    reader: Visit, page_server: RunningServer, cut: Callable[[float, float], bytes]
) -> None:
    with page_server.client() as client:
        job_id = submit(
            client, cut(6.0, 8.0), file_name="who.wav", task="diarize", align=None, diarize=None, keep_result="true"
        )
        assert finish(client, job_id)["status"] == "Completed"
    page = reader.job(job_id)
    expect(page.locator("#transcript .turn").first).to_contain_text("Speaker 1")
    expect(page.locator("#transcript .at").first).to_contain_text("–")
    expect(page.get_by_text("Nobody speaks")).to_have_count(0)
    expect(page.get_by_role("button", name="Subtitles", exact=True)).to_be_hidden()
    reader.picture("41-who-speaks")
