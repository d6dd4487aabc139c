"""The page in French, on small screens, in the dark, with a screen reader and without a mouse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

from playwright.sync_api import Page, expect
from server.harness import RunningServer

from page.visits import PHONE, Visit

Open = Callable[..., Visit]
# The contrast that WCAG 2.2 demands of text on its background.
CONTRASTS = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const linear = (share) => (share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.map((each) => linear(each / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const [r, g, b, a = 1] = channels(getComputedStyle(each).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((each) => each.nodeType === Node.TEXT_NODE && each.data.trim());
    const seen = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!own || !seen || element.closest(":disabled, .unseen, option")) continue;
    const [one, other] = [light(channels(getComputedStyle(element).color).slice(0, 3)), light(ground(element))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push(`${element.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""
# Colours of more speakers than this call has.
SPEAKERS = """() => {
  for (let colour = 0; colour < 8; colour += 1) {
    const name = document.querySelector(".turn .speaker").closest(".turn").cloneNode(true);
    name.dataset.colour = colour;
    document.getElementById("transcript").append(name);
  }
}"""
NAMED = "button|link|textbox|searchbox|combobox|slider|progressbar|dialog|region|img"
UNNAMED = re.compile(rf"- ({NAMED})(?=[:\s]*($|\[))", re.M)
COLOURS = "[...document.querySelectorAll('.turn .speaker')].map((each) => getComputedStyle(each).color)"


def stops(page: Page, count: int) -> list[str]:
    """The elements that the tab key reaches, from the beginning of the page."""
    found = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(count):
        page.keyboard.press("Tab")
        found.append(
            page.evaluate("(({ id, className, tagName }) => id || className || tagName)(document.activeElement)")
        )
    return found


def test_the_page_speaks_french(visit: Open, page_server: RunningServer, call: str) -> None:
    tab = visit(page_server, key=page_server.user_key, language="fr-CA")
    page = tab.home()
    expect(page.locator("html")).to_have_attribute("lang", "fr")
    expect(page.get_by_role("heading", name="Transcrire un enregistrement")).to_be_visible()
    expect(page.get_by_text("jusqu’à 512 Mo")).to_be_visible()
    languages = page.get_by_label("Langue").get_by_role("option").all_inner_texts()
    assert languages[:3] == ["Détecter", "Plusieurs", "Français"]
    assert "Allemand" in languages
    tab.picture("20-french")
    tab.job(call)
    expect(page.locator("#legend .speaker")).to_have_text(["Locuteur 1", "Locuteur 2"])
    expect(page.locator("#facts")).to_contain_text("Anglais")
    page.get_by_role("searchbox", name="Rechercher").fill("hello")
    expect(page.locator("#hits")).to_have_text(re.compile(r"1 sur \d"))
    tab.picture("21-french-transcript")


def test_another_language_reads_english(visit: Open, page_server: RunningServer) -> None:
    page = visit(page_server, key=page_server.user_key, language="ja-JP").home()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.get_by_role("heading", name="Transcribe a recording")).to_be_visible()


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_a_phone(visit: Open, page_server: RunningServer, call: str, dark: bool) -> None:
    tab = visit(page_server, key=page_server.user_key, size=PHONE, touch=True, dark=dark)
    page = tab.home()
    expect(page.get_by_role("link", name=re.compile("^call.wav")).first).to_be_visible()
    assert tab.overflow == 0
    tab.picture(f"22-phone-{'dark' if dark else 'light'}", full=True)
    page.get_by_role("link", name=re.compile("^call.wav")).first.tap()
    tab.finished()
    assert tab.overflow == 0
    expect(page.get_by_role("complementary")).to_be_hidden()
    # Targets must be large enough for fingers.
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, select, summary, input")]
             .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 24)
             .map((each) => each.outerHTML)"""
    )
    assert small == []
    page.get_by_text("Download", exact=True).tap()
    menu = page.locator("#formats").bounding_box()
    assert menu is not None
    assert menu["x"] >= 0
    assert menu["x"] + menu["width"] <= PHONE[0]
    page.get_by_text("Download", exact=True).tap()
    tab.picture(f"23-phone-transcript-{'dark' if dark else 'light'}")
    words = page.locator("#transcript .w")
    editor = page.get_by_role("textbox", name=re.compile("^Correction of"))
    # On a busy machine two taps may be too far apart to count as a double tap.
    for _ in range(20):
        words.nth(1).tap()
        if editor.is_visible():
            break
    expect(editor).to_be_focused()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="All transcripts").tap()
    expect(page.get_by_role("complementary")).to_be_visible()


def test_the_page_fits_the_smallest_phone_in_french(visit: Open, page_server: RunningServer, call: str) -> None:
    tab = visit(page_server, key=page_server.user_key, size=(320, 568), touch=True, language="fr-FR")
    page = tab.home()
    expect(page.get_by_role("link", name=re.compile("^call.wav")).first).to_be_visible()
    assert tab.overflow == 0
    tab.job(call)
    page.get_by_text("Télécharger", exact=True).tap()
    menu = page.locator("#formats").bounding_box()
    assert menu is not None
    assert menu["x"] >= 0
    assert menu["x"] + menu["width"] <= 320
    tab.picture("27-smallest-phone")


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(visit: Open, page_server: RunningServer, call: str, dark: bool) -> None:
    tab = visit(page_server, key=page_server.user_key, dark=dark)
    page = tab.home()
    expect(page.get_by_role("link", name=re.compile("^call.wav")).first).to_be_visible()
    assert page.evaluate(CONTRASTS) == []
    tab.job(call)
    page.evaluate(SPEAKERS)
    page.get_by_role("searchbox", name="Search").fill("Hello")
    expect(page.locator(".w.hit-now")).to_have_count(1)
    assert page.evaluate(CONTRASTS) == []
    colours = set(page.evaluate(COLOURS))
    assert len(colours) == 8
    tab.picture(f"24-{'dark' if dark else 'light'}")


def test_every_control_has_a_name_and_a_place_in_the_tab_order(
    visit: Open, page_server: RunningServer, call: str
) -> None:
    tab = visit(page_server, key=page_server.user_key)
    page = tab.home()
    expect(page.get_by_role("link", name=re.compile("^call.wav")).first).to_be_visible()
    assert UNNAMED.findall(page.locator("body").aria_snapshot()) == []
    assert stops(page, 7) == ["skip", "home", "forget", "choose", "record", "language", "speakers"]
    page.keyboard.press("Shift+Tab")
    tab.job(call)
    tree = page.locator("body").aria_snapshot()
    assert UNNAMED.findall(tree) == []
    for landmark in ("banner", "main", "complementary", "search", 'region "Transcript"', 'region "Player"'):
        assert f"- {landmark}" in tree
    # A screen reader continues in the job that was opened.
    page.get_by_role("link", name="New").click()
    page.get_by_role("link", name=re.compile("^call.wav")).first.click()
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    tab.finished()
    found: list[str] = []
    for _ in range(10):
        page.keyboard.press("Tab")
        found.append(page.evaluate("document.activeElement.id || document.activeElement.className || 'other'"))
    expected = ["other", "search", "as-cues", "copy", "button", "delete", "speaker", "speaker", "w", "choose-audio"]
    assert found == expected
    headings = page.get_by_role("heading").evaluate_all("all => all.map(each => Number(each.tagName[1]))")
    assert headings[0] == 1
    assert set(headings[1:]) == {2}


def test_the_focus_is_visible_and_motion_can_be_off(visit: Open, page_server: RunningServer) -> None:
    page = visit(page_server, key=page_server.user_key).home()
    page.emulate_media(reduced_motion="reduce")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.keyboard.press("Tab")
    outline: dict[str, Any] = page.evaluate(
        "(({ outlineStyle, outlineWidth, transitionDuration }) => ({ outlineStyle, outlineWidth, transitionDuration }))"
        "(getComputedStyle(document.activeElement))"
    )
    assert outline == {"outlineStyle": "solid", "outlineWidth": "2px", "transitionDuration": "0s"}
