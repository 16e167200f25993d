"""Entities over HTTP, as Hugging Face's Inference API gives them, and on the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient
from playwright.sync_api import expect

from rmlora_deploy import export, load
from tests.helpers.browser import chromium
from tests.helpers.cli import fails, run
from tests.helpers.page import tick
from tests.helpers.servers import Server, ask, serving
from tests.helpers.taggers import ROOMS, SLOTS, TEXTS, make_tag_adapter, make_tag_base

LABELS = {"slots": SLOTS, "rooms": ROOMS}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served-tokens")
    base = make_tag_base(directory / "base")
    for number, (name, labels) in enumerate(LABELS.items()):
        adapter = make_tag_adapter(base, directory / name, labels, seed=number)
        (adapter / "rmlora.json").write_text(
            f'{{"format_version": 1, "task": "token-classification", "labels": {list(labels)!r}}}'.replace("'", '"')
        )
    export(base, {name: directory / name for name in LABELS}, directory / "both", verify=False)
    return directory


@pytest.fixture(scope="module")
def server(made: Path) -> Iterator[Server]:
    with serving({"both": made / "both"}, max_inputs=8, max_characters=2000) as running:
        yield running


def expected(made: Path, name: str, text: str, **options: Any) -> list[dict[str, Any]]:
    """Return what the library finds, in the form of Hugging Face's API."""
    tagger: Any = load(made / "both")
    (answer,) = tagger.tag([text], name, **options)
    return [
        {"entity_group": item.label, "score": item.score, "word": item.text, "start": item.start, "end": item.end}
        for item in answer.entities
    ]


def same(got: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
    """Assert that two answers are the same up to rounding of the scores."""
    assert [{**item, "score": 0} for item in got] == [{**item, "score": 0} for item in want]
    np.testing.assert_allclose([item["score"] for item in got], [item["score"] for item in want], atol=1e-5)


@pytest.mark.parametrize("name", LABELS)
def test_one_text_gets_a_list_and_several_get_lists(name: str, server: Server, made: Path) -> None:
    one = ask(server.url, "/predict", {"model": name, "inputs": TEXTS[0]})
    assert one.status == 200 and one.body
    same(one.body, expected(made, name, TEXTS[0]))
    several = ask(server.url, "/predict", {"model": name, "inputs": TEXTS})
    for got, text in zip(several.body, TEXTS, strict=True):
        same(got, expected(made, name, text))


def test_hugging_faces_client_reads_it(server: Server, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is on this machine
    client = InferenceClient(model=f"{server.url}/models/slots")
    found = client.token_classification(TEXTS[0])
    got = [{key: getattr(item, key) for key in ("entity_group", "score", "word", "start", "end")} for item in found]
    same(got, expected(made, "slots", TEXTS[0]))
    simple = client.token_classification(TEXTS[2], aggregation_strategy="simple", ignore_labels=["room"])
    want = [item for item in expected(made, "slots", TEXTS[2], aggregation="simple") if item["entity_group"] != "room"]
    assert [(item.start, item.end) for item in simple] == [(item["start"], item["end"]) for item in want]


def test_long_texts_are_read_as_far_as_the_model_goes(server: Server, made: Path) -> None:
    text = "turn on the lamp " * 110
    same(ask(server.url, "/predict", {"model": "rooms", "inputs": text}).body, expected(made, "rooms", text))


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/predict", {"inputs": "on"}, 400, "name one with 'model'"),
        (
            "/predict",
            {"model": "slots", "inputs": [["on", "off"]]},
            400,
            "Input 1 is a list of 2: 'slots' reads single texts",
        ),
        ("/predict", {"model": "slots", "inputs": "on", "raw_scores": True}, 400, "has no 'raw_scores'"),
        ("/predict", {"model": "slot", "inputs": "on"}, 404, "nearest"),
        ("/models/nothing", {"inputs": "on"}, 404, "There is no model"),
        ("/predict", {"model": "slots", "inputs": " "}, 400, "Text 1 is empty"),
        ("/predict", {"model": "slots", "inputs": ["on"] * 9}, 400, "1 to 8 inputs, not 9"),
        ("/predict", {"model": "slots", "inputs": "on " * 700}, 400, "the limit is 2000"),
        ("/predict", {"model": "slots", "inputs": "on", "parameters": {"stride": 5}}, 400, "parameters.stride"),
        (
            "/predict",
            {"model": "slots", "inputs": "on", "parameters": {"aggregation_strategy": "max"}},
            400,
            "'first' or",
        ),
        ("/predict", {"model": "slots"}, 400, "inputs: Field required"),
        ("/classify", {"model": "slots", "input": "on"}, 400, "has no labels: use POST /predict"),
        ("/v1/embeddings", {"model": "slots", "input": "on"}, 400, "has no embeddings: use POST /predict"),
    ],
)
def test_what_cannot_be_answered(path: str, body: Any, status: int, message: str, server: Server) -> None:
    answer = ask(server.url, path, body)
    assert answer.status == status and message in answer.message, answer.text


def test_raw_tensors_give_the_scores_of_tokens(server: Server) -> None:
    ids = {"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [2, 5, 3]}
    mask = {"name": "attention_mask", "shape": [1, 3], "datatype": "INT64", "data": [1, 1, 1]}
    answer = ask(server.url, "/v2/models/rooms/infer", {"inputs": [ids, mask]})
    assert answer.status == 200 and answer.body["outputs"][0]["shape"] == [1, 3, 3], answer.text


def test_a_load_test_asks_for_entities(server: Server, tmp_path: Path) -> None:
    done = run(
        "loadtest", server.url, "--model", "slots", "--seconds", "1", "--warmup", "0", "--clients", "2", "--json"
    )
    assert done.code == 0 and '"errors": {}' in done.stdout, done.stdout + done.stderr
    (tmp_path / "expected.json").write_text('{"texts": ["on"], "answers": {"slots": [[1.0]]}, "tolerance": 1}')
    words = ("loadtest", server.url, "--model", "slots", "--reference", tmp_path / "expected.json", "--seconds", "1")
    fails(2, "gives parts of texts: leave it out", *words)


def test_the_page_marks_entities(server: Server, made: Path) -> None:
    text = f"😀 {TEXTS[0]}"  # one character, two units of a JavaScript string
    with chromium() as browser:
        page = browser.new_page()
        page.goto(server.url)
        tick(page, "slots", "rooms")
        page.locator("#text").fill(text)
        page.get_by_role("button", name="Ask 2 models").click()
        for name in ("slots", "rooms"):
            card = page.locator(".answer").filter(has=page.get_by_role("heading", name=name, exact=True))
            want = expected(made, name, text)
            expect(card.locator("mark > bdi")).to_have_text([item["word"] for item in want], timeout=30_000)
            expect(card.locator("mark small")).to_have_text([item["entity_group"] for item in want])
        page.close()
