"""The page's playground asks for a second text where a model reads pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import chromium
from tests.helpers.handmade import word_bundle
from tests.helpers.page import tick
from tests.helpers.servers import Server, serving

expect.set_options(timeout=15_000)  # a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("page")
    bundles = {name: word_bundle(directory / name) for name in ("nli", "spam", "words")}
    for name, form in (("nli", "pair"), ("spam", "text")):
        file = bundles[name] / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["adapter"]["input_form"] = form
        file.write_text(json.dumps(manifest))
    with serving(bundles) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    made = browser.new_page()
    made.goto(server.url)
    yield made
    made.close()


def best(page: Page, name: str) -> str:
    """Return the first label on a model's card."""
    card = page.locator(".answer").filter(has=page.get_by_role("heading", name=name, exact=True))
    expect(card.locator(".bars li").first).to_be_visible()
    return card.locator("bdi").nth(1).inner_text()


def test_a_model_that_reads_pairs_needs_both_texts(page: Page) -> None:
    tick(page, "nli", "spam")
    second = page.locator("#second")
    expect(page.locator("#second-hint")).to_have_text("of the pair")
    page.locator("#text").fill("w0")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answers-status")).to_have_text("Type a second text: the model reads pairs.")
    expect(second).to_be_focused()
    second.fill("w1 w1")
    page.keyboard.press("Control+Enter")
    assert (best(page, "nli"), best(page, "spam")) == ("green", "red")  # the second reads the first text alone


def test_a_model_that_does_not_say_takes_a_second_text_if_there_is_one(page: Page) -> None:
    tick(page, "words")
    expect(page.locator("#second-hint")).to_have_text("of a pair, optional")
    page.locator("#text").fill("w0")
    page.keyboard.press("Control+Enter")
    assert best(page, "words") == "red"
    page.locator("#second").fill("w2 w2")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".answer .bars bdi").first).to_have_text("blue")


def test_a_model_of_single_texts_has_one_box(page: Page) -> None:
    tick(page, "spam")
    expect(page.locator("#second-field")).to_be_hidden()
