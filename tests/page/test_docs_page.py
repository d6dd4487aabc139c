"""The description of the API as a browser shows it: on a desk and a phone, by day and in the dark."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import expect
from server.harness import RunningServer

from page.test_looks import CONTRASTS
from page.visits import DESK, PHONE, Visit

UNFOLD = "for (const each of document.querySelectorAll('details')) each.open = true"


@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (DESK, True), (PHONE, False), (PHONE, True)])
def test_the_documentation_page_fits_every_screen_in_light_and_dark(
    visit: Callable[..., Visit], page_server: RunningServer, size: tuple[int, int], dark: bool
) -> None:
    tab = visit(page_server, size=size, dark=dark)
    tab.page.goto(f"{tab.url}/docs")
    assert tab.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 300) is dark
    tab.picture(f"30-docs-{'phone' if size == PHONE else 'desk'}-{'dark' if dark else 'light'}")
    tab.page.evaluate(UNFOLD)
    assert tab.overflow == 0
    assert tab.page.evaluate(CONTRASTS) == []


def test_a_link_unfolds_its_target(visit: Callable[..., Visit], page_server: RunningServer) -> None:
    page = visit(page_server).page
    page.goto(f"{page_server.url}/docs")
    example = page.get_by_text('-F file=@call.wav "$URL/transcribe"')
    expect(example).to_be_hidden()
    page.get_by_role("navigation", name="Calls").get_by_role("link", name="POST /transcribe", exact=True).click()
    expect(example).to_be_in_viewport()
    expect(page.get_by_text(f"URL={page_server.url}")).to_have_count(1)
    page.get_by_role("link", name="JobResult").first.click()
    expect(page.get_by_text("the transcript in the job's format.")).to_be_in_viewport()
    page.go_back()
    # Without a mouse.
    page.goto(f"{page_server.url}/docs")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the calls")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("details[open]")).to_have_count(1)
