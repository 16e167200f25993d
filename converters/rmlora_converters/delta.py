"""The update of one module in the layout in which the base stores its weight (numpy, float32).

========== ==================== ============================ =====================
kind       base weight          update                       one row per
========== ==================== ============================ =====================
linear     ``[out, in]``        ``s · B A``                  output
Conv1D     ``[in, out]``        ``s · (B A)ᵀ``               input
embedding  ``[tokens, width]``  ``s · (B A)ᵀ``               token
conv       ``[out, in, *k]``    ``s · B A``, axes unfolded   output channel
========== ==================== ============================ =====================

Rows are slices along the first axis of the weight. Any range of them can be computed alone, so a merge can go block by block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from rmlora.adapter import LoraModule
from rmlora.errors import AdapterError
from rmlora.stored_weights import StoredWeights
from rmlora.wording import counted

__all__ = ["check_updates", "delta_rows", "stores_transposed", "update_factors"]

FloatArray = npt.NDArray[np.float32]


def stores_transposed(module: LoraModule, shape: tuple[int, ...]) -> bool:
    """Return True if a base weight of ``shape`` is stored ``[in, out]``.

    The shape decides. A square weight fits both ways, and then the adapter's ``fan_in_fan_out`` decides.

    Raises:
        AdapterError: the update does not fit the weight in either orientation.
    """
    fan_in, fan_out = math.prod(module.lora_A.shape[1:]), module.lora_B.shape[0]
    if module.kind == "embedding":
        fits, transposed = shape == (fan_in, fan_out), True
    elif module.kind == "conv":
        fits, transposed = shape == (fan_out, *module.lora_A.shape[1:]), False
    else:
        fits = shape in ((fan_out, fan_in), (fan_in, fan_out))
        transposed = module.fan_in_fan_out if fan_in == fan_out else shape == (fan_in, fan_out)
    if not fits:
        raise AdapterError(
            f"The adapter's update of '{module.path}' has {counted(fan_in, 'input')} and {counted(fan_out, 'output')}, but the base's weight "
            f"has shape {list(shape)}: this is not the base the adapter was made for."
        )
    return transposed


def check_updates(modules: Iterable[LoraModule], weights: StoredWeights) -> None:
    """Raise :class:`AdapterError` if an update does not fit its weight in a base; a weight stored in parts is not looked at."""
    for module in modules:
        for part in weights.find_shared(module.parameter):
            if part.is_whole:
                stores_transposed(module, weights.checkpoint.tensors[part.tensor].shape)


def update_factors(module: LoraModule, shape: tuple[int, ...]) -> tuple[FloatArray, FloatArray]:
    """Return (left, right) whose product is the update in the layout of a base weight of ``shape``, scale included.

    ``left`` is ``[rows, active rank]``, ``right`` ``[active rank, elements of a row]``. B is scaled and not the product, which
    is larger. The product may overflow; callers check the sum.

    Raises:
        AdapterError: the update does not fit the weight.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        b = module.B * np.float32(module.scale)
    if stores_transposed(module, shape):
        return np.ascontiguousarray(module.A.T), np.ascontiguousarray(b.T)
    return b, module.A


def delta_rows(module: LoraModule, shape: tuple[int, ...], start: int = 0, stop: int | None = None) -> FloatArray:
    """Return rows ``start:stop`` of the update in the layout of a base weight of ``shape``, scale included.

    Masked directions contribute nothing. The result may overflow; callers check the sum.

    Raises:
        AdapterError: the update does not fit the weight.
    """
    left, right = update_factors(module, shape)
    with np.errstate(over="ignore", invalid="ignore"):  # callers refuse a sum that is not finite
        block = left[start:stop] @ right
    return np.asarray(block.reshape(-1, *shape[1:]), dtype=np.float32)
