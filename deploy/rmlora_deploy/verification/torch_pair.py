"""PyTorch's models of an adapter, to compare a bundle with: found on this machine, recognized, and loaded."""

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
from rmlora.inputs import Arrays
from rmlora.outputs import Outputs
from rmlora.package import TENSORS_FILE
from rmlora.pooling import Pooling
from rmlora.readable import is_readable_file
from rmlora.storage import sha256_file
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import AdapterSource
from rmlora_deploy.bundles.sources import find_adapter_directory, find_base_directory
from rmlora_deploy.verification.torch_outputs import torch_output

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = [
    "TorchPair",
    "find_adapter",
    "find_base",
    "load_recorded",
    "load_torch_pair",
    "source_of_outputs",
    "torch_is_installed",
]


@dataclass(frozen=True)
class TorchPair:
    """One adapter in PyTorch, applied and merged."""

    adapted: PeftModel
    """The base with PEFT's layers."""
    merged: Any
    """A copy with the update merged into the weights."""
    outputs: Outputs
    """Kind of output of the task."""
    pooling: Pooling | None = None
    """How a text's token vectors become one; None for tasks that do not pool."""

    @classmethod
    def of(cls, adapted: PeftModel, outputs: Outputs, pooling: Pooling | None = None) -> TorchPair:
        """Return the pair of ``adapted`` and a merged copy of it."""
        return cls(adapted, copy.deepcopy(adapted).merge_and_unload(), outputs, pooling)

    def output(self, batch: Arrays) -> np.ndarray:
        """Return the output of the model with PEFT's layers for a batch."""
        return torch_output(self.adapted, batch, self.outputs, self.pooling)

    def merged_output(self, batch: Arrays) -> np.ndarray:
        """Return the output of the merged model for a batch."""
        return torch_output(self.merged, batch, self.outputs, self.pooling)


def load_torch_pair(bundle: Bundle, base: str | None, adapter: Path | None, *, name: str | None = None) -> TorchPair:
    """Load the models that a bundle was made from; arguments and errors as :func:`load_recorded`."""
    return TorchPair.of(load_recorded(bundle, base, adapter, name=name), bundle.task.outputs, bundle.pooling)


def load_recorded(bundle: Bundle, base: str | None, adapter: Path | None, *, name: str | None = None) -> PeftModel:
    """Load the base that a bundle was made from, with PEFT's layers of its adapter.

    Args:
        bundle: its manifest says how to recognize base and adapter.
        base: directory, ``.gguf`` file or hub name of the base; None takes the directory recorded at export.
        adapter: directory of the adapter; None takes the directory recorded at export.
        name: of the adapter, in a bundle with branches.

    Raises:
        InputError: base or adapter is not in the recorded directory.
        AdapterError: this is not the adapter that the bundle was made from.
        BaseMismatchError: this is not the base that the bundle was made from.
    """
    from rmlora.torch_models import load_adapted

    recorded = bundle.adapter(name) if name is not None else bundle.merged_adapter
    path = adapter or find_adapter(bundle, recorded)
    if is_readable_file(path / TENSORS_FILE) and sha256_file(path / TENSORS_FILE) != recorded.sha256:
        raise AdapterError(
            f"{path} is not the adapter this bundle was made from (SHA-256 differs): pass the right --adapter."
        )
    directory = resolve_base(base) if base is not None else find_base(bundle)
    # Export checked that base and adapter belong together; here both must be the ones that the bundle was made from.
    adapted, loaded = load_adapted(
        directory, path, task=bundle.task.name, allow_base_mismatch=True, trust_remote_code=bundle.trust_remote_code
    )
    modules = loaded.modules if name is None else [branch.module for branch in bundle.lora_inputs().modules]
    if base_fingerprint(Checkpoint(directory), modules, loaded) != bundle.base.fingerprint:
        raise BaseMismatchError(
            f"{directory} is not the base this bundle was made from (fingerprint differs): pass the right --base."
        )
    return adapted


def find_adapter(bundle: Bundle, recorded: AdapterSource) -> Path:
    """Return the directory of an adapter of ``bundle``.

    Raises:
        InputError: no directory is recorded on this machine, or it no longer exists.
    """
    path = find_adapter_directory(bundle.manifest, recorded)
    if path is None:
        raise InputError(
            f"The directory of this bundle's adapter '{recorded.source}' is not known on this machine, or is gone: pass it with "
            "--adapter, or pass --reference-only."
        )
    return path


def find_base(bundle: Bundle) -> Path:
    """Return the directory of the base of ``bundle``; a hub base is downloaded if need be.

    Raises:
        InputError: no directory is recorded on this machine, or it no longer exists.
    """
    path, recorded = find_base_directory(bundle.manifest), bundle.base
    if path is not None:
        return resolve_base(path)
    if recorded.hub:
        return resolve_base(recorded.source, revision=recorded.revision)
    raise InputError(
        f"The directory of this bundle's base '{recorded.source}' is not known on this machine, or is gone: pass it with "
        "--base, or pass --reference-only."
    )


def source_of_outputs(pytorch: object | None) -> str:
    """Return where the outputs to compare with come from, for a report; None stands for those stored in a bundle."""
    return "PyTorch and PEFT" if pytorch is not None else "stored outputs of PyTorch and PEFT"


def torch_is_installed() -> bool:
    """Return True if PyTorch and PEFT are installed."""
    return all(is_installed(name) for name in ("torch", "peft"))
