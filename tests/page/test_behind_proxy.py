"""The page under a prefix of a reverse proxy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import FilePayload, expect
from server.harness import RunningServer
from server.reverse_proxies import PROXIES, reverse_proxy

from page.visits import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.mark.parametrize("name", PROXIES)
def test_a_recording_becomes_a_transcript(
    name: str,
    browser: Browser,
    models_dir: Path,
    base_model_dir: Path,
    screenshots: Path | None,
    tmp_path: Path,
    cut: Callable[[float, float], bytes],
) -> None:
    changes = {"WHISPER_TRUSTED_PROXIES": "127.0.0.1", "WHISPER_LANGUAGE": "en"}
    with (
        RunningServer(tmp_path / "server", models_dir, changes) as server,
        reverse_proxy(name, server.port, tmp_path / "proxy") as url,
    ):
        tab = Visit(browser, url, screenshots, key=server.user_key)
        page = tab.home()
        payload = FilePayload(name="greeting.wav", mimeType="audio/wav", buffer=cut(6.0, 3.0))
        page.set_input_files("#files", [payload])
        tab.finished()
        assert tab.words
        page.goto(f"{url}/docs")
        expect(page.get_by_role("heading", level=1)).to_contain_text("Whisper API")
        assert page.evaluate("document.styleSheets.length") == 1
        assert not tab.complaints
        tab.context.close()
