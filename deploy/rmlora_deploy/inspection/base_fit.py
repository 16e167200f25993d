"""Whether an adapter fits a base: every module there, of the right shape, and the very weights it was made for."""

from __future__ import annotations

from dataclasses import dataclass

from rmlora.adapter import Adapter, LoraModule
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError
from rmlora.fingerprint import base_fingerprint
from rmlora.naming import find_tensor
from rmlora_converters.delta import stores_transposed

__all__ = ["Fit", "ModuleFit", "fit_to_base", "require_fit"]


@dataclass(frozen=True)
class ModuleFit:
    """One module of the adapter looked up in the base."""

    module: str
    tensor: str | None
    """Name of the weight in the checkpoint; None if the base has none."""
    shape: tuple[int, ...] | None
    """Shape of that weight."""
    problem: str | None
    """Why the update cannot be added; None if it can."""


@dataclass(frozen=True)
class Fit:
    """An adapter against a base."""

    base: str
    modules: tuple[ModuleFit, ...]
    fingerprint: str | None
    """Of the base, over the adapter's modules; None when one of them is missing."""
    expected_fingerprint: str | None
    """What the adapter was trained on; None for an adapter that does not record it."""

    @property
    def misfits(self) -> tuple[ModuleFit, ...]:
        """Modules whose update cannot be added."""
        return tuple(item for item in self.modules if item.problem)

    @property
    def same_base(self) -> bool | None:
        """Whether the weights are those the adapter was made for; None when that is not recorded."""
        if self.misfits:
            return False
        return None if self.expected_fingerprint is None else self.fingerprint == self.expected_fingerprint

    @property
    def fits(self) -> bool:
        """Every module fits, and nothing says that this is another base."""
        return not self.misfits and self.same_base is not False


def fit_to_base(adapter: Adapter, checkpoint: Checkpoint) -> Fit:
    """Look every module of ``adapter`` up in ``checkpoint``; problems are in the result, not raised."""
    names = checkpoint.tensors.keys()
    tie = checkpoint.tied_output
    modules: list[ModuleFit] = []
    for path, module in adapter.modules.items():
        shared = tie.embedding if tie and path == tie.layer else None
        name = find_tensor(f"{path}.weight", names) or shared
        modules.append(_look(module, name, checkpoint))
    missing = any(item.tensor is None for item in modules)
    fingerprint = None if missing else _fingerprint(adapter, checkpoint)
    return Fit(str(checkpoint.path), tuple(modules), fingerprint, adapter.fingerprint)


def require_fit(fit: Fit, adapter: Adapter) -> None:
    """Raise :class:`AdapterError` saying why, when the adapter does not fit."""
    if fit.misfits:
        first = fit.misfits[0]
        raise AdapterError(
            f"{adapter.source} does not fit {fit.base}: {len(fit.misfits)} of {len(fit.modules)} modules have no place there, "
            f"the first is '{first.module}' ({first.problem}); give the base it was trained on."
        )
    if not fit.fits:
        raise AdapterError(
            f"{adapter.source} fits {fit.base} by shape, but was trained on other weights ({_short(fit.expected_fingerprint)}, "
            f"this base is {_short(fit.fingerprint)}): give the base it was trained on."
        )


def _look(module: LoraModule, name: str | None, checkpoint: Checkpoint) -> ModuleFit:
    if name is None:
        return ModuleFit(module.path, None, None, "not in the base")
    shape = checkpoint.tensors[name].shape
    try:
        stores_transposed(module, shape)
    except AdapterError:
        update = " × ".join(str(side) for side in (module.lora_B.shape[0], *module.lora_A.shape[1:]))
        return ModuleFit(module.path, name, shape, f"the update is {update}, the weight {' × '.join(map(str, shape))}")
    return ModuleFit(module.path, name, shape, None)


def _fingerprint(adapter: Adapter, checkpoint: Checkpoint) -> str | None:
    try:
        return base_fingerprint(checkpoint, adapter.modules)
    except AdapterError:  # two modules that lead to one tensor: such a base is not theirs
        return None


def _short(fingerprint: str | None) -> str:
    return f"{fingerprint[:19]}…" if fingerprint else "unknown"
