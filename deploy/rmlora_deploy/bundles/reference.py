"""Reference inputs and the outputs expected for them, stored in a bundle so that it can be verified without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from rmlora.errors import InputError
from rmlora.inputs import Arrays
from rmlora.library_calls import library_call
from rmlora.readable import is_readable_file
from rmlora.storage import write_tensors

__all__ = ["load_reference", "reference_inputs", "save_reference"]

_ADVICE = "copy the bundle again or export again"


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
        InputError: the file is missing or damaged, or an output is not finite.
    """
    batches = _batches(path)
    if not all(np.isfinite(batch["logits"]).all() for batch in batches):
        raise InputError(f"{path} holds outputs that are NaN or infinite: {_ADVICE}.")
    return [_inputs(batch) for batch in batches], [batch["logits"] for batch in batches]


def reference_inputs(path: Path) -> list[Arrays]:
    """Return the batches of inputs alone, whatever the outputs are; errors as those of :func:`load_reference`."""
    return [_inputs(batch) for batch in _batches(path)]


def _inputs(batch: Arrays) -> Arrays:
    return {name: array for name, array in batch.items() if name != "logits"}


def _batches(path: Path) -> list[Arrays]:
    """Return the batches with their outputs as ``logits``."""
    if not is_readable_file(path):
        raise InputError(
            f"{path} is missing: the bundle cannot be verified without PyTorch; copy it again or export again."
        )
    with library_call(lambda reason: InputError(f"{path} cannot be read ({reason}): {_ADVICE}.")):
        tensors = load_file(path)
    batches: dict[int, Arrays] = {}
    for key, array in tensors.items():
        number, _, name = key.partition("/")
        if not number.isascii() or not number.isdigit() or len(number) > 9 or not name:
            raise InputError(f"{path} holds '{key}', which is not called NUMBER/NAME: {_ADVICE}.")
        batches.setdefault(int(number), {})[name] = array
    if not batches or not all("logits" in batch for batch in batches.values()):
        raise InputError(f"{path} holds batches without outputs: {_ADVICE}.")
    ordered = [batches[number] for number in sorted(batches)]
    for batch in ordered:
        if (
            batch["logits"].dtype.kind != "f"
            or len({array.shape[:1] for array in batch.values()}) > 1
            or 0 in batch["logits"].shape
        ):
            raise InputError(f"{path} holds a batch whose arrays do not belong together: {_ADVICE}.")
    return ordered
