"""Reference inputs and the outputs expected for them, stored in a bundle so that it can be verified without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from rmlora.errors import InputError
from rmlora.inputs import Arrays
from rmlora.readable import is_readable_file
from rmlora.storage import write_tensors

__all__ = ["load_reference", "save_reference"]


def save_reference(path: Path, batches: Sequence[Arrays], outputs: Sequence[np.ndarray]) -> None:
    """Write batches of inputs and the expected output of each."""
    tensors: Arrays = {}
    for number, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
        tensors.update({f"{number}/{name}": np.ascontiguousarray(array) for name, array in batch.items()})
        tensors[f"{number}/logits"] = np.ascontiguousarray(output)
    write_tensors(path, tensors)


def load_reference(path: Path) -> tuple[list[Arrays], list[np.ndarray]]:
    """Return the batches of inputs and the expected outputs that :func:`save_reference` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    if not is_readable_file(path):
        raise InputError(
            f"{path} is missing: the bundle cannot be verified without PyTorch; copy it again or export again."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read ({error}): copy the bundle again or export again.") from None
    batches: dict[int, Arrays] = {}
    for key, array in tensors.items():
        number, _, name = key.partition("/")
        batches.setdefault(int(number), {})[name] = array
    ordered = [batches[number] for number in sorted(batches)]
    return [{k: v for k, v in batch.items() if k != "logits"} for batch in ordered], [
        batch["logits"] for batch in ordered
    ]
