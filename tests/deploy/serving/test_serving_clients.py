"""Real clients (openai, tritonclient, curl) get PyTorch's and PEFT's numbers, and errors they understand."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.http as triton
from transformers import AutoTokenizer
from tritonclient.utils import InferenceServerException

from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.classifier import Classifier
from tests.helpers.branch_graphs import LABELS
from tests.helpers.servers import ADAPTERS, Server, ask, classify, reference, serving

TEXTS = ["w1 w5 w3", "w2", "w9 w9 w4 w1 w7 w8 w2", "w3 w6"]
CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module")
def server(served: dict[str, Path]) -> Iterator[Server]:
    with serving(served, adapter_dirs=(served["many"].parent,)) as running:
        yield running


@pytest.fixture(scope="module")
def expected(served: dict[str, Path]) -> dict[str, list[list[float]]]:
    home = served["many"].parent
    return {name: reference(home / name, TEXTS, base=home / "base") for name in ADAPTERS}


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_openai_lists_bases_and_adapters(client: openai.OpenAI) -> None:
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"many", *ADAPTERS, "words", "colors"}
    assert listed["two"].model_dump()["parent"] == "many"
    assert listed["two"].model_dump()["labels"] == LABELS["two"]
    assert listed["two"].model_dump()["rank"] == ADAPTERS["two"]
    assert listed["many"].model_dump()["parent"] is None
    assert client.models.retrieve("three").id == "three"


def test_openai_gets_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model 'nobody': GET /v1/models lists all"):
        client.models.retrieve("nobody")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="w1")
    with pytest.raises(
        openai.BadRequestError, match="for text-classification and has no embeddings: use POST /classify"
    ) as no:
        client.embeddings.create(model="one", input="w1")
    assert no.value.type == "invalid_request_error"
    assert no.value.request_id


def test_adapters_answer_as_in_peft_alone_and_together(server: Server, expected: dict[str, list[list[float]]]) -> None:
    for name in ADAPTERS:
        np.testing.assert_allclose(classify(server.url, name, *TEXTS), expected[name], **CLOSE)
        for text, right in zip(TEXTS, expected[name], strict=True):
            np.testing.assert_allclose(classify(server.url, name, text)[0], right, **CLOSE)


def test_the_base_answers_as_in_pytorch(server: Server, served: dict[str, Path]) -> None:
    expected = reference(None, TEXTS, base=served["many"].parent / "base")
    np.testing.assert_allclose(classify(server.url, "many", *TEXTS), expected, **CLOSE)


def test_merged_bundles_answer_as_without_a_server(server: Server, served: dict[str, Path]) -> None:
    alone = Classifier.open(served["words"]).predict(TEXTS)
    answer = ask(server.url, "/classify", {"model": "words", "input": TEXTS}).body
    for item, right in zip(answer["data"], alone, strict=True):
        assert item["label"] == right.label
        assert item["num_classes"] == 3
        np.testing.assert_allclose(item["probs"], [dict(right.ranking)[label] for label in ("red", "green", "blue")])
    assert answer["usage"] == {"prompt_tokens": 13, "total_tokens": 13, "completion_tokens": 0}


def curl(server: Server, path: str, *more: str, body: Any = None) -> tuple[int, str]:
    words = ["curl", "-sS", "-w", "\n%{http_code}", f"{server.url}{path}", *more]
    if body is not None:
        words += ["-H", "content-type: application/json", "-d", json.dumps(body)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text


def test_curl_classifies_loads_and_unloads(server: Server, expected: dict[str, list[list[float]]]) -> None:
    status, text = curl(server, "/classify", body={"model": "three", "input": TEXTS[0]})
    assert status == 200
    (item,) = json.loads(text)["data"]
    np.testing.assert_allclose(item["probs"], expected["three"][0], **CLOSE)
    assert item["label"] == LABELS["three"][int(np.argmax(expected["three"][0]))]

    loading = {"lora_name": "again", "lora_path": "three"}
    assert curl(server, "/v1/load_lora_adapter", body=loading) == (
        200, "Success: LoRA adapter 'again' added successfully.",
    )  # fmt: skip
    status, text = curl(server, "/classify", body={"model": "again", "input": TEXTS})
    np.testing.assert_allclose([item["probs"] for item in json.loads(text)["data"]], expected["three"], **CLOSE)
    status, text = curl(server, "/v1/load_lora_adapter", body=loading)
    assert (status, json.loads(text)["error"]["code"]) == (400, 400)
    assert "There is a model 'again' already: unload it first" in text
    assert curl(server, "/v1/unload_lora_adapter", body={"lora_name": "again"}) == (
        200, "Success: LoRA adapter 'again' removed successfully.",
    )  # fmt: skip
    for path, body in (
        ("/classify", {"model": "again", "input": "w1"}),
        ("/v1/unload_lora_adapter", {"lora_name": "again"}),
    ):
        status, text = curl(server, path, body=body)
        assert status == 404
        assert json.loads(text)["error"]["type"] == "not_found_error"
    assert curl(server, "/v1/unload_lora_adapter", body={"lora_name": "words"})[0] == 400


def test_curl_asks_for_health_with_any_method_of_reading(server: Server) -> None:
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert curl(server, path)[0] == 200
        assert curl(server, path, "--head")[0] == 200


@pytest.fixture
def kserve(server: Server) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def inputs(served: dict[str, Path], *texts: str) -> list[triton.InferInput]:
    home = served["many"].parent
    encoded = AutoTokenizer.from_pretrained(home / "base")(list(texts), return_tensors="np", padding=True)
    made = []
    for item in Bundle.open(served["many"], check_files=False).manifest.model.inputs:
        array = np.asarray(encoded[item.name], np.int64)
        value = triton.InferInput(item.name, list(array.shape), "INT64")
        value.set_data_from_numpy(array, binary_data=False)
        made.append(value)
    return made


def test_kserve_describes_server_and_models(kserve: triton.InferenceServerClient) -> None:
    assert kserve.is_server_live()
    assert kserve.is_server_ready()
    assert kserve.get_server_metadata()["name"] == "rmlora-deploy"
    assert kserve.is_model_ready("one")
    assert kserve.is_model_ready("one", "1")
    assert not kserve.is_model_ready("nobody")
    assert not kserve.is_model_ready("one", "2")
    described = kserve.get_model_metadata("one")
    assert (described["name"], described["versions"]) == ("one", ["1"])
    assert {(item["name"], item["datatype"], tuple(item["shape"])) for item in described["inputs"]} >= {
        ("input_ids", "INT64", (-1, -1)),
        ("attention_mask", "INT64", (-1, -1)),
    }
    assert [item["name"] for item in described["outputs"]] == ["logits"]
    with pytest.raises(InferenceServerException, match="There is no model 'nobody'"):
        kserve.get_model_metadata("nobody")


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def test_kserve_takes_raw_tensors(
    kserve: triton.InferenceServerClient, served: dict[str, Path], expected: dict[str, list[list[float]]]
) -> None:
    result = kserve.infer("two", inputs(served, *TEXTS), request_id="mine", model_version="1")
    np.testing.assert_allclose(softmax(result.as_numpy("logits")), expected["two"], **CLOSE)
    assert result.get_response()["id"] == "mine"
    wanted = [triton.InferRequestedOutput("logits", binary_data=False)]
    result = kserve.infer("one", inputs(served, TEXTS[0]), outputs=wanted)
    assert result.as_numpy("logits").shape == (1, 2)


def test_kserve_names_an_adapter_for_each_row(
    kserve: triton.InferenceServerClient,
    served: dict[str, Path],
    expected: dict[str, list[list[float]]],
    server: Server,
) -> None:
    chosen = ["two", "two", "again", "two"]
    assert ask(server.url, "/v1/load_lora_adapter", {"lora_name": "again", "lora_path": "two"}).status == 200
    try:
        result = kserve.infer("many", inputs(served, *TEXTS), parameters={"adapters": chosen})
    finally:
        assert ask(server.url, "/v1/unload_lora_adapter", {"lora_name": "again"}).status == 200
    np.testing.assert_allclose(softmax(result.as_numpy("logits")), expected["two"], **CLOSE)
    for adapters, message in (
        (["two", "nobody", "two", "two"], "There is no model"),
        (["two"], "must name a model for each of the 4 rows"),
        ("two", "must name a model for each of the 4 rows"),
        (["one", "two", "one", "two"], "different numbers of labels"),
        (["two", "two", "words", "two"], "models of one bundle"),
    ):
        with pytest.raises(InferenceServerException, match=message):
            kserve.infer("many", inputs(served, *TEXTS), parameters={"adapters": adapters})


def test_kserve_is_told_what_is_wrong_with_its_tensors(
    kserve: triton.InferenceServerClient, served: dict[str, Path]
) -> None:
    right = inputs(served, *TEXTS)
    with pytest.raises(InferenceServerException, match="takes the inputs"):
        kserve.infer("one", right[:1])
    binary = triton.InferInput("input_ids", [1, 2], "INT64")
    binary.set_data_from_numpy(np.array([[3, 4]]), binary_data=True)
    with pytest.raises(InferenceServerException, match="binary"):
        kserve.infer("one", [binary])
    with pytest.raises(InferenceServerException, match="one output: logits"):
        kserve.infer("one", right, outputs=[triton.InferRequestedOutput("hidden", binary_data=False)])


def tensor(name: str, data: Any, *, datatype: str = "INT64", shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or list(np.shape(data)), "data": data}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": [[3, 4.5]]}, "not INT64"),
        ({"data": [["3", "4"]]}, "not INT64"),
        ({"data": [[3, None]]}, "not INT64"),
        ({"data": [[3, {"a": 1}]]}, "not INT64"),
        ({"data": [[3, 2**63]]}, "not INT64"),
        ({"data": [[3], [4, 5]], "shape": [1, 2]}, "not INT64"),
        ({"data": [3, 4, 5], "shape": [1, 2]}, "not INT64"),
        ({"datatype": "FP32", "data": [["3", "nan"]]}, "not FP32"),
        ({"datatype": "FP32", "data": [[3, 4]]}, "is float32, but the model takes int64"),
        (
            {"datatype": "BYTES", "data": ["spam"]},
            "is BYTES, but the model takes numbers, .* send texts and images to /classify",
        ),
        ({"datatype": "FP64"}, "unknown datatype"),
        ({"shape": [1, 0], "data": []}, "positive sizes"),
        ({"shape": [-1, 2]}, "positive sizes"),
        ({"shape": [2]}, "has the shape \\[2\\]"),
        ({"shape": [10**30, 2]}, "not INT64"),
        ({"shape": [1] * 5000}, "at most 8 items"),
        ({"datatype": "INT32", "data": [[3, 2**40]]}, "not INT32"),
        ({"data": [[10**6, 3]]}, "ids from 0 to 96 only"),
    ],
)
def test_tensors_are_taken_literally_or_refused(server: Server, change: dict[str, Any], message: str) -> None:
    body = {"inputs": [{**tensor("input_ids", [[3, 4]]), **change}, tensor("attention_mask", [[1, 1]])]}
    names = [item["name"] for item in ask(server.url, "/v2/models/words").body["inputs"]]
    assert names == ["input_ids", "attention_mask"]
    answer = ask(server.url, "/v2/models/words/infer", body)
    assert answer.status == 400, answer.text
    assert re.search(message, answer.message), answer.message
    assert len(answer.text) < 1000
