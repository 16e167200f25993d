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
from rmlora.outputs import Outputs
from rmlora.package import TENSORS_FILE
from rmlora.pooling import Pooling
from rmlora.storage import sha256_file
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import AdapterSource
from rmlora_deploy.bundles.sources import find_adapter_directory, find_base_directory
from rmlora_deploy.runtime.outputs import Arrays
from rmlora_deploy.verification.torch_outputs import torch_output

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["TorchPair", "find_adapter", "find_base", "load_torch_pair", "torch_is_installed"]


@dataclass(frozen=True)
class TorchPair:
    """PyTorch's two models of one adapter."""

    adapted: PeftModel
    """The base with PEFT's layers."""
    merged: Any
    """A copy with the update merged into the weights."""
    outputs: Outputs
    """What they give."""
    pooling: Pooling | None = None
    """How they make one vector of a text's tokens; None where nothing is pooled."""

    @classmethod
    def of(cls, adapted: PeftModel, outputs: Outputs, pooling: Pooling | None = None) -> TorchPair:
        """Return ``adapted`` with a merged copy of it."""
        return cls(adapted, copy.deepcopy(adapted).merge_and_unload(), outputs, pooling)

    def output(self, batch: Arrays) -> np.ndarray:
        """Return what the model with PEFT's layers gives for a batch."""
        return torch_output(self.adapted, batch, self.outputs, self.pooling)

    def merged_output(self, batch: Arrays) -> np.ndarray:
        """Return what the merged model gives for a batch."""
        return torch_output(self.merged, batch, self.outputs, self.pooling)


def load_torch_pair(bundle: Bundle, base: str | None, adapter: Path | None, *, name: str | None = None) -> TorchPair:
    """Load the models a bundle was made from.

    Args:
        bundle: its manifest tells how to recognize them.
        base: where the base is; None where it was noted at export.
        adapter: where the adapter is; None likewise.
        name: of the adapter, in a bundle with several.

    Raises:
        InputError: base or adapter is not where it was noted.
        AdapterError: the adapter is another one than the bundle's.
        BaseMismatchError: the base is another one than the bundle's.
    """
    from rmlora.torch_models import load_adapted

    recorded = bundle.adapter(name) if name is not None else bundle.merged_adapter
    path = adapter or find_adapter(bundle, recorded)
    if (path / TENSORS_FILE).is_file() and sha256_file(path / TENSORS_FILE) != recorded.sha256:
        raise AdapterError(
            f"{path} is not the adapter this bundle was made from (SHA-256 differs): pass the right --adapter."
        )
    directory = resolve_base(base) if base is not None else find_base(bundle)
    # Whether base and adapter belong together was settled at export; here both must be the bundle's own.
    adapted, loaded = load_adapted(directory, path, task=bundle.task.name, allow_base_mismatch=True)
    modules = loaded.modules if name is None else [branch.module for branch in bundle.lora_inputs().modules]
    if base_fingerprint(Checkpoint(directory), modules) != bundle.base.fingerprint:
        raise BaseMismatchError(
            f"{directory} is not the base this bundle was made from (fingerprint differs): pass the right --base."
        )
    return TorchPair.of(adapted, bundle.task.outputs, bundle.pooling)


def find_adapter(bundle: Bundle, recorded: AdapterSource) -> Path:
    """Return the directory of an adapter of ``bundle``.

    Raises:
        InputError: it is not known on this machine, or not there any more.
    """
    path = find_adapter_directory(bundle.manifest, recorded)
    if path is None:
        raise InputError(
            f"The adapter '{recorded.source}' of this bundle is not where it was exported from on this machine: pass "
            "--adapter with its directory, or --reference-only."
        )
    return path


def find_base(bundle: Bundle) -> Path:
    """Return the directory of the base of ``bundle``, fetched from the hub where it came from there.

    Raises:
        InputError: it is not known on this machine, or not there any more.
    """
    path, recorded = find_base_directory(bundle.manifest), bundle.base
    if path is not None:
        return resolve_base(path)
    if recorded.hub:
        return resolve_base(recorded.source, revision=recorded.revision)
    raise InputError(
        f"The base '{recorded.source}' of this bundle is not where it was exported from on this machine: pass --base with "
        "its directory, or --reference-only."
    )


def torch_is_installed() -> bool:
    """Return True if PyTorch and PEFT can be used here."""
    return all(is_installed(name) for name in ("torch", "peft"))
