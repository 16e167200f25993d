"""The front door: from data to predictions with every function and every kind of bundle, and what it promises of itself."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rmlora_deploy
from rmlora.config import RMLoRAConfig
from rmlora.errors import ConfigError, ParityError
from rmlora.training.run import TrainResult
from rmlora_deploy import Bundle, Classifier, Embedder, export, load, merge, train, verify
from rmlora_deploy.bundles.report import Evaluation
from rmlora_deploy.verification.compare import TOLERANCES
from tests.helpers.cli import environment, text_base, text_data
from tests.helpers.encoders import RANKS, TEXTS

LABELS = {"red", "green", "blue"}
FUNCTIONS = ("export", "load", "merge", "train", "verify")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A directory with base, data and an adapter that was trained on it for a few steps, and what training returned."""
    directory = tmp_path_factory.mktemp("api")
    base = text_base(directory / "base")
    config = RMLoRAConfig(rank=4, active_rank=2, target_modules=("query", "value"))
    result = train(
        base, text_data(directory / "data.jsonl"), directory / "colors", config=config, epochs=1, batch_size=16,
        max_length=16, validation_fraction=0.25,
    )  # fmt: skip
    return directory, result


@pytest.fixture(scope="module")
def merged(trained: tuple[Path, TrainResult]) -> Bundle:
    directory, _ = trained
    return export(directory / "base", directory / "colors", directory / "merged")


@pytest.fixture(scope="module")
def branches(trained: tuple[Path, TrainResult]) -> Bundle:
    directory, _ = trained
    adapters = {"colors": directory / "colors", "again": directory / "colors"}
    data = {"colors": str(directory / "data.jsonl")}
    return export(directory / "base", adapters, directory / "branches", data=data)


def test_train_writes_a_package_and_returns_its_metrics(trained: tuple[Path, TrainResult]) -> None:
    directory, result = trained
    assert result.output == directory / "colors" and result.steps == 3
    assert 0 <= result.metrics["validation"]["accuracy"] <= 1
    assert (result.output / "adapter_model.safetensors").is_file()


def test_merge_writes_a_checkpoint_and_reports_the_rounding_loss(
    trained: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    directory, _ = trained
    progress: list[tuple[int, int]] = []
    report = merge(
        directory / "base", directory / "colors", tmp_path / "checkpoint",
        on_progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    assert report.worst_loss < 1e-4
    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["id2label"] == {
        "0": "blue",
        "1": "green",
        "2": "red",
    }
    assert progress and progress[-1][0] == progress[-1][1]


def test_a_merged_bundle_is_exported_loaded_and_verified(merged: Bundle, trained: tuple[Path, TrainResult]) -> None:
    directory, _ = trained
    assert merged.mode == "merged"
    assert merged.manifest.verification is not None and merged.manifest.verification.passed
    classifier = load(merged.path)
    assert isinstance(classifier, Classifier)
    prediction, _ = classifier.predict(["w0 w5", "w1 w7"])
    assert {label for label, _ in prediction.ranking} == LABELS
    report = verify(merged.path, data=str(directory / "data.jsonl"))
    assert report.passed and report.against == "PyTorch and PEFT"
    assert isinstance(report.evaluation, Evaluation) and report.evaluation.onnx == report.evaluation.pytorch
    assert Bundle.open(merged.path).manifest.verification == report
    stored = verify(merged, reference_only=True, record=False)
    assert stored.passed and stored.against == "stored outputs of PyTorch and PEFT"
    assert Bundle.open(merged.path).manifest.verification == report
    with pytest.raises(ConfigError, match="holds one adapter: give data as one path"):
        verify(merged, data={"colors": "x.jsonl"})


def test_a_bundle_with_branches_is_exported_loaded_and_verified(branches: Bundle, merged: Bundle) -> None:
    assert branches.mode == "branches" and list(branches.adapters) == ["colors", "again"]
    report = branches.manifest.verification
    assert report is not None and report.passed and report.adapters is not None
    assert report.adapters["colors"].evaluation is not None and report.adapters["again"].evaluation is None
    classifier = load(branches.path)
    assert isinstance(classifier, Classifier)
    texts = ["w0 w5", "w1 w7"]
    mixed = classifier.predict(texts, ["colors", "again"])
    alone = load(merged.path)
    assert isinstance(alone, Classifier)
    for got, expected in zip(mixed, alone.predict(texts), strict=True):
        assert dict(got.ranking) == pytest.approx(dict(expected.ranking), abs=1e-5)
    assert verify(branches.path, record=False).passed
    with pytest.raises(ConfigError, match="branches for adapters: give adapters as a mapping .*; the names are "):
        verify(branches, adapters="colors")


def test_a_bundle_with_vectors_is_loaded_and_verified(embedded: Path) -> None:
    embedder = load(embedded / "vectors")
    assert isinstance(embedder, Embedder)
    vectors = embedder.embed(TEXTS, [*RANKS, *RANKS])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    report = verify(embedded / "vectors", record=False)
    assert report.passed and report.mixed is not None and report.mixed.min_cosine is not None


def test_a_failed_verification_raises_unless_told_not_to(merged: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = TOLERANCES["fp32"].model_copy(update={"relative_error": 0.0})
    monkeypatch.setitem(TOLERANCES, "fp32", strict)
    assert not verify(merged, record=False, check=False).passed
    with pytest.raises(ParityError, match="The fp32 graph differs from PyTorch"):
        verify(merged, record=False)


def test_unknown_settings_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\(\) has no setting 'epoch': the settings are .*epochs"):
        train("base", "data.csv", tmp_path / "out", epoch=2)
    with pytest.raises(ConfigError, match=r"export\(\) has no setting 'opsets': the settings are .*opset"):
        export("base", "adapter", tmp_path / "out", opsets=20)
    with pytest.raises(ConfigError, match="With several adapters data is a mapping from name to file; the names are "):
        export("base", {"a": "a", "b": "b"}, tmp_path / "out", data="data.csv")
    assert not list(tmp_path.iterdir())


def test_the_package_offers_what_it_lists() -> None:
    assert sorted(rmlora_deploy.__all__) == list(rmlora_deploy.__all__)
    assert set(rmlora_deploy.__all__) >= {*FUNCTIONS, "Bundle", "Classifier", "Embedder"}
    assert set(rmlora_deploy.__all__) <= set(dir(rmlora_deploy))
    for name in rmlora_deploy.__all__:
        offered = getattr(rmlora_deploy, name)
        assert name == "__version__" or offered.__doc__, f"{name} has no docstring"
    with pytest.raises(AttributeError, match="no_such_name"):
        rmlora_deploy.no_such_name  # noqa: B018 - the access is the test


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_on_every_function_is_complete(name: str) -> None:
    text = getattr(rmlora_deploy, name).__doc__
    for section in ("Args:", "Returns:", "Raises:", "Examples:"):
        assert f"\n    {section}\n" in text, f"{name}: {section} is missing"
    assert f"{name}(" in text.partition("Examples:")[2]


def test_importing_the_package_imports_neither_torch_nor_onnxruntime() -> None:
    program = "import sys, rmlora_deploy; print([n for n in ('torch', 'onnxruntime', 'peft') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_rooms_do_not_hide_the_functions() -> None:
    importlib.import_module("rmlora_deploy.exporter.pipeline")
    importlib.import_module("rmlora_deploy.verification.verify_merged_bundle")
    from rmlora_deploy import api

    for name in FUNCTIONS:
        assert getattr(rmlora_deploy, name) is getattr(api, name)
