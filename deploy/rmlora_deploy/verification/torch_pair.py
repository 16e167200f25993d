"""PyTorch's side of a verification: the models a bundle was made from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, BaseMismatchError, InputError, is_installed
from rmlora.fingerprint import base_fingerprint
from rmlora.package import TENSORS_FILE
from rmlora.pooling import Pooling
from rmlora.storage import sha256_file
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.runtime.outputs import Arrays
from rmlora_deploy.verification.torch_outputs import torch_logits

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["TorchPair", "load_torch_pair", "torch_is_installed"]


@dataclass(frozen=True)
class TorchPair:
    """PyTorch's two models of one adapter."""

    adapted: PeftModel
    """The base with PEFT's layers."""
    merged: Any
    """A copy with the update merged into the weights."""
    pooling: Pooling | None = None
    """How they make one vector of a text's tokens; None where they answer with scores."""

    @classmethod
    def of(cls, adapted: PeftModel, pooling: Pooling | None = None) -> TorchPair:
        """Return ``adapted`` with a merged copy of it."""
        return cls(adapted, copy.deepcopy(adapted).merge_and_unload(), pooling)

    def answer(self, batch: Arrays) -> np.ndarray:
        """Return what the model with PEFT's layers says to a batch: logits, or vectors."""
        return torch_logits(self.adapted, batch, self.pooling)

    def merged_answer(self, batch: Arrays) -> np.ndarray:
        """Return what the merged model says."""
        return torch_logits(self.merged, batch, self.pooling)


def load_torch_pair(bundle: Bundle, base: str | None, adapter: Path | None, *, name: str | None = None) -> TorchPair:
    """Load the models a bundle was made from.

    Args:
        bundle: its manifest tells the sources, and how to recognize them.
        base: overrides where the base is.
        adapter: overrides where the adapter is.
        name: of the adapter, in a bundle with several.

    Raises:
        InputError: a recorded source is not there any more.
        AdapterError: the adapter is another one than the bundle's.
        BaseMismatchError: the base is another one than the bundle's.
    """
    from rmlora.torch_models import load_adapted

    recorded = bundle.adapter(name) if name is not None else bundle.manifest["adapter"]
    path = adapter or Path(recorded["source"])
    if adapter is None and not path.is_dir():
        raise InputError(
            f"The adapter {path} of this bundle is not there any more: pass --adapter, or --reference-only."
        )
    if (path / TENSORS_FILE).is_file() and sha256_file(path / TENSORS_FILE) != recorded["sha256"]:
        raise AdapterError(
            f"{path} is not the adapter this bundle was made from (SHA-256 differs): pass the right --adapter."
        )
    directory = _base_directory(bundle, base)
    # Whether base and adapter belong together was settled at export; here both must be the bundle's own.
    adapted, loaded = load_adapted(directory, path, task=bundle.task, allow_base_mismatch=True)
    modules = loaded.modules if name is None else [slot.module for slot in bundle.lora_inputs().modules]
    if base_fingerprint(Checkpoint(directory), modules) != bundle.manifest["base"]["fingerprint"]:
        raise BaseMismatchError(
            f"{directory} is not the base this bundle was made from (fingerprint differs): pass the right --base."
        )
    return TorchPair.of(adapted, bundle.pooling)


def _base_directory(bundle: Bundle, base: str | None) -> Path:
    if base is not None:
        return resolve_base(base)
    recorded = bundle.manifest["base"]
    if Path(recorded["source"]).is_absolute() and not Path(recorded["source"]).exists():
        raise InputError(
            f"The base {recorded['source']} of this bundle is not there any more: pass --base, or --reference-only."
        )
    return resolve_base(recorded["source"], revision=recorded["revision"])


def torch_is_installed() -> bool:
    """Whether PyTorch and PEFT can be used here."""
    return all(is_installed(name) for name in ("torch", "peft"))
