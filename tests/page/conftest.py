"""A browser, a server, and a telephone call that it has transcribed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from server.conftest import hello, two_tracks
from server.harness import RunningServer, finish, submit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from page.visits import Visit

__all__ = ["hello", "two_tracks"]

# Seconds of the sample call that the fake microphone plays.
HEARD_FROM, HEARD_SECONDS = 6.0, 5.0


@pytest.fixture(scope="package")
def screenshots() -> Path | None:
    """The directory of screenshots, WHISPER_API_SCREENSHOTS; None where nobody asks for them, since each takes time."""
    named = os.environ.get("WHISPER_API_SCREENSHOTS")
    if not named:
        return None
    directory = Path(named)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


# Playwright keeps an event loop running in this thread, beside which other tests could not run theirs.
@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory, cut: Callable[[float, float], bytes]) -> Iterator[Browser]:
    """Chromium without a window. Its microphone plays the beginning of the call, once for each recording."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    # The shell has the same engine without the parts of a desktop browser, and takes a fifth of the processor time.
    program = os.environ.get("CHROMIUM") or shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if program is None:
        pytest.skip("there is no Chromium here: apt-get install chromium-headless-shell, or name one in CHROMIUM")
    heard = tmp_path_factory.mktemp("microphone") / "call.wav"
    heard.write_bytes(cut(HEARD_FROM, HEARD_SECONDS))
    microphone = [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={heard}%noloop",
    ]
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=microphone)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def page_server(
    browser: Browser,
    tmp_path_factory: pytest.TempPathFactory,
    models_dir: Path,
    tiny_en_model_dir: Path,
    ecapa_path: Path,
) -> Iterator[RunningServer]:
    """A server with shipped settings but for the model; it asks for keys."""
    with RunningServer(tmp_path_factory.mktemp("page"), models_dir, {"WHISPER_MODEL": "tiny.en"}) as server:
        yield server


@pytest.fixture(scope="package")
def call(page_server: RunningServer, cut: Callable[[float, float], bytes]) -> str:
    """The id of a completed job: fifteen seconds in which two people speak."""
    with page_server.client() as client:
        job_id = submit(
            client,
            cut(6.0, 15.0),
            file_name="call.wav",
            align="true",
            diarize=None,
            num_speakers="2",
            keep_result="true",
        )
        assert finish(client, job_id)["status"] == "Completed"
        return job_id


@pytest.fixture
def untouched(page_server: RunningServer, call: str) -> Iterator[str]:
    """The same job. The fixture removes the corrections of the test at its end."""
    yield call
    with page_server.client() as client:
        empty: dict[str, Any] = {"words": [], "speakers": {}}
        assert client.put(f"/transcription/{call}/corrections", json=empty).status_code == 200


@pytest.fixture
def visit(browser: Browser, screenshots: Path | None) -> Iterator[Callable[..., Visit]]:
    """Opens tabs. At the end of the test, no tab may have logged an error."""
    from page.visits import Visit

    visits: list[Visit] = []

    def open_tab(server: RunningServer, **arguments: Any) -> Visit:
        visits.append(Visit(browser, server.url, screenshots, **arguments))
        return visits[-1]

    yield open_tab
    for each in visits:
        each.context.close()
    assert [each.complaints for each in visits] == [[] for _ in visits]


@pytest.fixture
def reader(visit: Callable[..., Visit], page_server: RunningServer) -> Visit:
    """A tab whose user has entered a key."""
    return visit(page_server, key=page_server.user_key)
