"""Files that change under a running server: no answer has another meaning than before, and no error is the client's."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from rmlora.errors import InputError
from rmlora.file_identity import ChangedFileError, FileIdentity, path_status
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter
from rmlora_deploy.bundles import bundle as bundles
from rmlora_deploy.bundles.opening import opening
from rmlora_deploy.serving.json_log import JsonLines
from tests.helpers.branch_graphs import make_adapter
from tests.helpers.browser import chromium
from tests.helpers.cli import run
from tests.helpers.handmade import word_bundle
from tests.helpers.page import row, tick
from tests.helpers.servers import Server, ask, classify, serving, until

TEXT = "w1 w5 w3"


@pytest.fixture
def bundle(served: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the bundle with branches that a test may change."""
    return Path(shutil.copytree(served["many"], tmp_path / "many"))


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the server logs."""
    lines, logger = io.StringIO(), logging.getLogger("rmlora.serve")
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)


def file_of(bundle: Path, adapter: str) -> Path:
    return bundle / "adapters" / f"{adapter}.onnx_adapter"


def evict(server: Server, adapter: str) -> None:
    """Push ``adapter`` out of a cache of one."""
    classify(server.url, next(name for name in ("one", "two") if name != adapter), TEXT)


def unavailable(server: Server) -> tuple[int, int]:
    """Return how many models are unavailable, as ``/readyz`` and the metrics say."""
    text = ask(server.url, "/metrics").text
    (line,) = (line for line in text.splitlines() if line.startswith("rmlora_unavailable_models{"))
    return ask(server.url, "/readyz").body["unavailable"], int(float(line.split()[-1]))


def exchanged(bundle: Path, tmp_path: Path) -> None:
    """Give the name ``three`` to another adapter with other labels, by the command line."""
    other = make_adapter("bert", tmp_path / "other", "one", rank=6)
    assert run("adapter", "remove", bundle, "three").code == 0
    assert run("adapter", "add", bundle, f"three={other}").code == 0


def truncated(bundle: Path, tmp_path: Path) -> None:
    os.truncate(file_of(bundle, "three"), 1000)


def missing(bundle: Path, tmp_path: Path) -> None:
    file_of(bundle, "three").unlink()


def unreadable(bundle: Path, tmp_path: Path) -> None:
    file_of(bundle, "three").unlink()
    file_of(bundle, "three").mkdir()


def same_size(bundle: Path, tmp_path: Path) -> None:
    """Change a number in place, and set the file's times back."""
    file = file_of(bundle, "three")
    times = file.stat()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [exchanged, truncated, missing, unreadable, same_size])
def test_an_adapter_whose_file_changed_is_unavailable_until_the_right_file_is_back(
    bundle: Path, tmp_path: Path, log: io.StringIO, change: Callable[[Path, Path], None]
) -> None:
    kept = shutil.copyfile(file_of(bundle, "three"), tmp_path / "kept")
    (tmp_path / "other").mkdir()
    with serving({"many": bundle}, max_active_adapters=1) as server:
        before = {name: classify(server.url, name, TEXT) for name in ("three", "one", "many")}
        evict(server, "three")
        change(bundle, tmp_path)
        for path, body in (
            ("/classify", {"model": "three", "input": [TEXT]}),
            ("/classify", {"model": "three", "input": [TEXT]}),
            ("/v2/models/one/infer", {"inputs": tensors(), "parameters": {"adapters": ["one", "three"]}}),
            ("/v2/models/three/ready", None),
        ):
            answer = ask(server.url, path, body)
            assert (answer.status, "'three' is not available at the moment" in answer.message) == (503, True), (
                answer.text
            )
            assert str(tmp_path) not in answer.text
        assert unavailable(server) == (1, 1)
        cards = {card["id"]: card["available"] for card in ask(server.url, "/v1/models").body["data"]}
        assert cards == {"many": True, "one": True, "two": True, "three": False}
        for name in ("one", "many"):
            np.testing.assert_allclose(classify(server.url, name, TEXT), before[name], atol=1e-6)
        (reason,) = (line for line in map(json.loads, log.getvalue().splitlines()) if line.get("level") == "error")
        assert str(file_of(bundle, "three")) in reason["message"] and "adapter 'three' of many" in reason["message"]

        if file_of(bundle, "three").is_dir():
            file_of(bundle, "three").rmdir()
        shutil.copyfile(kept, file_of(bundle, "three"))
        until(lambda: unavailable(server) == (0, 0))
        np.testing.assert_allclose(classify(server.url, "three", TEXT), before["three"], atol=1e-6)
    assert "can be used again" in log.getvalue()


def test_the_page_marks_an_adapter_that_is_unavailable(bundle: Path, tmp_path: Path) -> None:
    with serving({"many": bundle}) as server, chromium() as browser:
        truncated(bundle, tmp_path)
        page = browser.new_page()
        page.goto(server.url)
        tick(page, "three")
        page.get_by_label("Text", exact=True).fill("w2")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#answers")).to_contain_text("'three' is not available at the moment", timeout=15_000)
        page.get_by_label("Filter the models").fill("")
        expect(row(page, "three")).to_contain_text("unavailable", timeout=15_000)
        expect(row(page, "one")).not_to_contain_text("unavailable")


def tensors() -> list[dict[str, object]]:
    return [
        {"name": name, "datatype": "INT64", "shape": [2, 3], "data": [[1, 1, 1]] * 2}
        for name in ("input_ids", "attention_mask")
    ]


def test_an_adapter_loaded_over_http_is_recognized_too(
    served: dict[str, Path], bundle: Path, tmp_path: Path, log: io.StringIO
) -> None:
    packages = served["many"].parent
    with serving({"many": bundle}, adapter_dirs=(packages,), max_active_adapters=1) as server:
        assert ask(server.url, "/v1/load_lora_adapter", {"lora_name": "new", "lora_path": "three"}).status == 200
        classify(server.url, "new", TEXT)
        evict(server, "new")
        model = server.registry.model("new") if server.registry is not None else None
        assert model is not None and model.file is not None
        shutil.copyfile(file_of(bundle, "two"), model.file)
        answer = ask(server.url, "/classify", {"model": "new", "input": TEXT})
        assert (answer.status, "'new' is not available" in answer.message) == (503, True)
        assert unavailable(server) == (1, 1)
        assert ask(server.url, "/v1/unload_lora_adapter", {"lora_name": "new"}).status == 200
        assert unavailable(server) == (0, 0)
    assert "is not what it was" in log.getvalue()


def test_loading_without_the_reference_is_the_servers_error(
    served: dict[str, Path], bundle: Path, tmp_path: Path, log: io.StringIO
) -> None:
    with serving({"many": bundle}, adapter_dirs=(served["many"].parent,)) as server:
        (bundle / "reference.safetensors").write_bytes(b"cut")
        answer = ask(server.url, "/v1/load_lora_adapter", {"lora_name": "new", "lora_path": "three"})
        assert (answer.status, "No adapter can be loaded at the moment" in answer.message) == (503, True)
        assert str(tmp_path) not in answer.text
    assert str(bundle / "reference.safetensors") in log.getvalue()


def test_labels_of_a_loaded_adapter_are_those_of_the_base_that_runs(served: dict[str, Path], bundle: Path) -> None:
    package = shutil.copytree(served["many"].parent / "two", bundle.parent / "packages" / "plain")
    (package / "rmlora.json").unlink()  # so it takes its labels from the base
    config = json.loads((bundle / "config.json").read_text())
    labels = [config["id2label"][str(number)] for number in range(3)]
    with serving({"many": bundle}, adapter_dirs=(package.parent,)) as server:
        wrong = {str(number): f"wrong {number}" for number in range(3)}
        (bundle / "config.json").write_text(json.dumps({**config, "id2label": wrong}))
        assert ask(server.url, "/v1/load_lora_adapter", {"lora_name": "plain", "lora_path": "plain"}).status == 200
        cards = {card["id"]: card["labels"] for card in ask(server.url, "/v1/models").body["data"]}
    assert cards["plain"] == labels


def test_weights_that_are_written_to_stop_their_models_and_no_others(
    tmp_path: Path, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime maps external weights, so that their change reaches the running graph."""
    words, others = large_word_bundle(tmp_path / "words"), word_bundle(tmp_path / "others")
    data = words / "model.onnx.data"
    right = data.read_bytes()
    with serving({"words": words, "others": others}) as server:
        before = classify(server.url, "words", "w1", "w2")
        with data.open("r+b") as file:
            file.write(bytes(len(right)))
        answer = ask(server.url, "/classify", {"model": "words", "input": "w1"})
        assert (answer.status, "'words' is not available" in answer.message) == (503, True), answer.text
        assert str(tmp_path) not in answer.text
        assert ask(server.url, "/readyz").body == {"ready": True, "unavailable": 1}
        assert classify(server.url, "others", "w1")
        with data.open("r+b") as file:
            file.write(right)
        until(lambda: ask(server.url, "/readyz").body == {"ready": True, "unavailable": 0})
        assert classify(server.url, "words", "w1", "w2") == before
    assert str(data) in log.getvalue()
    with serving({"words": words}) as server:
        with data.open("r+b") as file:
            file.write(bytes(len(right)))
        assert ask(server.url, "/classify", {"model": "words", "input": "w1"}).status == 503
        answer = ask(server.url, "/readyz")
        assert (answer.status, "No model is available" in answer.message) == (503, True)


def test_a_bundle_put_in_place_by_renaming_changes_nothing(tmp_path: Path) -> None:
    words = large_word_bundle(tmp_path / "words")
    with serving({"words": words}) as server:
        before = classify(server.url, "words", "w1", "w2")
        words.rename(tmp_path / "old")
        word_bundle(tmp_path / "words")
        shutil.rmtree(tmp_path / "old")
        assert classify(server.url, "words", "w1", "w2") == before
        assert ask(server.url, "/readyz").body == {"ready": True, "unavailable": 0}


def large_word_bundle(directory: Path) -> Path:
    """Make the handmade bundle with its weights in a file of their own."""
    import onnx

    from rmlora.storage import sha256_file, write_json

    word_bundle(directory)
    model = onnx.load(directory / "model.onnx")
    onnx.save(
        model, directory / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=64
    )
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["model"]["files"] = {name: sha256_file(directory / name) for name in ("model.onnx", "model.onnx.data")}
    write_json(directory / "manifest.json", manifest)
    return directory


def test_a_bundle_that_changes_while_it_is_opened_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="was changed while it was opened"), opening(bundle):
        content = (bundle / "model.onnx").read_bytes()
        (bundle / "model.onnx").write_bytes(content)
    with opening(bundle) as opened:
        assert isinstance(opened, bundles.Bundle)


def test_a_graph_that_changed_is_not_specialized(bundle: Path) -> None:
    session = bundles.Bundle.open(bundle).adapter_session()
    session.specialize("one")
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").write_bytes(content)
    with pytest.raises(ChangedFileError, match="has changed since it was opened"):
        session.specialize("two")


def test_a_file_is_hashed_again_only_if_somebody_may_have_written_to_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, hashed = file_of(bundle, "one"), []
    identity = FileIdentity(file, bundles.Bundle.open(bundle).adapter("one").files["adapters/one.onnx_adapter"])
    check = FileIdentity.check

    def counted(self: FileIdentity, *arguments: object) -> None:
        *rest, digest = arguments
        check(self, *rest, lambda: hashed.append(1) or digest())  # type: ignore[arg-type, func-returns-value, operator]

    monkeypatch.setattr(FileIdentity, "check", counted)
    read_onnx_adapter(file, identity)
    read_onnx_adapter(file, identity)
    assert len(hashed) == 2, "a file that was just written may change again within the same tick of the clock"
    until(lambda: time.time_ns() - path_status(file).changed > 2_100_000_000)
    for _ in range(3):
        read_onnx_adapter(file, identity)
    assert len(hashed) == 3
    same_size_as(file)
    with pytest.raises(ChangedFileError, match="is not what it was"):
        read_onnx_adapter(file, identity)


def same_size_as(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
