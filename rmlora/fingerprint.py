"""Identifying a base model by the weights that an adapter changes.

Every adapted weight has its own digest; the base's fingerprint is the hash over them. So an adapter with fewer or more
modules (compressed, mixed) can still be checked against the base, and the error can name the first weight that differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from rmlora.adapter import Adapter, Array
from rmlora.checkpoint import Checkpoint
from rmlora.errors import BaseMismatchError
from rmlora.saved_modules import check_saved_modules
from rmlora.stored_weights import StoredWeights, stored_weights
from rmlora.tensors import DTYPES, TensorInfo
from rmlora.weight_parts import Part

__all__ = [
    "array_digest",
    "base_fingerprint",
    "check_base",
    "differing_weight",
    "fingerprint_of",
    "weight_digests",
    "without_copies",
]

_BLOCK = 4096
_BLOCKS_PER_TENSOR = 16


def base_fingerprint(checkpoint: Checkpoint, modules: Iterable[str], adapter: Adapter | None = None) -> str:
    """Return ``"sha256:…"`` over the weights of ``modules`` (module paths) in ``checkpoint``.

    Raises:
        AdapterError: a module has no weight in the checkpoint.
    """
    return fingerprint_of(weight_digests(checkpoint, modules, adapter))


def fingerprint_of(digests: Mapping[str, str]) -> str:
    """Return the fingerprint for the result of :func:`weight_digests`."""
    lines = (f"{module} {digest}\n" for module, digest in sorted(digests.items()))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def weight_digests(checkpoint: Checkpoint, modules: Iterable[str], adapter: Adapter | None = None) -> dict[str, str]:
    """Return module path → 32 hex digits, a hash of its weight's type, shape and content.

    16 evenly spread blocks of 4 KiB are hashed, or everything if the weight is smaller: 64 KiB per tensor, about a second
    for a 7B base. The offsets depend only on the size, so the result is the same on every machine. The digest of a module
    whose weight is fused with others on disk is that of the fused tensor.

    Args:
        checkpoint: the base.
        modules: module paths.
        adapter: says which class the model is, where the modules' names alone do not lead to their tensors.

    Raises:
        AdapterError: a module has no weight in the checkpoint.
    """
    weights = stored_weights(checkpoint, adapter)
    parameters = {module: weights.weight_of(module) for module in sorted(modules)}
    found = weights.require(parameters.values())
    return {module: _digest_parts(weights, found[parameter]) for module, parameter in parameters.items()}


def _digest_parts(weights: StoredWeights, parts: tuple[Part, ...]) -> str:
    digests = [_digest(weights.checkpoint.tensors[part.tensor]) for part in parts]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()[:32]


def without_copies(adapter: Adapter, digests: Mapping[str, str]) -> Adapter:
    """Return ``adapter`` without the weights saved beside an update of the same module that equal the base's.

    PEFT saves whole embeddings beside their update if it cannot see that they are unchanged.

    Args:
        adapter: as it was read.
        digests: module path → digest of the base's weight, from :func:`weight_digests`.
    """
    saved = {
        name: value
        for name, value in adapter.modules_to_save.items()
        if (path := name.removesuffix(".weight")) not in adapter.modules or digests.get(path) != array_digest(value)
    }
    return adapter if len(saved) == len(adapter.modules_to_save) else replace(adapter, modules_to_save=saved)


def array_digest(array: Array) -> str:
    """Return the digest of a weight in memory, the same as of the tensor it was read from."""
    dtype = next((name for name, numpy_type in DTYPES.items() if numpy_type == array.dtype), str(array.dtype))
    content = np.ascontiguousarray(array).tobytes()
    return _digest_of(dtype, array.shape, len(content), lambda start, count: content[start : start + count])


def _digest(info: TensorInfo) -> str:
    return _digest_of(info.dtype, info.shape, info.nbytes, info.read_bytes)


def _digest_of(dtype: str, shape: tuple[int, ...], nbytes: int, read: Callable[[int, int], bytes]) -> str:
    digest = hashlib.sha256(f"{dtype}|{shape}\n".encode())
    if nbytes <= _BLOCK * _BLOCKS_PER_TENSOR:
        digest.update(read(0, nbytes))
    else:
        span = nbytes - _BLOCK
        for block in range(_BLOCKS_PER_TENSOR):
            digest.update(read(span * block // (_BLOCKS_PER_TENSOR - 1), _BLOCK))
    return digest.hexdigest()[:32]


def check_base(adapter: Adapter, checkpoint: Checkpoint, *, allow_mismatch: bool = False) -> str:
    """Check that ``adapter`` was made for this base and return the base's fingerprint over the adapter's modules.

    If the adapter does not record its base, as those of other tools, only the module names are checked.

    Raises:
        BaseMismatchError: a weight differs from the recorded one, and ``allow_mismatch`` is not set.
        AdapterError: a module is not in the base, or one that was saved whole is not in the adapter.
    """
    actual = weight_digests(checkpoint, adapter.modules, adapter)
    fingerprint = fingerprint_of(actual)
    differing = differing_weight(adapter.base_weights, actual)
    mismatch = differing is not None or (not adapter.base_weights and adapter.fingerprint not in (None, fingerprint))
    if mismatch and not allow_mismatch:
        made_for = adapter.metadata.get("base_model") or "another base"
        detail = f" and differs in '{differing}'" if differing else ""
        raise BaseMismatchError(
            f"The adapter {adapter.source} was made for {made_for} ({str(adapter.fingerprint)[:19]}…), but the base at "
            f"{checkpoint.path} is {fingerprint[:19]}…{detail}: give the base it was trained on, or pass "
            "--allow-base-mismatch to use it anyway."
        )
    check_saved_modules(adapter, stored_weights(checkpoint, adapter))
    return fingerprint


def differing_weight(left: Mapping[str, str], right: Mapping[str, str]) -> str | None:
    """Return the first module whose two digests differ, or None; modules in only one mapping are ignored."""
    return next((name for name in sorted(left.keys() & right.keys()) if left[name] != right[name]), None)
