"""onnxruntime's own adapter files, which its ``LoraAdapter`` feeds from any language (no torch).

The format holds names and tensors only: neither rank nor base nor labels. A bundle's manifest has those.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from rmlora.errors import require
from rmlora.storage import atomic_file

__all__ = ["write_onnx_adapter"]

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
