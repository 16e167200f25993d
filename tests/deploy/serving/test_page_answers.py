"""The page shows an answer as what it is: shares for labels, plain numbers for one score and for regression."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from rmlora_deploy import export
from tests.helpers.answers import KINDS, TEXTS, make_adapter, make_base, pipeline_answers
from tests.helpers.browser import chromium
from tests.helpers.page import tick
from tests.helpers.servers import serving

ASKED = ("one label", "several labels", "one score", "two numbers")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def test_answers_of_every_kind(browser: Browser, tmp_path: Path) -> None:
    bundles, expected = {}, {}
    for kind in ASKED:
        base = make_base(tmp_path / kind / "base", kind)
        adapter = make_adapter(base, tmp_path / kind / "adapter")
        bundles[kind] = export(base, adapter, tmp_path / kind / "bundle", verify=False).path
        (expected[kind],) = pipeline_answers(base, adapter, TEXTS[:1])
    with serving(bundles) as server:
        page = browser.new_page()
        page.goto(server.url)
        tick(page, *ASKED)
        page.locator("#text").fill(TEXTS[0])
        page.get_by_role("button", name=f"Ask {len(ASKED)} models").click()
        for kind in ASKED:
            card = page.locator(".answer").filter(has=page.get_by_role("heading", name=kind, exact=True))
            ranked = list(expected[kind].items())
            shares = kind in ("one label", "several labels")
            if not shares:
                ranked.sort(key=lambda item: KINDS[kind][1].index(item[0]))
            shown = [f"{score:.1%}" if shares else f"{float(f'{score:.4g}'):g}" for _, score in ranked]
            expect(card.locator("li bdi")).to_have_text([label for label, _ in ranked], timeout=30_000)
            expect(card.locator("li .share")).to_have_text(shown)
            assert card.locator(".bars").count() == shares and card.locator(".scores").count() == (not shares)
        page.close()
