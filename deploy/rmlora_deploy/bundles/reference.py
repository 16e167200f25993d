"""Reference inputs and PyTorch's outputs on them, kept in a bundle to prove it where torch is absent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rmlora.errors import InputError
from rmlora_deploy.runtime.outputs import Arrays

__all__ = ["load_reference", "save_reference"]


def save_reference(path: Path, cases: Sequence[Arrays], logits: Sequence[np.ndarray]) -> None:
    """Write inputs and PyTorch's outputs on them."""
    tensors: Arrays = {}
    for number, (case, output) in enumerate(zip(cases, logits, strict=True)):
        tensors.update({f"{number}/{name}": np.ascontiguousarray(array) for name, array in case.items()})
        tensors[f"{number}/logits"] = np.ascontiguousarray(output)
    save_file(tensors, path)


def load_reference(path: Path) -> tuple[list[Arrays], list[np.ndarray]]:
    """Read what :func:`save_reference` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(
            f"{path} is missing: the bundle cannot be verified without PyTorch; copy it again or export again."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read ({error}): copy the bundle again or export again.") from None
    cases: dict[int, Arrays] = {}
    for key, array in tensors.items():
        number, _, name = key.partition("/")
        cases.setdefault(int(number), {})[name] = array
    ordered = [cases[number] for number in sorted(cases)]
    return [{k: v for k, v in case.items() if k != "logits"} for case in ordered], [case["logits"] for case in ordered]
