"""Rebuilds an adapter with new factors, so that its PEFT configuration states their ranks and scales."""

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

_MODULE_SELECTION = ("layers_to_transform", "layers_pattern", "exclude_modules", "layer_replication")
"""Options that select modules. They are dropped, because the result lists its modules one by one."""

_TRAINING_METADATA = ("rmlora", "metrics", "training", "rank_mask")
"""Metadata that describe the old factors. They are dropped, but for the length that texts were cut to."""

_BASE_METADATA = ("base_weights", "base_fingerprint")
"""Metadata that are computed again for the remaining modules."""


def with_modules(adapter: Adapter, modules: Sequence[LoraModule]) -> Adapter:
    """Return ``adapter`` with ``modules`` instead of its own; heads, task, labels and text length stay.

    Raises:
        AdapterError: ``modules`` is empty, or PEFT cannot express their ranks.
    """
    if not modules:
        raise AdapterError(f"No direction of {adapter.source} is left: an adapter without factors changes nothing.")
    if attention := next((module for module in modules if module.peft_path), None):
        raise AdapterError(
            f"{adapter.source} adapts '{attention.path}' inside an nn.MultiheadAttention, where PEFT knows only one rank for both "
            "projections: it can be merged, but not mixed or compressed."
        )
    ranks = {module.path: module.rank for module in modules}
    alphas = {module.path: _int_if_whole(module.scale * module.rank) for module in modules}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    config = {key: value for key, value in adapter.peft_config.items() if key not in _MODULE_SELECTION}
    config.update(
        peft_type="LORA",
        r=rank,
        lora_alpha=alpha,
        rank_pattern={_exact_pattern(path): value for path, value in ranks.items() if value != rank},
        alpha_pattern={_exact_pattern(path): value for path, value in alphas.items() if value != alpha},
        use_rslora=False,
        init_lora_weights=True,
        target_modules=sorted(ranks),
        inference_mode=True,
    )
    metadata = {
        key: value for key, value in adapter.metadata.items() if key not in (*_TRAINING_METADATA, *_BASE_METADATA)
    }
    if adapter.trained_length is not None:
        metadata["max_length"] = adapter.trained_length
    if weights := {path: digest for path, digest in adapter.base_weights.items() if path in ranks}:
        metadata.update(base_weights=weights, base_fingerprint=fingerprint_of(weights))
    return replace(adapter, modules={m.path: m for m in modules}, peft_config=config, metadata=metadata)


def with_factors(
    module: LoraModule,
    A: npt.NDArray[np.floating],  # noqa: N803 - the paper's symbols
    B: npt.NDArray[np.floating],  # noqa: N803
    rank_mask: npt.NDArray[np.bool_] | None = None,
) -> LoraModule:
    """Return ``module`` with the update ``B A``; its scale becomes 1.

    Args:
        module: supplies the path, the kind, and the extra axes that its kind has.
        A: ``[rank, in]``.
        B: ``[out, rank]``.
        rank_mask: ``[rank]``, True for the directions that contribute; None if all do.
    """
    rank = A.shape[0]
    return replace(
        module,
        lora_A=np.ascontiguousarray(A.reshape(rank, *module.lora_A.shape[1:]), dtype=np.float32),
        lora_B=np.ascontiguousarray(B.reshape(B.shape[0], rank, *module.lora_B.shape[2:]), dtype=np.float32),
        scale=1.0,
        rank_mask=rank_mask,
    )


def _exact_pattern(path: str) -> str:
    """Return a PEFT pattern that matches one module only; a bare path would also match the end of a longer one."""
    return "^" + re.escape(path)


def _int_if_whole(value: float) -> Any:
    return int(value) if float(value).is_integer() else float(value)
