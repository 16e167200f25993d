"""Reduces an adapter to its strongest directions, chosen by parameter budget, energy or rank.

Every update is rotated into its singular basis (``s B A = U Σ Vᵀ`` through QR of the factors, never the dense
product), so the first k directions are the best approximation of rank k (Eckart & Young, 1936). The other directions
are masked, or dropped from the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rmlora.adapter import Adapter, LoraModule
from rmlora.errors import ConfigError
from rmlora.spectrum import spectrum_of
from rmlora_converters.rebuild import with_factors, with_modules

__all__ = ["CompressReport", "ModuleCompression", "compress_adapter"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ModuleCompression:
    """What compression left of the update of one module."""

    module: str
    before: int
    """Directions that contributed before."""
    after: int
    """Directions that contribute now."""
    loss: float
    """``‖lost‖ / ‖Δ‖`` in the Frobenius norm."""


@dataclass(frozen=True)
class CompressReport:
    """What compression kept, and what it lost."""

    modules: list[ModuleCompression]
    """One entry per module, largest loss first."""
    parameters_before: int
    """Parameters of the directions that contributed before."""
    parameters_after: int
    """Parameters of the directions that contribute now."""
    loss: float
    """``‖lost‖ / ‖Δ‖`` over all modules together."""


@dataclass(frozen=True)
class _Rotated:
    """An update in its singular basis: ``U [out, r]``, ``sigma [r]`` descending, ``V [in, r]``."""

    module: LoraModule
    U: FloatArray
    sigma: FloatArray
    V: FloatArray

    @property
    def cost(self) -> int:
        """Parameters of one direction: a row of A and a column of B."""
        return int(self.U.shape[0] + self.V.shape[0])

    @property
    def numerical_rank(self) -> int:
        """Directions that are not zero."""
        return spectrum_of(self.sigma).numerical_rank


def compress_adapter(
    adapter: Adapter,
    *,
    rank: int | None = None,
    parameters: int | None = None,
    energy: float | None = None,
    refactor: bool = False,
) -> tuple[Adapter, CompressReport]:
    """Return ``adapter`` with fewer directions, and a report of what that lost.

    Pass at most one of ``rank``, ``parameters`` and ``energy``. Without any of them, every direction that is not zero is
    kept, so the update stays exact.

    Args:
        adapter: the adapter to compress.
        rank: directions to keep in each module.
        parameters: budget for all factors together, spent on the directions with the most energy per parameter.
        energy: share of each module's ``Σσ²`` to keep, in (0, 1].
        refactor: drop the other directions from the file. Otherwise they stay and are masked, and PEFT, which does not
            know the mask, still applies them.

    Raises:
        ConfigError: more than one criterion is given, or one is out of range.
        AdapterError: no direction would be left.
    """
    if sum(item is not None for item in (rank, parameters, energy)) > 1:
        raise ConfigError(
            "Pass only one of --rank, --parameters and --energy: they are different ways to choose directions."
        )
    if rank is not None and rank < 1:
        raise ConfigError(f"rank must be at least 1, not {rank}: change --rank.")
    if energy is not None and not 0 < energy <= 1:
        raise ConfigError(f"energy must be in (0, 1], not {energy:g}: change --energy.")
    rotated = [_rotate(module) for module in adapter.modules.values()]
    if parameters is not None:
        counts = _within_budget(rotated, parameters)
    elif energy is not None:
        counts = [_by_energy(item, energy) for item in rotated]
    else:
        counts = [min(rank or item.sigma.size, item.numerical_rank) for item in rotated]
    modules = [_keep(item, count, refactor) for item, count in zip(rotated, counts, strict=True)] if any(counts) else []
    kept = with_modules(adapter, [module for module in modules if module is not None])
    return kept, _report(rotated, counts)


def _rotate(module: LoraModule) -> _Rotated:
    """Return the singular value decomposition of the update, scale included; a rank above in or out is reduced to it."""
    Q_B, R_B = np.linalg.qr(module.B.astype(np.float64))  # noqa: N806 - the paper's symbols
    Q_A, R_A = np.linalg.qr(module.A.T.astype(np.float64))  # noqa: N806
    U, sigma, Vt = np.linalg.svd(module.scale * R_B @ R_A.T, full_matrices=False)  # noqa: N806
    return _Rotated(module, Q_B @ U, sigma, Q_A @ Vt.T)


def _keep(item: _Rotated, count: int, refactor: bool) -> LoraModule | None:
    """Return the module with its first ``count`` directions, √sigma in each factor; None if no direction is left."""
    size = count if refactor else item.sigma.size
    if size == 0:
        return None
    root = np.sqrt(item.sigma[:size])
    mask = None if count == size else np.arange(size) < count
    return with_factors(item.module, (item.V[:, :size] * root).T, item.U[:, :size] * root, mask)


def _by_energy(item: _Rotated, share: float) -> int:
    """Return the smallest number of directions that hold ``share`` of the energy (sum of ``sigma²``)."""
    total = float((item.sigma**2).sum())
    if total == 0:
        return 0
    reached = np.cumsum(item.sigma**2) / total
    return min(int(np.searchsorted(reached, share - 1e-12)) + 1, item.numerical_rank)


def _within_budget(items: Sequence[_Rotated], budget: int) -> list[int]:
    """Return the directions to keep in each module: those with the most energy per parameter that fit ``budget``."""
    ranked = sorted(
        (-(sigma**2) / item.cost, number, item.cost)
        for number, item in enumerate(items)
        for sigma in item.sigma[: item.numerical_rank]
    )
    counts, spent = [0] * len(items), 0
    full: set[int] = set()  # modules whose next direction did not fit; their weaker directions are skipped too
    for _, number, cost in ranked:
        if number in full:
            continue
        if spent + cost > budget:
            full.add(number)
            continue
        counts[number] += 1
        spent += cost
    if not any(counts):
        smallest = min(item.cost for item in items)
        raise ConfigError(
            f"A budget of {budget} parameters is too small for any direction (the smallest takes {smallest}): raise "
            "--parameters."
        )
    return counts


def _report(items: Sequence[_Rotated], counts: Sequence[int]) -> CompressReport:
    kept, lost, total, before, after = [], 0.0, 0.0, 0, 0
    for item, count in zip(items, counts, strict=True):
        energy, gone = float((item.sigma**2).sum()), float((item.sigma[count:] ** 2).sum())
        loss = math.sqrt(gone / energy) if energy else 0.0
        kept.append(ModuleCompression(item.module.path, item.module.active_rank, count, loss))
        lost, total = lost + gone, total + energy
        before, after = before + item.module.active_rank * item.cost, after + count * item.cost
    kept.sort(key=lambda entry: -entry.loss)
    return CompressReport(kept, before, after, math.sqrt(lost / total) if total else 0.0)
