"""Recognising a base model by the weights an adapter changes (DESIGN 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from rmlora.adapter import Adapter
from rmlora.checkpoint import Checkpoint
from rmlora.errors import BaseMismatchError
from rmlora.naming import find_tensors
from rmlora.tensors import TensorInfo

__all__ = ["base_fingerprint", "check_base"]

_BLOCK = 4096
_BLOCKS_PER_TENSOR = 16


def base_fingerprint(checkpoint: Checkpoint, modules: Iterable[str]) -> str:
    """Return ``"sha256:…"`` over the weights of ``modules`` (module paths) in ``checkpoint``.

    The hash covers each module's path, its weight's type and shape, and 16 blocks of 4 KiB spread evenly over
    the content (all of it when it is smaller): 64 KiB a tensor, so a 7B base costs about a second. The
    sampled places depend only on the size, hence the result is the same on every machine.

    Raises:
        AdapterError: a module has no weight in the checkpoint.
    """
    parameters = sorted(f"{module}.weight" for module in modules)
    found = _tensors_of(checkpoint, parameters)
    digest = hashlib.sha256()
    for parameter in parameters:
        info = checkpoint.tensors[found[parameter]]
        digest.update(f"{parameter}|{info.dtype}|{info.shape}\n".encode())
        _update_with_sample(digest, info)
    return "sha256:" + digest.hexdigest()


def _tensors_of(checkpoint: Checkpoint, parameters: list[str]) -> dict[str, str]:
    """Map parameters to tensors; a tied output layer without a tensor of its own stands for the embedding."""
    tie = checkpoint.tied_output
    output = f"{tie.layer}.weight" if tie else ""
    shared = {output: tie.embedding} if tie and output in parameters and output not in checkpoint.tensors else {}
    own = [parameter for parameter in parameters if parameter not in shared]
    return {**find_tensors(own, checkpoint.tensors.keys(), where=f"the base at {checkpoint.path}"), **shared}


def _update_with_sample(digest: hashlib._Hash, info: TensorInfo) -> None:
    if info.nbytes <= _BLOCK * _BLOCKS_PER_TENSOR:
        digest.update(info.read_bytes(0, info.nbytes))
        return
    span = info.nbytes - _BLOCK
    for block in range(_BLOCKS_PER_TENSOR):
        digest.update(info.read_bytes(span * block // (_BLOCKS_PER_TENSOR - 1), _BLOCK))


def check_base(adapter: Adapter, checkpoint: Checkpoint, *, allow_mismatch: bool = False) -> str:
    """Return the base's fingerprint for the adapter's modules, after comparing it with the adapter's own.

    An adapter that records no fingerprint (any from elsewhere) is only required to fit by name.

    Raises:
        BaseMismatchError: the fingerprints differ and ``allow_mismatch`` is not set.
        AdapterError: a module is not in the base.
    """
    actual = base_fingerprint(checkpoint, adapter.modules)
    expected = adapter.fingerprint
    if expected and expected != actual and not allow_mismatch:
        made_for = adapter.metadata.get("base_model") or "another base"
        raise BaseMismatchError(
            f"The adapter {adapter.source} was made for {made_for} ({expected[:19]}…), but the base at {checkpoint.path} "
            f"is {actual[:19]}…: give the base it was trained on, or pass --allow-base-mismatch if you know better."
        )
    return actual
