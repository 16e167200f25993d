"""An adapter with new factors: PEFT's configuration is made to say their ranks and scales."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.adapter import Adapter, LoraModule
from rmlora.errors import AdapterError
from rmlora.fingerprint import fingerprint_of

__all__ = ["with_factors", "with_modules"]

_DROPPED = ("layers_to_transform", "layers_pattern", "exclude_modules", "layer_replication")
"""Options that choose modules; the result lists its modules one by one instead."""

_OF_TRAINING = ("rmlora", "metrics", "training", "rank_mask")
"""Metadata that describe the factors before."""

_OF_THE_BASE = ("base_weights", "base_fingerprint")
"""Metadata that are made again for the modules that are left."""


def with_modules(adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
    """Return ``adapter`` with ``modules`` in place of its own; heads, task and labels stay.

    Raises:
        AdapterError: no module is left.
    """
    if not modules:
        raise AdapterError(f"No direction of {adapter.source} is left: an adapter without factors changes nothing.")
    ranks = {module.path: module.rank for module in modules}
    alphas = {module.path: _plain(module.scale * module.rank) for module in modules}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    config = {key: value for key, value in adapter.peft_config.items() if key not in _DROPPED}
    config.update(
        peft_type="LORA",
        r=rank,
        lora_alpha=alpha,
        rank_pattern={_exactly(path): value for path, value in ranks.items() if value != rank},
        alpha_pattern={_exactly(path): value for path, value in alphas.items() if value != alpha},
        use_rslora=False,
        init_lora_weights=True,
        target_modules=sorted(ranks),
        inference_mode=True,
    )
    metadata = {key: value for key, value in adapter.metadata.items() if key not in (*_OF_TRAINING, *_OF_THE_BASE)}
    if weights := {path: digest for path, digest in adapter.base_weights.items() if path in ranks}:
        metadata.update(base_weights=weights, base_fingerprint=fingerprint_of(weights))
    return replace(adapter, modules={m.path: m for m in modules}, peft_config=config, metadata=metadata)


def with_factors(
    module: LoraModule,
    A: npt.NDArray[np.floating],  # noqa: N803 - the paper's symbols
    B: npt.NDArray[np.floating],  # noqa: N803
    rank_mask: npt.NDArray[np.bool_] | None = None,
) -> LoraModule:
    """Return ``module`` with the update ``B A`` (scale 1).

    Args:
        module: gives path, kind and the shapes of its kind.
        A: ``[rank, in]``.
        B: ``[out, rank]``.
        rank_mask: ``[rank]``.
    """
    rank = A.shape[0]
    return replace(
        module,
        lora_A=np.ascontiguousarray(A.reshape(rank, *module.lora_A.shape[1:]), dtype=np.float32),
        lora_B=np.ascontiguousarray(B.reshape(B.shape[0], rank, *module.lora_B.shape[2:]), dtype=np.float32),
        scale=1.0,
        rank_mask=rank_mask,
    )


def _exactly(path: str) -> str:
    """Return PEFT's pattern for one module; a bare path would also match the end of a longer one."""
    return "^" + re.escape(path)


def _plain(value: float) -> Any:
    return int(value) if float(value).is_integer() else float(value)
