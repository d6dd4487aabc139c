"""From a recording to a transcript: files, the microphone, several files, and files that are no audio."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import av
import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import FilePayload, Page, expect
from server.harness import RunningServer

from page.visits import Visit

Open = Callable[..., Visit]
# Keeps the file that is sent, for the test to look into.
KEEP_UPLOAD = """
const send = XMLHttpRequest.prototype.send;
XMLHttpRequest.prototype.send = function (form) {
  window.sent = form.get("file");
  return send.call(this, form);
};
"""
SENT = """async () => {
  let text = "";
  for (const byte of new Uint8Array(await window.sent.arrayBuffer())) text += String.fromCharCode(byte);
  return btoa(text);
}"""


def choose(page: Page, *files: tuple[str, bytes]) -> None:
    """Choose files by name and content."""
    payloads = [FilePayload(name=name, mimeType="audio/wav", buffer=content) for name, content in files]
    page.set_input_files("#files", payloads)


def test_a_key_is_asked_for_once_and_a_file_becomes_a_transcript(
    visit: Open, page_server: RunningServer, cut: Callable[[float, float], bytes]
) -> None:
    tab = visit(page_server)
    page = tab.home()
    dialog = page.get_by_role("dialog", name="A key, please")
    expect(dialog).to_be_visible()
    tab.picture("01-key")
    page.keyboard.press("Escape")
    expect(dialog).to_be_visible()
    dialog.get_by_label("Key").fill("wk_no_such_key")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("This key is not known here, or was revoked.")
    dialog.get_by_label("Key").fill(page_server.user_key)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.get_by_text(re.compile("Any usual format, up to 512"))).to_be_visible()
    tab.picture("02-home")
    # The key is stored in the session of the tab only.
    assert page.evaluate("Object.values(sessionStorage)") == [page_server.user_key]
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]

    page.get_by_label("Speakers").select_option("none")
    choose(page, ("thirty seconds.wav", cut(0.0, 30.0)))
    expect(page.get_by_role("heading", name="thirty seconds.wav")).to_be_visible()
    progress = page.get_by_role("progressbar")
    expect(progress).to_be_visible()
    page.locator("#transcript .stretch .w, #tools:not([hidden])").first.wait_for()
    tab.picture("03-live")
    tab.finished()
    expect(progress).to_be_hidden()
    assert "Chicago" in " ".join(tab.words)
    expect(page.get_by_role("status").filter(has_text="The transcript is complete.")).to_have_count(1)
    expect(page.get_by_role("link", name=re.compile("^thirty seconds.wav"))).to_have_attribute("aria-current", "page")

    tab.again()
    tab.finished()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_role("dialog", name="A key, please")).to_be_visible()


def test_text_is_shown_while_the_job_runs(reader: Visit, cut: Callable[[float, float], bytes], tmp_path: Path) -> None:
    page = reader.home()
    page.get_by_label("Language").select_option("en")
    page.get_by_label("Speakers").select_option("none")
    # Two minutes: several windows of speech.
    choose(page, ("long.wav", repeated(cut(0.0, 30.0), 4)))
    page.locator("#transcript .stretch .w").first.wait_for()
    assert page.locator("#tools").is_hidden()
    reader.picture("04-first-text")
    expect(page.locator("#transcript")).to_have_attribute("aria-busy", "true")
    reader.finished()
    assert " ".join(reader.words).count("Chicago") >= 6
    expect(page.locator("#transcript .stretch")).to_have_count(0)


def test_the_audio_track_of_a_file_can_be_chosen(reader: Visit, two_tracks: bytes) -> None:
    page = reader.home()
    page.get_by_label("Language").select_option("en")
    page.get_by_label("Speakers").select_option("none")
    page.get_by_label("Audio track").select_option("2")
    choose(page, ("film.mkv", two_tracks))
    reader.finished()
    assert "hello" in " ".join(reader.words).lower()
    page = reader.home()
    expect(page.get_by_label("Audio track")).to_have_value("")


def test_a_recording_of_the_microphone_is_transcribed(visit: Open, page_server: RunningServer) -> None:
    tab = visit(page_server, key=page_server.user_key)
    tab.context.add_init_script(KEEP_UPLOAD)
    page = tab.home()
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("timer")).to_have_text("0:03")
    assert page.evaluate("getComputedStyle(document.getElementById('level')).getPropertyValue('--level') > 0")
    tab.picture("05-recording")
    expect(page.get_by_role("timer")).to_have_text("0:06")
    page.get_by_role("button", name="Stop and transcribe").click()
    expect(page.get_by_role("heading", name=re.compile(r"^Recording .*\.webm"))).to_be_visible()
    with av.open(io.BytesIO(base64.b64decode(page.evaluate(SENT)))) as container:
        assert container.format.name == "matroska,webm"
        assert container.duration is None
    tab.finished()
    assert "hello" in " ".join(tab.words).lower()
    tab.picture("06-recorded")
    # The recording can be played at once, and its length is known.
    expect(page.locator("#total")).to_have_text(re.compile("^0:0[5-7]$"))
    page.get_by_role("button", name="Play", exact=True).click()
    expect(page.locator(".w.now")).to_have_count(1)


def test_a_recording_can_be_discarded_and_a_refused_microphone_is_explained(reader: Visit) -> None:
    page = reader.home()
    page.get_by_role("button", name="Record").click()
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("button", name="Record")).to_be_focused()
    expect(page.locator("#uploads li")).to_have_count(0)
    refuse = "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError') }"
    page.evaluate(f"() => {{ {refuse} }}")
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert").filter(has_text="not allowed to use the microphone")).to_be_visible()


def test_a_microphone_is_asked_for_once(reader: Visit) -> None:
    page = reader.home()
    # The user has not answered the browser's question yet.
    page.evaluate(
        """() => {
          const devices = navigator.mediaDevices;
          const ask = devices.getUserMedia.bind(devices);
          const allowed = new Promise((resolve) => (window.allow = resolve));
          window.asked = [];
          devices.getUserMedia = async (wanted) => {
            const stream = allowed.then(() => ask(wanted));
            window.asked.push(stream);
            return stream;
          };
        }"""
    )
    for _ in range(2):
        page.get_by_role("button", name="Record").click()
    page.evaluate("window.allow()")
    page.get_by_role("button", name="Discard").click()
    expect(page.get_by_role("button", name="Record")).to_be_focused()
    tracks = "async () => (await Promise.all(asked)).flatMap((each) => each.getTracks()).map((each) => each.readyState)"
    assert page.evaluate(tracks) == ["ended"]


def test_several_files_are_sent_and_a_bad_one_is_named(reader: Visit, hello: bytes) -> None:
    page = reader.home()
    page.get_by_label("Speakers").select_option("none")
    files = [("one.wav", hello), ("notes.wav", b"no audio at all"), ("empty.wav", b""), ("two.wav", hello)]
    choose(page, *files)
    uploads = page.locator("#uploads")
    expect(uploads.get_by_role("alert")).to_have_count(2)
    expect(uploads.get_by_role("listitem").filter(has_text="notes.wav")).to_contain_text("not audio or video")
    expect(uploads.get_by_role("listitem").filter(has_text="empty.wav")).to_contain_text("empty")
    reader.picture("07-several")
    jobs = page.get_by_role("complementary")
    for name in ("one.wav", "two.wav"):
        expect(jobs.get_by_role("link", name=re.compile(rf"^{name}.*0:01")).first).to_be_visible()
    # After several uploads the page stays on the list.
    expect(page.get_by_role("heading", name="Transcribe a recording")).to_be_visible()


def test_files_are_dropped_on_the_page(reader: Visit, hello: bytes) -> None:
    page = reader.home()
    page.get_by_label("Speakers").select_option("none")
    dropped = page.evaluate_handle(
        """(text) => {
          const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
          const data = new DataTransfer();
          data.items.add(new File([bytes], "dropped.wav", { type: "audio/wav" }));
          return data;
        }""",
        base64.b64encode(hello).decode(),
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": dropped})
    expect(page.get_by_text("Drop to transcribe")).to_be_visible()
    reader.picture("08-dropping")
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    expect(page.get_by_role("heading", name="dropped.wav")).to_be_visible()
    reader.finished()
    assert "hello" in " ".join(reader.words).lower()


def test_a_job_that_waits_and_one_that_runs_are_canceled(
    reader: Visit, cut: Callable[[float, float], bytes], hello: bytes
) -> None:
    page = reader.home()
    page.get_by_label("Speakers").select_option("none")
    choose(page, ("long.wav", repeated(cut(0.0, 30.0), 10)))
    expect(page.get_by_role("progressbar")).to_be_visible()
    page.get_by_role("link", name="New").click()
    choose(page, ("waits.wav", hello))
    expect(page.locator("#progress-text")).to_have_text(re.compile("^Next in the queue"))
    reader.picture("09-queued")
    for name in ("waits.wav", "long.wav"):
        page.get_by_role("link", name=re.compile(f"^{name}")).first.click()
        expect(page.get_by_role("heading", name=name)).to_be_visible()
        page.get_by_role("article").get_by_role("button", name="Cancel").click()
        question = page.get_by_role("dialog", name="Cancel this transcription?")
        expect(question.get_by_role("button", name="Keep it")).to_be_focused()
        question.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("heading", name="Transcribe a recording")).to_be_visible()
        expect(page.locator("#jobs li[data-status=Processing], #jobs li[data-status=Queued]")).to_have_count(
            1 if name == "waits.wav" else 0
        )


def repeated(wav: bytes, times: int) -> bytes:
    """A WAV file that repeats a recording several times."""
    import wave

    out = io.BytesIO()
    with wave.open(io.BytesIO(wav)) as source, wave.open(out, "wb") as target:
        target.setparams(source.getparams())
        target.writeframes(source.readframes(source.getnframes()) * times)
    return out.getvalue()
