"""Corrected words and named speakers: the server stores them, and every format has them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect
from server.harness import RunningServer, until

from page.visits import Visit


def srt(server: RunningServer, job_id: str) -> str:
    with server.client() as client:
        return client.get(f"/transcription/{job_id}/result", params={"format": "srt"}).text


def test_a_corrected_word_is_kept_and_stands_in_the_srt(
    reader: Visit, page_server: RunningServer, untouched: str
) -> None:
    page = reader.job(untouched)
    words = page.locator("#transcript .w")
    before = reader.words
    words.nth(3).dblclick()
    field = page.get_by_role("textbox", name=f"Correction of “{before[3]}”")
    expect(field).to_be_focused()
    reader.picture("14-correcting")
    page.keyboard.type("Aloha,")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Correction kept")).to_be_visible()
    expect(words.nth(3)).to_be_focused()
    reader.picture("15-corrected")
    assert "Aloha," in srt(page_server, untouched)

    # Correct with the keyboard, and remove a word.
    page.keyboard.press("ArrowRight")
    page.keyboard.press("F2")
    page.keyboard.type("Sheila!")
    page.keyboard.press("Enter")
    expect(words.nth(4)).to_have_text("Sheila!")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.keyboard.press("Delete")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Word removed")).to_be_visible()
    # The focus is on the next word.
    expect(words.nth(5)).to_be_focused()
    # A word that is opened and not changed.
    page.keyboard.press("Enter")
    page.keyboard.type("nothing")
    page.keyboard.press("Escape")
    now = [*before[:3], "Aloha,", "Sheila!", *before[6:]]
    assert reader.words == now

    reader.again()
    reader.finished()
    assert reader.words == now
    expect(page.locator(".w.corrected")).to_have_text(["Aloha,", "Sheila!"])
    # The words after the removed one can still be corrected at their own positions.
    words.nth(5).dblclick()
    page.keyboard.type("Later")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Correction kept")).to_be_visible()
    text = " ".join(srt(page_server, untouched).split())
    for word in ("Aloha,", "Sheila!", "Later"):
        assert text.count(word) == 1
    assert text.index("Aloha,") < text.index("Sheila!") < text.index("Later")


def test_a_correction_is_undone(reader: Visit, page_server: RunningServer, untouched: str) -> None:
    page = reader.job(untouched)
    before = reader.words
    for text, told in (("Zebra", "Correction kept"), ("", "Word removed")):
        page.locator("#transcript .w").nth(2).dblclick()
        page.keyboard.press("Delete")
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        expect(page.get_by_text(told)).to_be_visible()
        page.get_by_role("button", name="Undo").click()
        expect(page.get_by_role("status").filter(has_text="Put back")).to_have_count(1)
        expect(page.locator("#transcript .w")).to_have_text(before)
        expect(page.locator("#transcript .w").nth(2)).to_be_focused()
        expect(page.locator(".w.corrected")).to_have_count(0)
    with page_server.client() as client:
        assert client.get(f"/transcription/{untouched}/corrections").json()["words"] == []


def test_a_speaker_is_renamed_by_a_click(reader: Visit, page_server: RunningServer, untouched: str) -> None:
    page = reader.job(untouched)
    first = page.locator("#transcript").get_by_role("button", name="Speaker 1").first
    first.click()
    field = page.get_by_role("textbox", name="Name of Speaker 1")
    expect(field).to_be_focused()
    expect(field).to_have_value("Speaker 1")
    page.keyboard.type("Diane")
    reader.picture("16-naming")
    page.keyboard.press("Enter")
    expect(page.locator("#transcript").get_by_role("button", name="Diane").first).to_be_visible()
    expect(page.locator("#transcript").get_by_role("button", name="Speaker 1")).to_have_count(0)
    # Name the other speaker in the list of speakers, with the keyboard.
    page.locator("#legend").get_by_role("button", name="Speaker 2").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("Sheila")
    page.keyboard.press("Enter")
    expect(page.locator("#legend .speaker")).to_have_text(["Diane", "Sheila"])
    expect(page.locator("#legend").get_by_role("button", name="Sheila")).to_be_focused()
    reader.picture("17-named")
    reader.again()
    reader.finished()
    expect(page.locator("#legend .speaker")).to_have_text(["Diane", "Sheila"])
    text = srt(page_server, untouched)
    assert "[Diane]" in text
    assert "[Sheila]" in text
    assert "SPEAKER" not in text
    # Change a name again, so that two speakers have one name.
    page.locator("#transcript").get_by_role("button", name="Sheila").first.click()
    page.keyboard.type("Diane")
    page.keyboard.press("Enter")
    expect(page.locator("#legend .speaker")).to_have_text(["Diane"])
    until(lambda: "[Sheila]" not in srt(page_server, untouched))
    expect(page.locator("#legend").get_by_role("button", name="Diane")).to_be_focused()


def test_corrections_of_two_tabs_are_both_kept(
    visit: Callable[..., Visit], page_server: RunningServer, untouched: str
) -> None:
    tabs = [visit(page_server, key=page_server.user_key) for _ in range(2)]
    for number, tab in enumerate(tabs):
        tab.job(untouched)
        tab.page.locator("#transcript .w").nth(number).dblclick()
        tab.page.keyboard.type(f"tab{number}")
    for tab in tabs:
        tab.page.keyboard.press("Enter")
        expect(tab.page.get_by_text("Correction kept")).to_be_visible()
    text = srt(page_server, untouched)
    assert "tab0" in text
    assert "tab1" in text


def test_a_transcript_is_deleted(
    reader: Visit, page_server: RunningServer, cut: Callable[[float, float], bytes]
) -> None:
    from server.harness import finish, submit

    with page_server.client() as client:
        job_id = submit(client, cut(6.0, 1.0), file_name="away.wav", keep_result="true")
        finish(client, job_id)
        page = reader.job(job_id)
        page.get_by_role("button", name="Delete").click()
        question = page.get_by_role("dialog", name="Delete this transcript?")
        question.get_by_role("button", name="Keep it").click()
        expect(question).to_be_hidden()
        page.get_by_role("button", name="Delete").click()
        reader.picture("18-delete")
        question.get_by_role("button", name="Delete").click()
        expect(page.get_by_role("heading", name="Transcribe a recording")).to_be_visible()
        assert client.get(f"/transcription/{job_id}/result").status_code == 410
    reader.again()
    expect(page.get_by_role("heading", name="Your transcripts")).to_be_visible()
    page.locator("#jobs a, #no-jobs:not([hidden])").first.wait_for()
    expect(page.get_by_role("link", name="away.wav")).to_have_count(0)
    # The page of the removed job says so.
    page.goto(f"{reader.url}/#{job_id}")
    expect(page.get_by_role("alert").filter(has_text="This transcript has been removed.")).to_be_visible()
