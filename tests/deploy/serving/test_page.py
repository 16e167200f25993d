"""The server's page in a real browser: lists, playground, charts and messages, by mouse, keyboard and phone."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.helpers.browser import chromium
from tests.helpers.cli import PACKAGES
from tests.helpers.handmade import color_bundle, word_bundle
from tests.helpers.page import row, tab_to, tick
from tests.helpers.servers import ADAPTERS, Server, make_served, serving

HOSTILE = "<img src=x onerror=hacked()>"
MANY = 60
"""Adapters besides the three, so that the list is longer than what is shown at first."""
KEY = "sésame öffne dich"

Open = Callable[..., Page]

expect.set_options(timeout=15_000)  # a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("page")
    return {
        **make_served(directory),
        HOSTILE: word_bundle(directory / "hostile", labels=(HOSTILE, "<b>bold</b>", "&lt;")),
        "vectors": word_bundle(directory / "vectors", labels=(), task="feature-extraction"),
        "likeness": color_bundle(directory / "likeness", labels=(), task="image-feature-extraction"),
    }


@pytest.fixture(scope="module")
def server(bundles: dict[str, Path]) -> Iterator[Server]:
    packages = bundles["many"].parent
    with serving(bundles, adapter_dirs=(packages,)) as running:
        assert running.registry is not None
        for number in range(MANY):
            running.registry.load(f"tenant-{number}", "one")
        yield running


@pytest.fixture
def open_page(browser: Browser, server: Server) -> Iterator[Open]:
    """Return a function that opens the page; after the test, the browser's console must hold no errors."""
    complaints: list[str] = []
    contexts = []

    def open_it(url: str = server.url, *, status: int | None = None, width: int = 1280, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.add_init_script("window.hacked = () => { window.wasHacked = true; }")
        page = context.new_page()
        expected = f"the server responded with a status of {status}"  # which the console tells of as an error
        page.on(
            "console",
            lambda said: (
                said.type in ("error", "warning") and expected not in said.text and complaints.append(said.text)
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    yield open_it
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.wasHacked") is None
        context.close()
    assert not complaints


def test_models_are_listed_with_rank_size_task_and_traffic(open_page: Open, server: Server) -> None:
    page = open_page()
    expect(page.locator("#state")).to_have_text(re.compile(r"Serving 6\d models"))
    listed = {card["id"]: card for card in page.request.get(f"{server.url}/v1/models").json()["data"]}
    for name, rank in ADAPTERS.items():
        page.get_by_label("Filter the models").fill(name)
        cells = row(page, name).locator("th, td").all_inner_texts()
        assert cells[1].split("\n") == [name, "in many"]
        assert cells[2:4] == ["text-classification", str(rank)]
        assert cells[4] == f"{listed[name]['bytes'] / 1000:.2f} kB"
        assert cells[5].isdigit()
    page.get_by_label("Filter the models").fill("colors")
    assert row(page, "colors").locator("small .origin").inner_text() == "bundle"
    for column in ("Ask", "Name", "Task", "Rank", "Size", "Traffic", "Unload"):
        expect(page.get_by_role("columnheader", name=column, exact=True)).to_have_count(1)


def test_the_list_is_filtered_and_sorted(open_page: Open) -> None:
    page = open_page()
    names = page.locator("#rows label")
    page.get_by_label("Filter the models").fill("in-no-name")
    expect(page.get_by_text("No model matches.")).to_be_visible()
    page.get_by_label("Filter the models").fill("GREEN many")  # a label of "two" and its bundle
    expect(names).to_have_text(["two"])
    page.get_by_label("Filter the models").fill("")
    page.get_by_label("Task", exact=True).select_option("image-classification")
    expect(names).to_have_text(["colors"])
    page.get_by_label("Task", exact=True).select_option("text-classification")
    rank = page.get_by_role("columnheader", name="Rank")
    rank.get_by_role("button").click()
    expect(rank).to_have_attribute("aria-sort", "descending")
    assert names.all_inner_texts()[:2] == ["three", "two"]
    rank.get_by_role("button").click()
    expect(rank).to_have_attribute("aria-sort", "ascending")
    page.get_by_role("columnheader", name="Name").get_by_role("button").click()
    expect(rank).not_to_have_attribute("aria-sort", re.compile("."))
    tenants = [name for name in names.all_inner_texts() if name.startswith("tenant")]
    assert tenants == [f"tenant-{number}" for number in range(len(tenants))], "numbers in names sort as numbers"


def test_a_long_list_is_shown_in_parts(open_page: Open) -> None:
    page = open_page()
    page.get_by_label("Filter the models").fill("tenant")
    rows = page.locator("#rows tr")
    expect(rows).to_have_count(12)
    more = page.get_by_role("button", name="Show 48 more")
    more.focus()
    page.keyboard.press("Enter")
    expect(rows).to_have_count(MANY)
    expect(rows.nth(12).get_by_role("checkbox")).to_be_focused()
    expect(more).to_be_hidden()


def test_one_text_goes_to_several_models_side_by_side(open_page: Open, server: Server) -> None:
    page = open_page()
    tick(page, "one", "three", "words")
    page.get_by_label("Text", exact=True).fill("w0 w0 w2 w2 w1")
    page.get_by_role("button", name="Ask 3 models").click()
    expect(page.locator("#answers-status")).to_have_text(re.compile(r"3 answers in [\d.]+ m?s\."))
    cards = page.locator("#answers article")
    assert [card.get_by_role("heading").inner_text() for card in cards.all()] == ["one", "three", "words"]
    for card in cards.all():
        assert re.fullmatch(r"[\d.]+ m?s", card.locator(".took").inner_text())
        name = card.get_by_role("heading").inner_text()
        body = {"model": name, "input": "w0 w0 w2 w2 w1"}
        answer = page.request.post(f"{server.url}/classify", data=body).json()["data"][0]
        shown = {
            bar.locator("bdi").inner_text(): bar.locator(".share").inner_text()
            for bar in card.locator(".bars li").all()
        }
        labels = server.registry.model(name).labels  # type: ignore[union-attr]
        assert shown == {label: f"{share:.1%}" for label, share in zip(labels, answer["probs"], strict=True)}
        assert next(iter(shown)) == answer["label"], "the likeliest comes first"


def test_everything_works_from_the_keyboard(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#rows tr").first).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the models")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the models")).to_be_in_viewport()
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_label("Filter the models"))
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "the focus is seen"
    page.keyboard.type("w0rds")
    for _ in range(4):
        page.keyboard.press("Backspace")
    page.keyboard.type("ords")
    tab_to(page, row(page, "words").get_by_role("checkbox"))
    page.keyboard.press("Space")
    tab_to(page, page.get_by_label("Filter the models"), back=True)
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("two")
    tab_to(page, row(page, "two").get_by_role("checkbox"))
    page.keyboard.press("Space")
    tab_to(page, page.get_by_label("Text", exact=True))
    page.keyboard.type("w1 w1")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answers article h3")).to_have_text(["words", "two"])
    expect(page.locator("#answers article").first.locator(".bars li").first).to_contain_text("green")
    tab_to(page, page.get_by_role("button", name="Do not ask words"), back=True)
    page.keyboard.press("Enter")
    expect(page.locator("#chosen li")).to_have_text(re.compile("two"))
    expect(page.get_by_role("button", name="Do not ask two")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_without_scrolling_sideways(open_page: Open, scheme: str) -> None:
    page = open_page(width=390, color_scheme=scheme, has_touch=True)
    expect(page.locator("#rows tr")).to_have_count(6)
    for name in ("one", "vectors", "colors", HOSTILE):
        page.get_by_label("Filter the models").fill(name.partition(" ")[0])
        row(page, name).get_by_role("checkbox").tap()
    expect(row(page, HOSTILE).get_by_text("text-classification").first).to_be_visible()
    page.get_by_label("Text", exact=True).fill("w0 " * 9)
    page.get_by_label("Image", exact=True).set_input_files(_image((0, 0, 255)))
    expect(page.locator("#preview")).to_be_visible()
    page.get_by_role("button", name="Ask 4 models").tap()
    expect(page.locator("#answers-status")).to_contain_text("4 answers")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 390).map((e) => e.outerHTML)"
    )
    assert not wide
    grounds = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", grounds)[0]) > 128) == (scheme == "light")


def test_charts_follow_the_traffic(open_page: Open, server: Server) -> None:
    page = open_page()
    page.get_by_label("Filter the models").fill("three")
    expect(page.locator("#batches-chart")).to_have_attribute("aria-label", re.compile("."))
    before = int(row(page, "three").locator(".traffic").inner_text())
    for _ in range(5):
        page.request.post(f"{server.url}/classify", data={"model": "three", "input": ["w0 w1"] * 16})
    expect(row(page, "three").locator(".traffic")).to_have_text(str(before + 80))
    expect(page.locator("#latency-chart")).to_have_attribute(
        "aria-label", re.compile(r"Latency over the last minute: p50 [\d.]+ m?s, p90 [\d.]+ m?s, p99 [\d.]+ m?s")
    )
    expect(page.locator("#latency-chart .line-2").first).to_be_attached()
    expect(page.locator("#requests-chart .column").last).to_be_visible()
    sixteen = page.locator("#batches-chart .column", has=page.locator("title", has_text=re.compile(r"^16: ")))
    expect(sixteen).to_be_attached()


def test_nothing_is_polled_while_the_tab_is_hidden(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#rows tr").first).to_be_visible()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.away, configurable: true})")
    page.evaluate("window.away = true; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(200)
    asked.clear()
    page.wait_for_timeout(2500)
    assert not asked
    page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(300)
    assert any(url.endswith("/stats") for url in asked)


def test_names_labels_and_errors_are_text_whatever_they_hold(open_page: Open) -> None:
    page = open_page(status=400)
    page.get_by_label("Filter the models").fill("img")
    expect(page.locator("#rows label")).to_have_text([HOSTILE])
    page.locator("#rows input").check()
    page.get_by_label("Text", exact=True).fill("w1 </script><script>hacked()</script>")
    page.get_by_role("button", name="Ask 1 model").click()
    expect(page.locator("#answers .bars bdi")).to_have_text(["<b>bold</b>", HOSTILE, "&lt;"])
    page.get_by_text("Load an adapter").click()
    page.get_by_label("Name", exact=True).fill(HOSTILE)
    page.get_by_label("Directory").fill("one")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#load-status")).to_contain_text(f"'{HOSTILE}' cannot name an adapter")
    assert page.locator("main img:not(#preview), main b b, main script").count() == 0


def test_an_error_is_one_sentence_on_its_models_card(open_page: Open) -> None:
    page = open_page(status=400)
    tick(page, "one", "two")
    page.get_by_label("Text", exact=True).fill("w" * 100_001)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answers-status")).to_have_text("2 failed.")
    expect(page.locator("#answers .error")).to_have_text(
        ["Input 1 has 100001 characters; the limit is 100000 (--max-characters)."] * 2
    )


def test_what_is_missing_is_asked_for(open_page: Open) -> None:
    page = open_page()
    expect(page.locator("#rows tr").first).to_be_visible()
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answers-status")).to_have_text("Tick a model in the list first.")
    expect(page.get_by_label("Filter the models")).to_be_focused()
    tick(page, "one")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#answers-status")).to_have_text("Type a text first.")
    expect(page.get_by_label("Text", exact=True)).to_be_focused()


def test_an_image_is_classified_and_embedded(open_page: Open) -> None:
    page = open_page()
    tick(page, "colors", "likeness")
    for label in ("Text", "Second text"):
        expect(page.get_by_label(label, exact=True)).to_be_hidden()
    page.get_by_label("Image", exact=True).set_input_files(_image((0, 255, 0)))
    expect(page.get_by_alt_text("The chosen image")).to_be_visible()
    page.get_by_role("button", name="Ask 2 models").click()
    expect(page.locator("#answers .bars li").first).to_contain_text("green")
    expect(page.locator("#answers .numbers")).to_have_text("-1.000  1.000  -1.000")


def test_a_photo_too_large_for_a_request_is_made_smaller(open_page: Open) -> None:
    page = open_page()
    tick(page, "colors")
    size = (1700, 650)
    noise = Image.frombytes("L", size, random.Random(0).randbytes(size[0] * size[1]))
    red = Image.merge("RGB", (noise.point(lambda value: 128 + value // 2), noise, noise))
    content = io.BytesIO()
    red.save(content, "PNG", compress_level=0)
    assert len(content.getvalue()) > 3_000_000
    page.get_by_label("Image", exact=True).set_input_files(
        {"name": "photo.png", "mimeType": "image/png", "buffer": content.getvalue()}
    )
    expect(page.locator("#preview")).to_have_attribute("src", re.compile(r"^data:image/jpeg;base64,"))
    page.get_by_role("button", name="Ask 1 model").click()
    expect(page.locator("#answers .bars li").first).to_contain_text("red")


def test_vectors_are_compared(open_page: Open) -> None:
    page = open_page()
    tick(page, "vectors")
    page.get_by_label("Text", exact=True).fill("w0 w1")
    page.get_by_label("Second text").fill("w0")
    page.keyboard.press("Control+Enter")
    card = page.locator("#answers article")
    expect(card).to_contain_text("3 dimensions")
    expect(card.locator(".numbers")).to_have_text(re.compile(r"^\d+\.\d{3} +\d+\.\d{3} +0\.000$"))
    expect(card).to_contain_text(re.compile(r"Similarity of the two texts\s*0\.707"))


def test_adapters_come_and_go(open_page: Open, server: Server) -> None:
    page = open_page()
    page.get_by_text("Load an adapter").click()
    page.get_by_label("Name", exact=True).fill("fresh")
    page.get_by_label("Directory").fill("two")
    page.get_by_role("button", name="Load", exact=True).click()
    expect(page.locator("#load-status")).to_have_text("Loaded fresh.")
    page.get_by_label("Filter the models").fill("fresh")
    expect(page.locator("#rows label")).to_have_text(["fresh"])
    tick(page, "fresh")
    page.get_by_role("button", name="Unload fresh").click()
    page.get_by_role("button", name="Confirm: unload fresh").click()
    expect(page.locator("#load-status")).to_have_text("Unloaded fresh.")
    expect(page.locator("#rows label")).to_have_count(0)
    expect(page.locator("#chosen li")).to_have_count(0)
    assert "fresh" not in {card["id"] for card in page.request.get(f"{server.url}/v1/models").json()["data"]}


def test_a_server_with_a_key_is_opened_with_it(open_page: Open, bundles: dict[str, Path]) -> None:
    with serving({"words": bundles["words"]}, api_key=KEY) as locked:
        page = open_page(locked.url, status=401)
        expect(page.get_by_role("heading", name="This server needs a key")).to_be_visible()
        expect(page.get_by_label("Key")).to_be_focused()
        expect(page.locator("#main")).to_be_hidden()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("The server does not accept this key.")).to_be_visible()
        page.get_by_label("Key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#state")).to_have_text("Serving 1 model")
        page.get_by_label("Text", exact=True).fill("w2")  # the only model is ticked already
        page.keyboard.press("Control+Enter")
        expect(page.locator("#answers .bars li").first).to_contain_text("blue")
        page.get_by_text("Load an adapter").click()
        expect(page.locator("#no-loading")).to_have_text(re.compile("its bundles have theirs merged"))
        expect(page.get_by_role("button", name="Load", exact=True)).to_be_hidden()
        assert page.evaluate("[localStorage.length, document.cookie, location.href]") == [0, "", f"{locked.url}/"]
        page.reload()
        expect(page.locator("#state")).to_have_text("Serving 1 model")
        page.get_by_role("button", name="Forget key").click()
        expect(page.get_by_label("Key")).to_be_visible()
        assert page.evaluate("sessionStorage.length") == 0


def test_a_server_that_has_gone_is_told_and_looked_for(browser: Browser, bundles: dict[str, Path]) -> None:
    page = browser.new_page()
    with serving({"words": bundles["words"]}, drain=1) as short:
        page.goto(short.url)
        expect(page.locator("#state")).to_have_text("Serving 1 model")
    expect(page.locator("#state")).to_have_text("Unreachable")
    expect(page.get_by_role("alert").first).to_have_text(
        "The server does not answer. This page tries again every few seconds."
    )
    page.close()


def test_the_page_runs_nothing_but_its_own_files(open_page: Open, server: Server) -> None:
    response = open_page().request.get(server.url)
    policy, html = response.headers["content-security-policy"], response.text()
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?:|<script(?![^>]*src=)", html)
    files = PACKAGES["rmlora_deploy"] / "serving" / "static"
    for file in files.iterdir():
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", file.read_text()), file.name
        assert not re.search(r"https?://(?!www\.w3\.org/)", file.read_text()), file.name


def _image(color: tuple[int, int, int]) -> Any:
    content = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(content, "PNG")
    return {"name": "image.png", "mimeType": "image/png", "buffer": content.getvalue()}
