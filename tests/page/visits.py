"""A visit to the page: a browser's tab of its own, driven as a person would, that nothing may go wrong in unseen."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

__all__ = ["Visit"]

# Milliseconds: long enough for a machine that is busy with something else; no test waits for it to pass.
PATIENCE = 90_000
DESK = (1200, 860)
PHONE = (390, 844)
# Chromium's messages about an error response and about an unreachable server; some tests expect both.
NOT_LOADED = "Failed to load resource"


class Visit:
    """One tab.

    Args:
        browser: to open it in.
        url: of the page, without a slash at the end.
        key: that the session already has; none to be asked for one.
        screenshots: the directory for pictures; None for no pictures.
        language: of the browser.
        size: of the window in CSS pixels.
        dark: whether the system is.
        touch: whether it is a phone.

    Attributes:
        page: the tab.
        complaints: errors of scripts, violations of the policy, and assets that were not found.
    """

    def __init__(
        self,
        browser: Browser,
        url: str,
        screenshots: Path | None,
        *,
        key: str = "",
        language: str = "en-US",
        size: tuple[int, int] = DESK,
        dark: bool = False,
        touch: bool = False,
    ) -> None:
        self.url = url
        self.complaints: list[str] = []
        self._screenshots = screenshots
        self.context: BrowserContext = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            locale=language,
            color_scheme="dark" if dark else "light",
            is_mobile=touch,
            has_touch=touch,
            accept_downloads=True,
            # The tests make the certificate of a proxy themselves.
            ignore_https_errors=True,
        )
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        if key:
            self.context.add_init_script(f"sessionStorage.setItem('whisper-api-key', '{key}')")
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        if message.text.startswith(NOT_LOADED) and "/assets/" not in message.location.get("url", ""):
            return
        self.complaints.append(message.text)

    def home(self) -> Page:
        """Go to the page as it is without a job."""
        self.page.goto(f"{self.url}/")
        return self.page

    def job(self, job_id: str) -> Page:
        """Go to a job's transcript, and wait until it is there."""
        self.page.goto(f"{self.url}/#{job_id}")
        self.finished()
        return self.page

    def finished(self) -> None:
        """Wait until a whole transcript is shown."""
        self.page.locator("#tools").wait_for()

    def again(self) -> None:
        """Load the page anew."""
        self.page.reload()

    def picture(self, name: str, *, full: bool = False) -> None:
        """Keep a picture of what is seen now, where pictures are asked for.

        Args:
            name: of the state.
            full: the whole page, not only what the window shows.
        """
        if self._screenshots is not None:
            self.page.screenshot(path=self._screenshots / f"{name}.png", full_page=full, animations="disabled")

    @property
    def words(self) -> list[str]:
        """The words of the transcript."""
        return self.page.locator("#transcript .w").all_text_contents()

    @property
    def overflow(self) -> int:
        """Number of pixels that the page is wider than the window."""
        wider: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return max(0, wider)
