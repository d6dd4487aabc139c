"""A server that goes away and comes back, one that asks for no key, and one that stands under a prefix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import Browser, FilePayload, Route, expect
from server.harness import RunningServer

from page.test_transcribing import choose, repeated
from page.visits import Visit

Open = Callable[..., Visit]


@pytest.fixture
def open_server(browser: Browser, tmp_path: Path, models_dir: Path, tiny_en_model_dir: Path) -> Iterator[RunningServer]:
    """A server without keys."""
    settings: dict[str, object] = {"ENABLE_AUTHORIZATION": False, "PRELOAD_MODELS": False, "WHISPER_MODEL": "tiny.en"}
    with RunningServer(tmp_path, models_dir, settings) as server:
        yield server


def test_a_page_that_watches_resumes_when_the_server_was_killed(
    visit: Open, open_server: RunningServer, cut: Callable[[float, float], bytes]
) -> None:
    tab = visit(open_server)
    page = tab.home()
    # The page asks for no key.
    expect(page.get_by_text("None yet.")).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_label("Language").select_option("en")
    page.get_by_label("Speakers").select_option("none")
    choose(page, ("meeting.wav", repeated(cut(0.0, 30.0), 6)))
    # The recording is long enough that its text comes in several parts, whatever the page is busy with.
    page.locator("#transcript .stretch .w").first.wait_for()
    open_server.kill()
    expect(page.locator("#trouble")).to_be_visible()
    tab.picture("19-away")
    open_server.start()
    tab.finished()
    expect(page.locator("#trouble")).to_be_hidden()
    assert " ".join(tab.words).count("Chicago") >= 5
    assert "job requeued" in open_server.log


def test_a_file_is_sent_again_when_the_server_was_away(visit: Open, open_server: RunningServer, hello: bytes) -> None:
    tab = visit(open_server)
    page = tab.home()
    expect(page.get_by_text("None yet.")).to_be_visible()
    page.get_by_label("Speakers").select_option("none")
    # The files of the page must be there before the server goes away.
    page.wait_for_load_state("networkidle")
    open_server.kill()
    choose(page, ("hello.wav", hello))
    expect(page.get_by_text("The server is away; trying again")).to_be_visible()
    open_server.start()
    expect(page.get_by_role("heading", name="hello.wav")).to_be_visible()
    tab.finished()
    with open_server.client() as client:
        assert len(client.get("/transcriptions").json()["jobs"]) == 1


def test_a_transcript_is_waited_for_while_the_server_is_away(reader: Visit, call: str) -> None:
    page = reader.home()
    link = page.get_by_role("link", name=re.compile("^call.wav")).first
    expect(link).to_be_visible()
    page.route("**/transcription/*", lambda route: route.abort())
    link.click()
    expect(page.locator("#trouble")).to_contain_text("The server cannot be reached.")
    expect(page.get_by_role("status").filter(has_text="The server cannot be reached.")).to_have_count(1)
    # An ended job has no cancel button and no position.
    expect(page.locator("#progress")).to_be_hidden()
    page.unroute("**/transcription/*")
    reader.finished()
    expect(page.locator("#trouble")).to_be_hidden()


def test_a_server_is_left_alone_for_as_long_as_it_asks(reader: Visit) -> None:
    page = reader.page
    page.clock.install()
    reader.home()
    page.evaluate(
        """async () => {
          const { ApiError, patiently } = await import("./assets/api.js");
          window.tries = 0;
          patiently(() => {
            window.tries += 1;
            throw new ApiError(429, "caller_limit", "", 30);
          });
        }"""
    )
    page.clock.run_for(29_000)
    assert page.evaluate("tries") == 1
    page.clock.run_for(2_000)
    assert page.evaluate("tries") == 2


def test_the_page_asks_for_a_key_again_when_it_was_revoked(visit: Open, page_server: RunningServer) -> None:
    tab = visit(page_server, key=page_server.key("tests-leaving"))
    page = tab.home()
    expect(page.get_by_text("None yet.")).to_be_visible()
    assert page_server.command("keys", "revoke", "tests-leaving").returncode == 0
    page.set_input_files("#files", FilePayload(name="a.wav", mimeType="audio/wav", buffer=b"no audio"))
    dialog = page.get_by_role("dialog", name="A key, please")
    expect(dialog.get_by_role("alert")).to_have_text("This key is not known here, or was revoked.")
    # The page forgets the revoked key, so a reload does not send it again.
    assert page.evaluate("sessionStorage.getItem('whisper-api-key')") is None
    # The page goes on with another key.
    dialog.get_by_label("Key").fill(page_server.user_key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="This is not audio or video")).to_be_visible()


def test_the_page_works_under_a_prefix(visit: Open, page_server: RunningServer, call: str) -> None:
    tab = visit(page_server, key=page_server.user_key)
    outside: list[str] = []
    tab.page.on("request", lambda request: None if "/under/" in request.url else outside.append(request.url))

    def serve(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("/under/", "/", 1)))

    tab.page.route(re.compile("/under/"), serve)
    tab.url = f"{page_server.url}/under"
    tab.job(call)
    assert "Hello." in tab.words
    assert outside == []
