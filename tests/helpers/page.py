"""Using the server's page as a person does."""

from __future__ import annotations

from playwright.sync_api import Locator, Page


def row(page: Page, name: str) -> Locator:
    """Return the line of the model ``name`` in the list."""
    return page.locator("#rows tr").filter(has=page.get_by_label(name, exact=True))


def tick(page: Page, *names: str) -> None:
    """Select models by name."""
    for name in names:
        page.get_by_label("Filter the models").fill(name)
        page.get_by_label(name, exact=True).check()


def tab_to(page: Page, wanted: Locator, *, back: bool = False) -> None:
    """Press Tab until ``wanted`` has the focus."""
    for _ in range(60):
        if wanted.evaluate("(element) => element === document.activeElement"):
            return
        page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError("Tab does not lead there")
