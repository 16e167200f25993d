"""The command of a short training run, and comparison of the packages it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

SETTINGS = ["--rank", "4", "--alpha", "4", "--batch-size", "8", "--epochs", "3", "--learning-rate", "5e-3"]


def words_for(base: Path, data: Path, output: Path, *more: object) -> list[object]:
    """Return the words of a short training run."""
    return ["train", "--base", base, "--train", data, "-o", output, *SETTINGS, *more]


def tensors(package: Path) -> dict[str, np.ndarray]:
    return load_file(package / "adapter_model.safetensors")


def assert_equal(left: Path, right: Path) -> None:
    first, second = tensors(left), tensors(right)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
