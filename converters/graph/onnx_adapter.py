"""onnxruntime's own adapter files, which its ``LoraAdapter`` feeds from any language (no torch).

The format holds names and tensors only: neither rank nor base nor labels. A bundle's manifest has those.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError, require
from rmlora.storage import atomic_file

__all__ = ["read_onnx_adapter", "write_onnx_adapter"]

AnyArray = npt.NDArray[Any]


def write_onnx_adapter(path: Path, arrays: Mapping[str, AnyArray]) -> None:
    """Write arrays by input name to ``path``, atomically."""
    require("onnxruntime", "cpu")
    import onnxruntime as ort

    made = ort.AdapterFormat()
    made.set_adapter_version(1)
    made.set_model_version(1)
    made.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()})
    with atomic_file(path) as temporary:
        made.export_adapter(str(temporary))


def read_onnx_adapter(path: Path) -> dict[str, AnyArray]:
    """Return what :func:`write_onnx_adapter` wrote to ``path``.

    Raises:
        InputError: the file is missing or is no adapter file.
    """
    require("onnxruntime", "cpu")
    import onnxruntime as ort

    if not path.is_file():
        raise InputError(f"Adapter file not found: {path} does not exist.")
    try:
        file = ort.AdapterFormat.read_adapter(str(path))  # it owns the memory, so the arrays are copied before it goes
        return {name: np.array(value.numpy()) for name, value in file.get_parameters().items()}
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common public base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as an .onnx_adapter file ({reason}): add the adapter again.") from None
