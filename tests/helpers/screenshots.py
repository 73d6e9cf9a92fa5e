"""Screenshots of the app, with a finished tiny run in the runs folder:

    PYTHONPATH=. python tests/helpers/screenshots.py [--runs-dir runs] [--all FOLDER]

Without --all, it makes the two of docs/images again; with it, all tabs: light, dark, on a phone.
"""

import argparse
from pathlib import Path

import browser

from selfreward_lite.bench.app import running

IMAGES = Path(__file__).parents[2] / "docs" / "images"
STYLES = {
    "light": (browser.WIDE, "light"),
    "dark": (browser.WIDE, "dark"),
    "phone": (browser.PHONE, "light"),
}
WAIT = 2500  # milliseconds until plots are drawn


def chat(page) -> None:
    browser.send(page, "Reverse the letters d o h k.")
    page.get_by_text("scores itself").last.click()


def compare(page) -> None:
    browser.compare(page, "Reverse the letters d o h k.", "Skip")


def nothing(page) -> None:
    pass


def explore(page) -> None:
    page.get_by_label("a pair", exact=True).click()
    page.wait_for_timeout(WAIT)
    browser.open_prompt(page, 0)


TABS = {"Chat": chat, "Compare": compare, "Run": nothing, "Explore": explore, "Progress": nothing}


def screenshot(chromium, address: str, tab: str, style: str, path: Path) -> None:
    """Take one screenshot of one tab."""
    size, theme = STYLES[style]
    page = browser.visit(chromium, address, size, theme)
    browser.open_tab(page, tab)
    page.wait_for_timeout(WAIT)
    TABS[tab](page)
    page.wait_for_timeout(WAIT)
    page.screenshot(path=path, full_page=tab not in ("Chat", "Progress") or style == "phone")
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--all", type=Path)
    given = parser.parse_args()
    with running(given.runs_dir.absolute()) as (client, _, _), browser.browsing() as chromium:
        if given.all is None:
            IMAGES.mkdir(exist_ok=True)
            screenshot(chromium, client.src, "Chat", "light", IMAGES / "chat.png")
            screenshot(chromium, client.src, "Progress", "dark", IMAGES / "progress.png")
            return
        given.all.mkdir(parents=True, exist_ok=True)
        for tab in TABS:
            for style in STYLES:
                screenshot(
                    chromium, client.src, tab, style, given.all / f"{tab.lower()}-{style}.png"
                )
                print(given.all / f"{tab.lower()}-{style}.png")


if __name__ == "__main__":
    main()
