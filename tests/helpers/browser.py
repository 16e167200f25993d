"""A real Chromium for the tests of the page: the one on the machine, or the one that Playwright has installed.

``python -m tests.helpers.browser`` prints its path, or exits with 1; ``make`` asks this before it installs one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, sync_playwright

__all__ = ["chromium", "find_browser"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
"""Names of the command in distributions."""

FLAGS = (
    "--no-sandbox",  # containers run tests as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_browser(own: str) -> str | None:
    """Return the path of a Chromium, or None; ``own`` is the path of Playwright's."""
    candidates = [*filter(None, map(shutil.which, NAMES)), own]
    return next(filter(_starts, candidates), None)


def _starts(path: str) -> bool:
    """Return whether it is a browser: in some distributions it is a script that only says how to install one."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a headless Chromium with a new profile until the block ends.

    Raises:
        RuntimeError: there is no Chromium on this machine.
    """
    with sync_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
        if path is None:
            raise RuntimeError("There is no Chromium here: run  make browser  (or: playwright install chromium).")
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def main() -> None:
    """Print the path of the browser."""
    with sync_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
    print(path or "no Chromium", file=sys.stdout if path else sys.stderr)
    sys.exit(0 if path else 1)


if __name__ == "__main__":
    main()
