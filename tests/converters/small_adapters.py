"""Adapters of small linear modules with random factors."""

from __future__ import annotations

import numpy as np

from rmlora.adapter import Adapter, LoraModule
from rmlora_converters.delta import delta_rows

__all__ = ["adapter", "dense", "module"]


def module(path: str, rank: int, seed: int, mask: list[bool] | None = None) -> LoraModule:
    """Return a linear module with 12 inputs and 9 outputs."""
    rng = np.random.default_rng(seed)
    return LoraModule(
        path=path,
        kind="linear",
        lora_A=rng.normal(size=(rank, 12)).astype(np.float32),
        lora_B=rng.normal(size=(9, rank)).astype(np.float32),
        scale=0.5,
        rank_mask=None if mask is None else np.array(mask),
    )


def adapter(*modules: LoraModule) -> Adapter:
    """Return an adapter of these modules."""
    return Adapter(modules={item.path: item for item in modules})


def dense(item: LoraModule) -> np.ndarray:
    """Return the update of such a module as a matrix ``[out, in]``."""
    return delta_rows(item, (9, 12))
