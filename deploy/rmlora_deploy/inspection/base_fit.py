"""Checking whether an adapter fits a base: every module is there, has the right shape, and has the weights of training."""

from __future__ import annotations

from dataclasses import dataclass

from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.fingerprint import base_fingerprint
from rmlora.stored_weights import StoredWeights, stored_weights
from rmlora_converters.planned_tensors import update_of_part

__all__ = ["Fit", "ModuleFit", "fit_to_base", "require_fit"]


@dataclass(frozen=True)
class ModuleFit:
    """One module of an adapter, looked up in the base."""

    module: str
    tensor: str | None
    """Name of the module's weight in the checkpoint; None if the base lacks it."""
    shape: tuple[int, ...] | None
    """Shape of that weight."""
    problem: str | None
    """Why the update cannot be added to the weight; None if it can."""


@dataclass(frozen=True)
class Fit:
    """How an adapter fits a base."""

    base: str
    modules: tuple[ModuleFit, ...]
    fingerprint: str | None
    """Fingerprint of the base over the adapter's modules; None if the base lacks one of them."""
    expected_fingerprint: str | None
    """Fingerprint of the base that the adapter was trained on; None if the adapter does not record it."""

    @property
    def misfits(self) -> tuple[ModuleFit, ...]:
        """Modules whose update cannot be added."""
        return tuple(item for item in self.modules if item.problem)

    @property
    def same_base(self) -> bool | None:
        """True if the base has the weights that the adapter was trained on; None if the adapter does not record them."""
        if self.misfits:
            return False
        return None if self.expected_fingerprint is None else self.fingerprint == self.expected_fingerprint

    @property
    def fits(self) -> bool:
        """True if every module fits and the base is not known to be another one."""
        return not self.misfits and self.same_base is not False


def fit_to_base(adapter: Adapter, checkpoint: Checkpoint) -> Fit:
    """Look up every module of ``adapter`` in ``checkpoint``; problems are in the result, not raised."""
    weights = stored_weights(checkpoint, adapter)
    modules = [_look(module, weights) for module in adapter.modules.values()]
    missing = any(item.tensor is None for item in modules)
    fingerprint = None if missing else _fingerprint(adapter, checkpoint)
    return Fit(str(checkpoint.path), tuple(modules), fingerprint, adapter.fingerprint)


def require_fit(fit: Fit, adapter: Adapter) -> None:
    """Raise :class:`AdapterError` with the reason if the adapter does not fit."""
    if fit.misfits:
        first = fit.misfits[0]
        raise AdapterError(
            f"{adapter.source} does not fit {fit.base}: {len(fit.misfits)} of {len(fit.modules)} modules are missing or have "
            f"another shape there, the first is '{first.module}' ({first.problem}); give the base it was trained on."
        )
    if not fit.fits:
        raise AdapterError(
            f"{adapter.source} fits {fit.base} by shape, but was trained on other weights ({_short(fit.expected_fingerprint)}, "
            f"this base has {_short(fit.fingerprint)}): give the base it was trained on."
        )


def _look(module: LoraModule, weights: StoredWeights) -> ModuleFit:
    parts = weights.find_shared(module.parameter)
    if not parts:
        return ModuleFit(module.path, None, None, "not in the base")
    name, shape = parts[0].tensor, weights.checkpoint.tensors[parts[0].tensor].shape
    try:
        for part in parts:
            update_of_part(module, part, weights.checkpoint.tensors[part.tensor].shape)
    except AdapterError:
        update = " × ".join(str(side) for side in (module.lora_B.shape[0], *module.lora_A.shape[1:]))
        return ModuleFit(module.path, name, shape, f"the update is {update}, the weight {' × '.join(map(str, shape))}")
    return ModuleFit(module.path, name, shape, None)


def _fingerprint(adapter: Adapter, checkpoint: Checkpoint) -> str | None:
    try:
        return base_fingerprint(checkpoint, adapter.modules, adapter)
    except AdapterError:  # two modules share one tensor, which they did not in training
        return None


def _short(fingerprint: str | None) -> str:
    return f"{fingerprint[:19]}…" if fingerprint else "unknown"
