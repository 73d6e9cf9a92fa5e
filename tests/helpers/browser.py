"""The system's Chromium for tests and screenshots, through Playwright, and steps on the page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")  # Debian's package; Playwright's own would be a download
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
WIDE, PHONE = (1200, 900), (400, 860)
SECONDS = 1000.0  # Playwright counts in milliseconds


@contextmanager
def browsing() -> Iterator:
    """Yield a browser, which ends with the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), headless=True, args=ARGUMENTS
        )
        yield browser
        browser.close()


def visit(browser, address: str, size: tuple[int, int] = WIDE, theme: str = "light") -> Page:
    """Open the app in a new window."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(f"{address}?__theme={theme}", wait_until="load")
    page.get_by_placeholder("Write a message").wait_for()
    return page


def open_tab(page: Page, name: str) -> None:
    """Go to a tab; on a narrow screen some are behind three dots."""
    tab = page.get_by_role("tab", name=name)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()


def send(page: Page, text: str) -> None:
    """Send a message in the chat, and wait until the reply has its score."""
    before = page.get_by_text("scores itself").count()
    box = page.get_by_placeholder("Write a message")
    box.fill(text)
    box.press("Enter")
    page.wait_for_function(
        "count => [...document.querySelectorAll('#talk *')]"
        ".filter(one => one.children.length == 0 && "
        "/scores itself \\d|no score, since none/.test(one.textContent)).length > count",
        arg=before,
        timeout=60 * SECONDS,
    )


def retry(page: Page) -> None:
    """Have the first reply written anew, and wait until it has its score."""
    page.evaluate(
        """() => {
            const isBusy = () => [...document.querySelectorAll('button')]
                .some(one => one.textContent.trim() == 'Stop' && one.offsetParent)
            window.busy = new Promise(done => new MutationObserver(() => isBusy() && done())
                .observe(document.body, {subtree: true, childList: true, attributes: true}))
        }"""
    )
    page.get_by_label("Retry").first.click()
    page.evaluate("() => window.busy")
    page.get_by_role("button", name="Send", exact=True).wait_for(timeout=60 * SECONDS)


def compare(page: Page, text: str, choice: str) -> None:
    """Have both models answer, vote, and wait for the judge."""
    page.get_by_placeholder("Write a prompt for both models").fill(text)
    page.get_by_role("button", name="Ask both").click()
    button = page.get_by_role("button", name=choice)
    page.wait_for_function(
        "name => [...document.querySelectorAll('button')]"
        ".some(one => one.textContent.trim() == name && !one.disabled)",
        arg=choice,
        timeout=60 * SECONDS,
    )
    button.click()
    page.locator("#verdict", has_text="says:").wait_for(timeout=60 * SECONDS)


def open_prompt(page: Page, row: int = 1) -> None:
    """Click a prompt in the list, and wait for its responses."""
    page.locator(f"#hits [data-testid=cell-{row}-0]").click()
    page.locator("#prompt textarea").wait_for()
    page.locator("#answers [data-testid=cell-0-0]").wait_for()
