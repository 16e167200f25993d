"""Command line and server take an adapter by the same checks: what one refuses the other refuses in the same words."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmlora.package import load_package, save_package
from rmlora.storage import write_json
from tests.helpers.branch_graphs import make_adapter
from tests.helpers.cli import run
from tests.helpers.servers import ask, serving


@pytest.fixture(scope="module")
def refused(served: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of adapter packages that no graph should take."""
    directory = tmp_path_factory.mktemp("refused")
    good = make_adapter("bert", directory, "two", rank=4)
    adapter = load_package(good)
    silent = {path: replace(module, lora_B=module.lora_B * 0) for path, module in adapter.modules.items()}
    without = {key: value for key, value in adapter.metadata.items() if key in ("task", "labels")}
    save_package(replace(adapter, modules=silent, modules_to_save={}, metadata=without), directory / "silent")
    huge = {path: replace(module, lora_B=module.lora_B * np.float32(1e30)) for path, module in adapter.modules.items()}
    save_package(replace(adapter, modules=huge, metadata=without), directory / "huge")
    save_package(replace(adapter, metadata={**without, "task": "feature-extraction"}), directory / "other-task")
    shutil.copytree(good, directory / "nan")
    tensors = load_file(good / "adapter_model.safetensors")
    first = next(name for name in tensors if "lora_A" in name)
    tensors[first] = tensors[first] * np.float32("nan")
    save_file(tensors, directory / "nan" / "adapter_model.safetensors")
    write_json(directory / "nan" / "rmlora.json", {"format_version": 1, **without})
    return directory


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "holds NaN or infinity: the training run that made it diverged."),
        (
            "silent",
            "The adapter 'silent' changes nothing in the outputs: its update has no effect and its head is the base's.",
        ),
        ("huge", "With the adapter 'huge' the graph gives NaN or infinity"),
    ],
)
def test_both_refuse_with_the_same_sentence(
    served: dict[str, Path], refused: Path, tmp_path: Path, name: str, message: str
) -> None:
    bundle = tmp_path / "many"
    shutil.copytree(served["many"], bundle)
    command = run("adapter", "add", bundle, refused / name)
    assert command.code == 3
    said = command.stderr.strip().removeprefix("Error: ").replace(str(refused / name), f"'{name}'")
    assert message in said
    with serving({"many": bundle}, adapter_dirs=(refused,)) as running:
        answer = ask(running.url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": name})
        assert answer.status == 400
        assert answer.body["error"]["message"] == said
        names = [card["id"] for card in ask(running.url, "/v1/models").body["data"]]
        assert name not in names
    assert not (bundle / "adapters" / f"{name}.onnx_adapter").exists()


def test_neither_takes_an_adapter_for_another_task(served: dict[str, Path], refused: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "many"
    shutil.copytree(served["many"], bundle)
    command = run("adapter", "add", bundle, refused / "other-task")
    assert command.code == 3 and "is for feature-extraction, the bundle for text-classification" in command.stderr
    with serving({"many": bundle}, adapter_dirs=(refused,)) as running:
        answer = ask(running.url, "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "other-task"})
        assert answer.status == 400 and "task" in answer.text
