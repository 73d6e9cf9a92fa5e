"""Pictures of every tab: `PYTHONPATH=. python tests/helpers/screenshots.py [--runs-dir runs] [--all FOLDER]`, with a finished run there.

Without --all it makes the two of the README again; with it, every tab in light, dark and on a telephone.
"""

import argparse
from pathlib import Path

import browser

from selfreward_lite.bench.app import running

README = Path(__file__).parents[2] / ".github"
LOOKS = {
    "light": (browser.WIDE, "light"),
    "dark": (browser.WIDE, "dark"),
    "phone": (browser.PHONE, "light"),
}
QUIET = 2500  # milliseconds until plots are drawn


def chat(page) -> None:
    browser.send(page, "Reverse the letters d o h k.")
    page.get_by_text("scores itself").last.click()


def compare(page) -> None:
    browser.compare(page, "Reverse the letters d o h k.", "Skip")


def nothing(page) -> None:
    pass


def explore(page) -> None:
    page.get_by_label("a pair", exact=True).click()
    page.wait_for_timeout(QUIET)
    browser.open_prompt(page, 0)


TABS = {"Chat": chat, "Compare": compare, "Run": nothing, "Explore": explore, "Progress": nothing}


def picture(chromium, address: str, tab: str, look: str, path: Path) -> None:
    """Take one picture of one tab."""
    size, theme = LOOKS[look]
    page = browser.visit(chromium, address, size, theme)
    browser.open_tab(page, tab)
    page.wait_for_timeout(QUIET)
    TABS[tab](page)
    page.wait_for_timeout(QUIET)
    page.screenshot(path=path, full_page=tab not in ("Chat", "Progress") or look == "phone")
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--all", type=Path)
    given = parser.parse_args()
    with running(given.runs_dir.absolute()) as (client, _, _), browser.browsing() as chromium:
        if given.all is None:
            README.mkdir(exist_ok=True)
            picture(chromium, client.src, "Chat", "light", README / "chat.png")
            picture(chromium, client.src, "Progress", "dark", README / "progress.png")
            return
        given.all.mkdir(parents=True, exist_ok=True)
        for tab in TABS:
            for look in LOOKS:
                picture(chromium, client.src, tab, look, given.all / f"{tab.lower()}-{look}.png")
                print(given.all / f"{tab.lower()}-{look}.png")


if __name__ == "__main__":
    main()
