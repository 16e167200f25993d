"""``/v1/embeddings`` with the official client: it gets PEFT's vectors, and errors that say what to do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient

from tests.helpers.cli import run
from tests.helpers.encoders import RANKS, TEXTS, peft_vectors
from tests.helpers.servers import Server, ask, serving

CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(scope="module")
def server(embedded: Path) -> Iterator[Server]:
    with serving({"vectors": embedded / "vectors"}, adapter_dirs=(embedded,), max_batch=8) as running:
        yield running


@pytest.fixture(scope="module")
def expected(embedded: Path) -> dict[str, np.ndarray]:
    found = {name: peft_vectors(embedded / "base", embedded / name, TEXTS) for name in RANKS}
    return {**found, "vectors": peft_vectors(embedded / "base", None, TEXTS)}


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_the_client_gets_pefts_vectors(client: openai.OpenAI, expected: dict[str, np.ndarray]) -> None:
    assert {card.id: card.model_dump()["task"] for card in client.models.list()} == dict.fromkeys(
        ["vectors", *RANKS], "feature-extraction"
    )
    for name, right in expected.items():
        answer = client.embeddings.create(model=name, input=TEXTS, encoding_format="float")
        assert answer.model == name
        assert [item.index for item in answer.data] == [0, 1, 2, 3]
        np.testing.assert_allclose([item.embedding for item in answer.data], right, **CLOSE)
        alone = client.embeddings.create(model=name, input=TEXTS[2])  # this client asks for base64 by itself
        np.testing.assert_allclose(alone.data[0].embedding, right[2], **CLOSE)
        assert alone.usage.prompt_tokens == alone.usage.total_tokens == 7


def test_base64_is_little_endian_float32_and_the_models_own_dimensions_are_accepted(
    client: openai.OpenAI, expected: dict[str, np.ndarray]
) -> None:
    answer = client.embeddings.create(model="near", input=TEXTS[0], encoding_format="base64", dimensions=16)
    written = answer.data[0].embedding
    assert isinstance(written, str)
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(written), "<f4"), expected["near"][0], **CLOSE)


def test_fewer_dimensions_are_normalized_again(client: openai.OpenAI, expected: dict[str, np.ndarray]) -> None:
    answer = client.embeddings.create(model="near", input=TEXTS, dimensions=5)
    right = expected["near"][:, :5] / np.linalg.norm(expected["near"][:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose([item.embedding for item in answer.data], right, **CLOSE)


def test_hugging_faces_client_reads_vectors_and_similarities(
    server: Server, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the server is on this machine
    right, place = expected["near"], f"{server.url}/models/near/pipeline"
    client = InferenceClient()
    got = client.feature_extraction(TEXTS, model=f"{place}/feature-extraction", normalize=True, truncate=True)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, right, **CLOSE)
    alone = client.feature_extraction(TEXTS[0], model=f"{place}/feature-extraction", dimensions=16)
    np.testing.assert_allclose(alone, right[:1], **CLOSE)
    found = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:], model=f"{place}/sentence-similarity")
    np.testing.assert_allclose(found, right[1:] @ right[0], **CLOSE)


def test_the_paths_of_text_embeddings_inference(server: Server, expected: dict[str, np.ndarray]) -> None:
    answer = ask(server.url, "/embed", {"model": "far", "inputs": TEXTS[0], "truncation_direction": "Right"})
    np.testing.assert_allclose(answer.body, expected["far"][:1], **CLOSE)
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS[:2]}
    answer = ask(server.url, "/similarity", {"model": "far", "inputs": inputs, "parameters": {"truncate": False}})
    np.testing.assert_allclose(answer.body, expected["far"][:2] @ expected["far"][0], **CLOSE)
    about = ask(server.url, "/info?model=near").body
    assert about["model_id"] == "near" and about["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (
        about["model_dtype"] == "float32" and about["max_client_batch_size"] == 256 and about["max_input_length"] == 32
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/embed", {"inputs": "w1"}, 400, "This server has 3 models"),
        ("/embed", {"model": "near", "inputs": "w1", "normalize": False}, 400, "normalizes its vectors, so it has no others"),
        ("/embed", {"model": "near", "inputs": "w1", "prompt_name": "query"}, 400, "'near' has no prompts"),
        ("/embed", {"model": "near", "inputs": "w1", "truncation_direction": "Left"}, 400, "cuts long texts on the right"),
        ("/embed", {"model": "near", "inputs": "w1", "dimensions": 99}, 400, "has 16 dimensions and cannot return 99"),
        ("/embed", {"model": "near", "inputs": ["w1", "w2 " * 33], "truncate": False}, 413, "Input 2 has more than 32 tokens"),
        ("/embed", {"model": "near", "inputs": "w1", "dimensions": True}, 400, "dimensions: Input should be a valid integer"),
        ("/v1/embeddings", {"model": "near", "input": "w1", "dimensions": "5"}, 400, "dimensions: Input should be a valid integer"),
        ("/v1/embeddings", {"model": "near", "input": [["w1", "w2"]]}, 400, "has a list in its list: send one text, or one list of"),
        ("/v1/embeddings", {"model": "near", "input": [[]]}, 400, "has a list in its list"),
        ("/v1/embeddings", {"model": "near", "input": {"a": 1}}, 400, "\"input: Input should be a valid"),
        ("/similarity", {"model": "near", "inputs": {"source_sentence": "w1", "sentences": ["w1", ""]}}, 400, "Text 3 is empty"),
        ("/similarity", {"model": "near", "inputs": {"source_sentence": "w1", "sentences": []}}, 400, "takes 1 to 256 inputs, not 0"),
        ("/models/none/pipeline/feature-extraction", {"inputs": "w1"}, 404, "none"),
        ("/info", None, 400, "This server has 3 models"),
    ],
)  # fmt: skip
def test_embed_refuses_what_the_model_cannot_do(
    server: Server, path: str, body: Any, status: int, message: str
) -> None:
    answer = ask(server.url, path, body)
    assert answer.status == status and message in answer.text, answer.text
    if "truncate" in (body or {}):
        assert ask(server.url, path, {**body, "inputs": "w2 " * 32}).status == 200


def test_what_is_not_offered_is_refused_clearly(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="has 16 dimensions and cannot return 17: ask for 16 or fewer"):
        client.embeddings.create(model="near", input="w1", dimensions=17)
    for ids in ([5, 6, 7], [[5, 6], [7]]):
        with pytest.raises(openai.BadRequestError, match=r"token ids.*send texts \(in LangChain, check_embedding_ctx"):
            client.embeddings.create(model="near", input=ids)
    with pytest.raises(openai.BadRequestError, match="takes 1 to 256 inputs, not 0"):
        client.embeddings.create(model="near", input=[])
    with pytest.raises(openai.BadRequestError, match="Text 2 is empty"):
        client.embeddings.create(model="near", input=["w1", ""])
    with pytest.raises(
        openai.BadRequestError, match="for feature-extraction and has no labels: use POST /v1/embeddings"
    ):
        client.post("/../classify", body={"model": "near", "input": "w1"}, cast_to=object)


def test_an_adapter_is_loaded_while_the_server_runs(
    client: openai.OpenAI, server: Server, expected: dict[str, np.ndarray]
) -> None:
    client.post("/load_lora_adapter", body={"lora_name": "late", "lora_path": "far"}, cast_to=str)
    answer = client.embeddings.create(model="late", input=TEXTS)
    np.testing.assert_allclose([item.embedding for item in answer.data], expected["far"], **CLOSE)
    client.post("/unload_lora_adapter", body={"lora_name": "late"}, cast_to=str)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="late", input="w1")


def test_loadtest_asks_for_embeddings_and_checks_them(
    server: Server, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    right = {name: vectors.tolist() for name, vectors in expected.items()}
    (tmp_path / "right.json").write_text(json.dumps({"texts": TEXTS, "answers": right, "tolerance": 1e-5}))
    words = ("loadtest", server.url, "--seconds", "0.5", "--warmup", "0.1", "--clients", "4", "--rows", "2", "--json")
    done = run(*words, "--reference", tmp_path / "right.json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["requests"] > 0 and result["models"] == 2 and result["wrong"] == 0 and not result["errors"]
    wrong = {**right, "near": right["far"]}
    (tmp_path / "wrong.json").write_text(json.dumps({"texts": TEXTS, "answers": wrong, "tolerance": 1e-5}))
    assert run(*words, "--model", "near", "--reference", tmp_path / "wrong.json").code == 6
