"""A graph whose rows are not apart is refused by itself: without PyTorch, whatever the trained adapters hide."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rmlora.errors import ParityError
from rmlora_deploy.bundles.bundle import MODEL_FILE, Bundle
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.pipeline import export_bundle
from rmlora_deploy.verification.check_rows import check_rows
from tests.helpers.branch_graphs import make_adapter, make_base


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("rows")
    base = make_base("bert", directory)
    adapters = {name: make_adapter("bert", directory, name, rank=rank) for name, rank in (("one", 2), ("two", 4))}
    settings = ExportSettings(str(base), adapters, directory / "bundle", mode="branches", verify=False)
    return export_bundle(settings, on_progress=lambda line: None)


def damaged(bundle: Bundle, directory: Path, operator: str, constant: np.ndarray) -> Bundle:
    """Return a copy of ``bundle`` in whose graph ``operator`` changes a factor before the branch reads it."""
    shutil.copytree(bundle.path, directory / "bundle")
    file = directory / "bundle" / MODEL_FILE
    model = onnx.load(file)
    name = bundle.lora_inputs().modules[0].lora_B
    node = next(node for node in model.graph.node if name in node.input)
    model.graph.initializer.append(numpy_helper.from_array(constant, "damage"))
    position = list(model.graph.node).index(node)
    node.input[list(node.input).index(name)] = "changed"
    model.graph.node.insert(position, helper.make_node(operator, [name, "damage"], ["changed"]))
    onnx.save(model, file)
    return Bundle(directory / "bundle", bundle.manifest)


def test_a_whole_graph_passes(bundle: Bundle) -> None:
    check_rows(bundle, compare_merged=True)


def test_rows_that_use_the_adapter_of_another_row(bundle: Bundle, tmp_path: Path) -> None:
    broken = damaged(bundle, tmp_path, "Gather", np.array([0]))
    with pytest.raises(ParityError, match=r"in a batch of 2 rows is not what it is alone: it differs by"):
        check_rows(broken, compare_merged=False)


def test_a_number_of_rows_that_does_not_run(bundle: Bundle, tmp_path: Path) -> None:
    broken = damaged(bundle, tmp_path, "Tile", np.array([2, 1, 1]))
    with pytest.raises(ParityError, match="does not run with rows of several adapters"):
        check_rows(broken, compare_merged=False)


def test_an_update_of_the_wrong_size(bundle: Bundle, tmp_path: Path) -> None:
    broken = damaged(bundle, tmp_path, "Mul", np.array(2, np.float32))
    check_rows(broken, compare_merged=False)
    with pytest.raises(ParityError, match="is not what it is with the update in the weights"):
        check_rows(broken, compare_merged=True)


def test_a_graph_that_is_not_the_bases_without_adapters(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "bundle")
    model = onnx.load(tmp_path / "bundle" / MODEL_FILE)
    bias = next(
        item
        for item in model.graph.initializer
        if item.name.startswith("classifier.bias/") or item.name == "bert.embeddings.LayerNorm.bias"
    )
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 0.1, bias.name))
    onnx.save(model, tmp_path / "bundle" / MODEL_FILE)
    with pytest.raises(ParityError, match="Without an adapter the graph with branches differs from the base's"):
        check_rows(Bundle(tmp_path / "bundle", bundle.manifest), compare_merged=False)
