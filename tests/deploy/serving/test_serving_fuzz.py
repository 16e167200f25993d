"""Valid and invalid requests generated from the server's OpenAPI schema get the responses that the schema declares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.helpers.servers import Server, ask, classify, serving


@pytest.fixture(scope="module")
def server(served: dict[str, Path]) -> Iterator[Server]:
    with serving(served, adapter_dirs=(served["many"].parent,), max_characters=200) as running:
        yield running
        models = {card["id"] for card in ask(running.url, "/v1/models").body["data"]}
        assert models >= {"many", "words", "colors"}
        assert classify(running.url, "words", "w0")[0][0] > 0.9


@pytest.fixture(scope="module")
def api(server: Server) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
OPERATIONS = [
    ("GET", "/v1/models/{name}"),
    ("GET", "/v2/models/{name}"),
    ("GET", "/v2/models/{name}/ready"),
    ("GET", "/metrics"),
    ("GET", "/stats"),
    ("POST", "/classify"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("POST", "/v2/models/{name}/infer"),
]


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_one_that_is_declared(
    api: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = api[path][method]
    examples = 30 if method == "POST" else 5

    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
    def check(case: schemathesis.Case, known: bool) -> None:
        if known and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "words"  # or all would end with a 404
        if known and "name" in (case.path_parameters or {}):
            case.path_parameters["name"] = "words"
        response = case.call(timeout=30)
        assert response.status_code not in (500, 502), response.text
        assert "Traceback" not in response.text and 'File "' not in response.text
        assert response.headers["x-request-id"]
        if response.status_code not in (405, 415):  # a method or a type that the schema does not know
            case.validate_response(response, checks=CHECKS)

    try:
        check()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # nothing can be wrong about it


def test_the_schema_teaches(server: Server) -> None:
    made = ask(server.url, "/openapi.json").body
    assert set(made["paths"]) >= {
        "/classify", "/v1/models", "/v1/embeddings", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/healthz",
        "/readyz", "/metrics", "/v2/models/{name}/infer", "/v2/models/{name}", "/v2/health/ready",
    }  # fmt: skip
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            assert operation["description"], path
            assert "422" not in operation["responses"], path
            assert "401" in operation["responses"], path
            if method == "post":
                assert {"400", "404", "408", "413", "429", "503"} <= set(operation["responses"]), path
    assert "504" in made["paths"]["/classify"]["post"]["responses"]
    for name in ("ClassifyRequest", "EmbeddingsRequest", "LoadRequest", "UnloadRequest", "Tensor"):
        fields = made["components"]["schemas"][name]["properties"]
        assert any("examples" in field for field in fields.values()), name


def test_its_page_needs_nothing_from_elsewhere(server: Server) -> None:
    page = ask(server.url, "/docs")
    assert page.status == 200
    assert "http://" not in page.text and "https://" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in ("/docs/files/swagger-ui-bundle.js", "/docs/files/swagger-ui.css", "/static/docs.js"):
        assert path in page.text
        assert ask(server.url, path).status == 200
