"""Pairs of texts over HTTP: /classify, and the forms of text-embeddings-inference, Cohere, Jina and vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient

from rmlora.errors import ConfigError
from rmlora_deploy.inference import Classifier
from rmlora_deploy.inference.pair_score import score_index
from rmlora_deploy.loadtest.load_plan import LoadPlan, input_of
from tests.helpers.cli import run
from tests.helpers.handmade import color_bundle, word_bundle
from tests.helpers.servers import Answer, Server, ask, serving

NLI = ("no", "yes", "maybe")
"""Each of w0, w1 and w2 in either text speaks for one of them."""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("pairs")
    made = {
        "nli": word_bundle(directory / "nli", labels=NLI),
        "spam": word_bundle(directory / "spam", labels=NLI),
        "words": word_bundle(directory / "words"),
        "vectors": word_bundle(directory / "vectors", labels=(), task="feature-extraction"),
        "colors": color_bundle(directory / "colors"),
    }
    for name, form in (("nli", "pair"), ("spam", "text")):
        file = made[name] / "manifest.json"
        manifest = json.loads(file.read_text())
        manifest["adapter"]["input_form"] = form
        file.write_text(json.dumps(manifest))
    return made


@pytest.fixture(scope="module")
def server(bundles: dict[str, Path]) -> Iterator[Server]:
    with serving(bundles, max_inputs=8) as running:
        yield running


def yes(bundles: dict[str, Path], first: str, second: str) -> float:
    (found,) = Classifier.open(bundles["nli"]).predict([(first, second)])
    return dict(found.ranking)["yes"]


def good(answer: Answer) -> Any:
    assert answer.status == 200, answer.text
    return answer.body


DOCUMENTS = ["w0 w0", "w1 w1", "w5"]


def test_classify_takes_pairs_and_mixed_lists(server: Server, bundles: dict[str, Path]) -> None:
    body = {"model": "nli", "input": [["w5", "w1"], ["w0", "w5"]]}
    answer = good(ask(server.url, "/classify", body))
    assert [row["label"] for row in answer["data"]] == ["yes", "no"]
    assert answer["data"][0]["probs"][1] == pytest.approx(yes(bundles, "w5", "w1"), abs=1e-6)
    assert answer["usage"]["prompt_tokens"] == 4
    mixed = good(ask(server.url, "/classify", {"model": "words", "input": ["w0", ["w1", "w1"]]}))
    assert [row["label"] for row in mixed["data"]] == ["red", "green"]


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("nli", "w1", "'nli' was trained on pairs of texts, and input 1 is a single text: give two texts."),
        ("nli", ["w1", "w2"], "input 1 is a single text"),
        ("spam", [["w1", "w2"]], "'spam' was trained on single texts, and input 1 is a pair of texts: give one text."),
        ("nli", [["w1", " "]], "The second text of pair 1 is empty"),
        ("nli", [["w1", "w1", "w1"]], "Input 1 is a list of 3: give one text, or a list of two as a pair."),
        ("colors", [["w1", "w2"]], "'colors' is for image-classification and takes no pairs of texts"),
        ("nli", [["w1", "w2"]] * 9, "A request takes 1 to 8 inputs, not 9"),
    ],
)
def test_what_is_no_pair_is_refused(server: Server, model: str, given: Any, message: str) -> None:
    answer = ask(server.url, "/classify", {"model": model, "input": given})
    assert answer.status == 400
    assert message in answer.message


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_reranked_as_cohere_does(server: Server, bundles: dict[str, Path], path: str) -> None:
    body = {"model": "nli", "query": "w6", "documents": [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]}
    answer = good(ask(server.url, path, body))
    assert [row["index"] for row in answer["results"]] == [1, 2, 0]
    assert [row["document"]["text"] for row in answer["results"]] == ["w1 w1", "w5", "w0 w0"]
    assert answer["results"][0]["relevance_score"] == pytest.approx(yes(bundles, "w6", "w1 w1"), abs=1e-6)
    assert answer["model"] == "nli"
    short = good(ask(server.url, path, {**body, "top_n": 1, "return_documents": False}))
    assert [sorted(row) for row in short["results"]] == [["index", "relevance_score"]]
    refused = ask(server.url, path, {**body, "model": "nobody"})
    assert refused.status == 404
    assert refused.body["error"]["type"] == "not_found_error"  # OpenAI's form, under /v2 too


def test_texts_are_reranked_as_text_embeddings_inference_does(server: Server, bundles: dict[str, Path]) -> None:
    body = {"model": "nli", "query": "w6", "texts": DOCUMENTS}
    answer = good(ask(server.url, "/rerank", body))
    assert [row["index"] for row in answer] == [1, 2, 0]
    assert answer == sorted(answer, key=lambda row: -row["score"])
    raw = good(ask(server.url, "/rerank", {**body, "raw_scores": True, "return_text": True}))
    assert [(row["text"], row["score"]) for row in raw] == [("w1 w1", 10.0), ("w0 w0", 0.0), ("w5", 0.0)]
    both = ask(server.url, "/rerank", {**body, "documents": DOCUMENTS})
    assert both.status == 400 and "as 'documents', or as 'texts'" in both.message
    assert ask(server.url, "/rerank", {**body, "texts": []}).status == 400


def test_texts_are_scored_as_vllm_does(server: Server, bundles: dict[str, Path]) -> None:
    def scores(first: Any, second: Any, path: str = "/score") -> list[float]:
        answer = good(ask(server.url, path, {"model": "nli", "text_1": first, "text_2": second}))
        assert [row["index"] for row in answer["data"]] == list(range(len(answer["data"])))
        return [row["score"] for row in answer["data"]]

    want = [yes(bundles, "w6", document) for document in DOCUMENTS]
    assert scores("w6", "w1 w1") == pytest.approx(want[1:2], abs=1e-6)
    assert scores("w6", DOCUMENTS) == pytest.approx(want, abs=1e-6)
    assert scores(["w6"] * 3, DOCUMENTS, "/v1/score") == pytest.approx(want, abs=1e-6)
    answer = ask(server.url, "/score", {"model": "nli", "text_1": ["a", "b"], "text_2": DOCUMENTS})
    assert answer.status == 400
    assert "text_1 has 2 texts and text_2 has 3" in answer.message


def test_predict_answers_as_text_embeddings_inference_does(server: Server, bundles: dict[str, Path]) -> None:
    def predict(inputs: Any, model: str = "nli", **more: Any) -> Any:
        return good(ask(server.url, "/predict", {"model": model, "inputs": inputs, **more}))

    (pair,) = Classifier.open(bundles["nli"]).predict([("w1", "w5")])
    assert [(row["label"], pytest.approx(row["score"], abs=1e-6)) for row in predict(["w1", "w5"])] == list(
        pair.ranking
    )
    assert predict([["w1", "w5"], ["w5", "w0"]])[0] == predict(["w1", "w5"])
    assert predict("w0", "words")[0]["label"] == "red"
    assert predict(["w0"], "words") == predict("w0", "words")
    assert [row[0]["label"] for row in predict([["w0"], ["w1", "w1"], "w2"], "words")] == ["red", "green", "blue"]
    assert predict("w0", "words", raw_scores=True)[0]["score"] == 5.0
    for inputs in (["a", "b", "c"], [["a", "b", "c"]], []):
        answer = ask(server.url, "/predict", {"model": "nli", "inputs": inputs})
        assert answer.status == 400
        assert "texts is no input" in answer.message
    assert "use POST /v1/embeddings" in ask(server.url, "/predict", {"model": "vectors", "inputs": "w1"}).message


def test_vectors_that_the_graph_leaves_as_they_are_can_be_normalized(server: Server) -> None:
    (raw,) = good(ask(server.url, "/embed", {"model": "vectors", "inputs": "w0 w1 w1", "normalize": False}))
    (unit,) = good(ask(server.url, "/embed", {"model": "vectors", "inputs": "w0 w1 w1"}))
    (short,) = good(ask(server.url, "/embed", {"model": "vectors", "inputs": "w0 w1 w1", "dimensions": 2}))
    np.testing.assert_allclose(unit, np.array(raw) / np.linalg.norm(raw), rtol=1e-6)
    np.testing.assert_allclose(short, np.array(raw[:2]) / np.linalg.norm(raw[:2]), rtol=1e-6)
    assert not np.allclose(raw, unit)
    inputs = {"source_sentence": "w0", "sentences": ["w0 w0", "w1"]}
    assert good(ask(server.url, "/similarity", {"model": "vectors", "inputs": inputs}))[0] == pytest.approx(1.0)
    assert (
        "has no embeddings: use POST /classify" in ask(server.url, "/embed", {"model": "nli", "inputs": "w1"}).message
    )
    assert good(ask(server.url, "/info?model=nli"))["model_type"]["classifier"]["id2label"]["1"] == "yes"


def test_hugging_face_client_is_answered(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: False)  # of the tests, for the hub
    with serving({"words": bundles["words"]}) as alone:  # such a client names no model
        found: Any = InferenceClient(model=f"{alone.url}/predict").text_classification("w0 w0 w1")
        assert found.label == "red"
        client = InferenceClient(model=f"{alone.url}/models/words")
        labels: Any = client.text_classification("w0 w0 w1", top_k=2)
        assert labels[0].label == "red" and len(labels) == 2 and labels[0].score == found.score
        assert len(good(ask(alone.url, "/models/words", {"inputs": ["w0", "w1"]}))) == 2
        wrong = ask(alone.url, "/models/words", {"inputs": "w0", "parameters": {"ignore_labels": ["red"]}})
        assert (
            wrong.status == 400
            and "no parameter of labels: leave it out, or give function_to_apply, top_k" in wrong.message
        )
        refused = ask(alone.url, "/predict", {"inputs": "w0", "parameters": {"aggregation_strategy": "first"}})
        assert refused.status == 400 and "'parameters' are for entities: leave them out." in refused.message


@pytest.mark.parametrize(
    ("model", "label", "message"),
    [
        (
            "words",
            None,
            "'words' has the labels red, green, blue, and none of them is known to say how well two texts go together",
        ),
        ("words", "purple", "'words' has no label 'purple': it has red, green, blue"),
        ("spam", None, "'spam' was trained on single texts and scores no pairs"),
        ("vectors", None, "'vectors' is for feature-extraction and scores no pairs of texts"),
        ("colors", None, "'colors' is for image-classification and scores no pairs of texts"),
        (None, None, "This server has 5 models"),
    ],
)
def test_a_model_without_a_single_score_is_refused(
    server: Server, model: str | None, label: str | None, message: str
) -> None:
    for path, body in (
        ("/rerank", {"query": "a", "documents": ["b"]}),
        ("/rerank", {"query": "a", "texts": ["b"]}),
        ("/score", {"text_1": "a", "text_2": "b"}),
    ):
        named = {key: value for key, value in (("model", model), ("label", label)) if value is not None}
        answer = ask(server.url, path, {**body, **named})
        assert answer.status == 400
        assert message in answer.message
    green = good(
        ask(server.url, "/rerank", {"model": "words", "label": "green", "query": "w5", "documents": DOCUMENTS})
    )
    assert green["results"][0]["index"] == 1


def test_work_is_bounded(server: Server) -> None:
    many = {"model": "nli", "query": "w1", "documents": ["w1"] * 9}
    assert "A request takes 1 to 8 inputs, not 9" in ask(server.url, "/v2/rerank", many).message
    long = "w1 " * 33_334
    for path, body in (("/score", {"text_1": "w1", "text_2": long}), ("/rerank", {"query": long, "texts": ["w1"]})):
        answer = ask(server.url, path, {"model": "nli", **body})
        assert answer.status == 400
        assert "has 100002 characters; the limit is 100000 (--max-characters)" in answer.message
    halves = "w1 " * 30_000  # each pair has 180,000 characters, in all more than a request may have
    answer = ask(server.url, "/rerank", {"model": "nli", "query": halves, "texts": [halves] * 6})
    assert answer.status == 413
    assert (
        good(ask(server.url, "/score", {"model": "nli", "text_1": halves, "text_2": halves}))["data"][0]["score"] > 0.9
    )


def test_what_a_model_reads_is_listed(server: Server) -> None:
    cards = {card["id"]: card["input_form"] for card in ask(server.url, "/v1/models").body["data"]}
    assert cards == {"nli": "pair", "spam": "text", "words": None, "vectors": None, "colors": None}


def test_a_load_test_sends_pairs_to_those_that_read_them(server: Server) -> None:
    plan = LoadPlan(url="http://x", models=("nli", "words"), texts=("a", "b"), pair_readers=frozenset(["nli"]))
    assert [input_of(plan, model, 1) for model in plan.models] == [["b", "a"], "b"]
    flags = ("--seconds", "0.5", "--warmup", "0", "--clients", "2", "--model", "nli", "--model", "words", "--json")
    done = run("loadtest", server.url, *flags)
    assert done.code == 0, done.stderr


def test_the_score_is_the_only_output_or_the_label_that_says_so() -> None:
    assert score_index(["LABEL_0"], None, name="x") == 0
    assert score_index(["0", "1"], None, name="x") == 1
    assert score_index(["contradiction", "entailment", "neutral"], None, name="x") == 1
    assert score_index(["entailment", "not_entailment"], None, name="x") == 0
    assert score_index(["Relevant", "other"], None, name="x") == 0
    assert score_index(["yes", "true"], "true", name="x") == 1
    with pytest.raises(ConfigError, match="more than one of them is known"):
        score_index(["yes", "true"], None, name="x")
