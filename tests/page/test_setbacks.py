"""Errors, events at the wrong moment, and text of other people: the page loses nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import Page, Route, expect
from server.harness import RunningServer, finish, problem, submit

from page.test_files import FRENCH_REMARKS
from page.test_looks import CONTRASTS
from page.test_transcribing import choose, repeated
from page.visits import PHONE, Visit

Open = Callable[..., Visit]
MARKUP = "<img src=x onerror=alert(1)>"


def held(page: Page, address: str, method: str) -> list[Route]:
    """Hold the next such request. The returned list contains it once it has come, and the test lets it go."""
    waiting: list[Route] = []

    def hold(route: Route) -> None:
        if route.request.method == method and not waiting:
            waiting.append(route)
        else:
            route.fallback()

    page.route(address, hold)
    return waiting


def came(page: Page, waiting: list[Route]) -> Route:
    """Wait for the held request, and return it."""
    while not waiting:
        page.wait_for_timeout(20)
    return waiting[0]


def test_a_job_that_failed_says_why_and_is_removed(reader: Visit, page_server: RunningServer, hello: bytes) -> None:
    page = reader.home()
    # The page lists a model that was removed since.
    expect(page.locator("#model option")).not_to_have_count(1)
    page.wait_for_load_state("networkidle")
    page.evaluate("document.getElementById('model').add(new Option('large-v1', 'large-v1', true, true))")
    choose(page, (f"{MARKUP}.wav", hello))
    failure = page.locator("#failure")
    expect(failure).to_contain_text("The recording could not be transcribed: large-v1 is not")
    expect(page.get_by_role("status").filter(has_text="could not be transcribed")).to_have_count(1)
    expect(page.get_by_role("heading", name=f"{MARKUP}.wav")).to_be_visible()
    row = page.get_by_role("complementary").get_by_role("listitem").filter(has_text=MARKUP)
    expect(row).to_contain_text("Failed")
    expect(page.locator("#progress")).to_be_hidden()
    assert page.evaluate(CONTRASTS) == []
    reader.picture("25-failed")
    job_id = page.url.partition("#")[2]
    reader.again()
    expect(failure).to_be_visible()
    failure.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="Transcribe a recording")).to_be_visible()
    expect(row).to_have_count(0)
    with page_server.client() as client:
        problem(client.get(f"/transcription/{job_id}"), 404, "job_not_found")
    # The back button does not lead to the removed job.
    page.go_back()
    expect(page.get_by_role("heading", name="Transcribe a recording")).to_be_visible()
    expect(page.locator("#problems")).to_be_empty()


def test_a_job_that_has_completed_is_not_canceled(
    reader: Visit, page_server: RunningServer, cut: Callable[[float, float], bytes], hello: bytes
) -> None:
    page = reader.home()
    with page_server.client() as client:
        long = submit(client, repeated(cut(0.0, 30.0), 10))
        choose(page, ("short.wav", hello))
        expect(page.locator("#progress-text")).to_have_text(re.compile("^Next in the queue"))
        page.get_by_role("article").get_by_role("button", name="Cancel").click()
        question = page.get_by_role("dialog", name="Cancel this transcription?")
        expect(question).to_be_visible()
        client.delete(f"/transcription/{long}", params={"force": "true"})
        reader.finished()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.method))
        question.get_by_role("button", name="Cancel").click()
        expect(question).to_be_hidden()
        # Requests that the click caused come before this one.
        page.evaluate("fetch('livez')")
        assert asked == ["GET"]
        expect(page.locator("#transcript")).to_contain_text("Hello")


def test_markup_that_others_write_is_shown_as_text(reader: Visit, page_server: RunningServer, untouched: str) -> None:
    page = reader.job(untouched)
    page.locator("#legend .speaker").first.click()
    page.keyboard.type(f"{MARKUP}1")
    page.keyboard.press("Enter")
    expect(page.locator("#legend .speaker").first).to_have_text(f"{MARKUP}1")
    page.locator("#transcript .w").nth(1).dblclick()
    page.keyboard.type(f"{MARKUP}2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Correction kept")).to_be_visible()
    reader.again()
    reader.finished()
    expect(page.locator("#legend .speaker").first).to_have_text(f"{MARKUP}1")
    expect(page.locator("#transcript .w").nth(1)).to_have_text(f"{MARKUP}2")
    expect(page.locator("main img")).to_have_count(0)


def test_a_file_that_is_no_more_is_named(reader: Visit, tmp_path: Path, hello: bytes) -> None:
    page = reader.home()
    page.get_by_label("Speakers").select_option("none")
    files = [tmp_path / name for name in ("first.wav", "second.wav")]
    for file in files:
        file.write_bytes(hello)
    waiting = held(page, "**/transcribe", "POST")
    page.set_input_files("#files", files)
    first = came(page, waiting)
    files[1].unlink()
    first.continue_()
    row = page.locator("#uploads").get_by_role("listitem").filter(has_text="second.wav")
    expect(row.get_by_role("alert")).to_contain_text("This browser cannot read the file")


def test_a_quota_that_is_used_up_is_told_at_once(reader: Visit, hello: bytes) -> None:
    page = reader.home()
    page.get_by_label("Speakers").select_option("none")
    asked = []

    def refuse(route: Route) -> None:
        asked.append(route)
        body = {"status": 429, "code": "quota_exceeded", "detail": "all 600 minutes of this day are used"}
        route.fulfill(status=429, headers={"Retry-After": "3600"}, json=body)

    page.route("**/transcribe", refuse)
    choose(page, ("late.wav", hello))
    row = page.locator("#uploads").get_by_role("listitem").filter(has_text="late.wav")
    expect(row.get_by_role("alert")).to_contain_text("all 600 minutes of this day are used")
    assert len(asked) == 1


def test_the_end_of_an_upload_does_not_leave_the_open_view(
    reader: Visit, call: str, hello: bytes, page_server: RunningServer
) -> None:
    page = reader.home()
    page.get_by_label("Speakers").select_option("none")
    waiting = held(page, "**/transcribe", "POST")
    choose(page, ("meanwhile.wav", hello))
    upload = came(page, waiting)
    page.get_by_role("link", name=re.compile("^call.wav")).first.click()
    reader.finished()
    page.locator("#transcript .w").first.dblclick()
    page.keyboard.type("half a wo")
    upload.continue_()
    expect(page.get_by_role("link", name=re.compile(r"^meanwhile.wav.*0:01")).first).to_be_visible()
    expect(page.get_by_role("heading", name="call.wav")).to_be_visible()
    expect(page.get_by_role("textbox", name=re.compile("^Correction of"))).to_be_focused()
    page.keyboard.press("Escape")

    # The message does not hide a recording that runs by then either.
    page.get_by_role("link", name="New").click()
    waiting = held(page, "**/transcribe", "POST")
    choose(page, ("before.wav", hello))
    upload = came(page, waiting)
    page.get_by_role("button", name="Record").click()
    upload.continue_()
    expect(page.get_by_role("link", name=re.compile(r"^before.wav.*0:01")).first).to_be_visible()
    page.get_by_role("button", name="Discard").click()


def test_a_name_that_is_kept_late_changes_no_other_view(reader: Visit, untouched: str) -> None:
    page = reader.job(untouched)
    asked: list[str] = []
    waiting = held(page, "**/corrections", "PUT")
    page.locator("#legend .speaker").first.click()
    page.keyboard.type("Diane")
    page.keyboard.press("Enter")
    change = came(page, waiting)
    page.get_by_role("link", name="New").click()
    expect(page.get_by_role("heading", name="Transcribe a recording")).to_be_visible()
    page.on("request", lambda request: asked.append(request.url))
    change.continue_()
    expect(page.get_by_text("Now called Diane")).to_be_visible()
    assert [url for url in asked if url.endswith("/result")] == []
    page.get_by_role("link", name=re.compile("^call.wav")).first.click()
    expect(page.locator("#legend .speaker")).to_have_text(["Diane", "Speaker 2"])


def test_a_correction_waits_for_a_server_that_is_away(visit: Open, page_server: RunningServer, untouched: str) -> None:
    tab = visit(page_server, key=page_server.user_key, size=(PHONE[0], 420))
    page = tab.job(untouched)
    page.route("**/corrections", lambda route: route.abort())
    page.locator("#transcript .w").last.dblclick()
    page.keyboard.type("Nothing")
    page.keyboard.press("Enter")
    # The message is visible at every scroll position.
    assert page.evaluate("scrollY") > 0
    away = page.get_by_role("alert").filter(has_text="The server cannot be reached. Trying again; nothing is lost.")
    expect(away).to_be_in_viewport()
    tab.picture("26-not-kept-yet")
    page.unroute("**/corrections")
    expect(page.get_by_text("Correction kept")).to_be_visible()
    expect(away).to_have_count(0)
    with page_server.client() as client:
        (kept,) = client.get(f"/transcription/{untouched}/corrections").json()["words"]
    assert kept["text"] == "Nothing"


def test_a_correction_that_is_refused_is_put_back(reader: Visit, page_server: RunningServer, hello: bytes) -> None:
    with page_server.client() as client:
        job_id = submit(client, hello, keep_result="true")
        finish(client, job_id)
        page = reader.job(job_id)
        before = reader.words
        assert client.delete(f"/transcription/{job_id}").status_code == 200
    page.locator("#transcript .w").first.dblclick()
    page.keyboard.type("Nothing")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="This transcript has been removed.")).to_be_visible()
    assert reader.words == before
    expect(page.locator(".w.corrected")).to_have_count(0)


def test_older_jobs_are_appended_to_the_list(visit: Open, page_server: RunningServer, hello: bytes) -> None:
    key = page_server.key("tests-many")
    with page_server.client(key) as client:
        for number in range(32):
            finish(client, submit(client, hello, file_name=f"{number}.wav", model="large-v1"))
    page = visit(page_server, key=key).home()
    rows = page.locator("#jobs a")
    expect(rows).to_have_count(30)
    page.get_by_role("button", name="Show older ones").click()
    expect(rows).to_have_count(32)
    expect(rows.nth(30)).to_be_focused()
    expect(page.get_by_role("button", name="Show older ones")).to_be_hidden()


def test_remarks_are_read_in_french(visit: Open, page_server: RunningServer) -> None:
    page = visit(page_server, key=page_server.user_key, language="fr-FR").home()
    samples: dict[str, Any] = {}
    for english, french in FRENCH_REMARKS.items():
        values = [f"{place}.5" for place in range(english.count("{}"))]
        samples[english.format(*values)] = [french.format("", *values), "fr"]
    samples["something new"] = ["something new", "en"]
    told = page.evaluate(
        "async (all) => { const { noted } = await import('./assets/notes.js'); return all.map(noted); }", list(samples)
    )
    assert told == list(samples.values())
