"""Answers over HTTP, as Hugging Face's Inference API gives them, and on the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from playwright.sync_api import expect

from rmlora_deploy import export, load
from rmlora_deploy.serving.reload import reload_bundle
from tests.helpers.browser import chromium
from tests.helpers.cli import fails, run
from tests.helpers.page import tick
from tests.helpers.questions import LONG, PAIRS, make_question_adapter, make_question_base
from tests.helpers.servers import Server, ask, serving

NAMES = ("sure", "unsure")
"""Two adapters, the second of which learned that there may be no answer."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("served-questions")
    base = make_question_base(directory / "base")
    for number, name in enumerate(NAMES):
        adapter = make_question_adapter(base, directory / name, seed=number)
        (adapter / "rmlora.json").write_text(
            f'{{"format_version": 1, "task": "question-answering", "no_answer": {str(bool(number)).lower()}, "max_length": 40}}'
        )
    export(base, {name: directory / name for name in NAMES}, directory / "both", verify=False)
    return directory


@pytest.fixture(scope="module")
def server(made: Path) -> Iterator[Server]:
    with serving({"both": made / "both"}, max_inputs=40, max_characters=4000) as running:
        yield running


def expected(made: Path, name: str, pair: tuple[str, str], **options: Any) -> list[tuple[str, int, int]]:
    """Return what the library finds."""
    answerer: Any = load(made / "both")
    return [(found.text, found.start, found.end) for found in answerer.answer([pair], name, **options)[0]]


def plain(answers: Any) -> list[tuple[str, int, int]]:
    """Return the answers of a response."""
    return [
        (item["answer"], item["start"], item["end"]) for item in (answers if isinstance(answers, list) else [answers])
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pair", PAIRS)
def test_an_answer_is_that_of_the_library(name: str, pair: tuple[str, str], server: Server, made: Path) -> None:
    inputs = {"question": pair[0], "context": pair[1]}
    for path, body in ((f"/models/{name}", {"inputs": inputs}), ("/predict", {"model": name, "inputs": inputs})):
        answer = ask(server.url, path, body)
        assert answer.status == 200, answer.text
        assert plain(answer.body) == expected(made, name, pair)


def test_an_adapter_that_learned_that_there_may_be_no_answer_is_taken_over(made: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(made / "both", tmp_path / "both"))
    with serving({"both": bundle}) as server:
        assert server.registry is not None
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["adapters"]["sure"]["no_answer"] = True
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        assert reload_bundle(server.registry, server.registry.runners["both"]) == "exchanged sure"
        assert server.registry.model("sure").no_answer


def test_an_adapter_that_names_another_base_is_loaded_with_a_warning(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = Path(shutil.copytree(made / "sure", tmp_path / "foreign"))
    config = json.loads((foreign / "adapter_config.json").read_text())
    with serving({"both": made / "both"}, adapter_dirs=(tmp_path,)) as server:
        for name, base, warned in (("same", "someone/base", False), ("other", "someone/another", True)):
            (foreign / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
            assert ask(server.url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": "foreign"}).status == 200
            assert (f"adapter '{name}' was made for 'someone/another'" in caplog.text) == warned


def test_hugging_faces_client_reads_it(server: Server, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is on this machine
    client = InferenceClient(model=f"{server.url}/models/sure")
    one: Any = client.question_answering(question=PAIRS[0][0], context=PAIRS[0][1])
    assert [(one.answer, one.start, one.end)] == expected(made, "sure", PAIRS[0])
    several: Any = client.question_answering(
        question=PAIRS[2][0], context=LONG, top_k=3, max_answer_len=2, handle_impossible_answer=True
    )
    want = expected(made, "sure", PAIRS[2], top=3, longest=2, no_answer=True)
    assert [(item.answer, item.start, item.end) for item in several] == want


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/models/sure", {"inputs": "which lamp?"}, 400, "answers questions: give 'inputs' as"),
        ("/predict", {"model": "sure", "inputs": ["which", "lamp"]}, 400, "answers questions: give 'inputs' as"),
        ("/models/sure", {"inputs": {"question": "which?"}}, 400, "inputs.context: Field required"),
        ("/models/sure", {"inputs": [{"question": "which?", "context": "this"}]}, 400, "a request asks one question"),
        (
            "/predict",
            {"model": "sure", "inputs": [{"question": "a", "context": "b"}]},
            400,
            "a request asks one question",
        ),
        ("/models/sure", {"inputs": {"question": "which?", "context": " "}}, 400, "The second text of pair 1 is empty"),
        ("/models/sure", {"inputs": {"question": "lamp " * 30, "context": LONG}}, 400, "shorten the question"),
        ("/models/sure", {"inputs": {"question": "lamp?", "context": LONG * 9}}, 400, "windows; the limit is 40"),
        (
            "/models/sure",
            {"inputs": {"question": "lamp?", "context": LONG}, "parameters": {"ignore_labels": ["a"]}},
            400,
            "'ignore_labels' is no parameter of answers",
        ),
        (
            "/models/sure",
            {"inputs": {"question": "lamp?", "context": LONG}, "parameters": {"doc_stride": 5}},
            400,
            "doc_stride",
        ),
        ("/classify", {"model": "sure", "input": [["which?", "lamp"]]}, 400, "has no labels: use POST /predict"),
        ("/rerank", {"model": "sure", "query": "which?", "texts": ["lamp"]}, 400, "scores no pairs"),
        ("/v1/embeddings", {"model": "sure", "input": "lamp"}, 400, "has no embeddings: use POST /predict"),
    ],
)
def test_what_cannot_be_answered(path: str, body: Any, status: int, message: str, server: Server) -> None:
    answer = ask(server.url, path, body)
    assert answer.status == status and message in answer.message, answer.text


def test_a_load_test_asks_questions(server: Server) -> None:
    words = ("loadtest", server.url, "--model", "sure", "--seconds", "1", "--warmup", "0", "--clients", "2")
    done = run(*words, "--json")
    assert done.code == 0 and '"errors": {}' in done.stdout, done.stdout + done.stderr
    fails(2, "is asked one question in a request", *words, "--rows", "2")


def test_the_page_marks_answers(server: Server, made: Path) -> None:
    question, context = PAIRS[0][0], f"😀 {PAIRS[0][1]}"  # one character, two units of a JavaScript string
    with chromium() as browser:
        page = browser.new_page()
        page.goto(server.url)
        tick(page, *NAMES)
        page.locator("#text").fill(question)
        page.locator("#second").fill(context)
        page.get_by_role("button", name="Ask 2 models").click()
        for name in NAMES:
            card = page.locator(".answer").filter(has=page.get_by_role("heading", name=name, exact=True))
            (want,) = expected(made, name, (question, context))
            shown = card.locator("mark > bdi") if want[0] else card.locator(".hint")
            expect(shown.first).to_contain_text(want[0] or "No answer", timeout=30_000)
        page.close()
