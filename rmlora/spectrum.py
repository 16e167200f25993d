"""Intrinsic dimension of an update, from the singular values of ``s · B A``.

The dense ``[out, in]`` product is never computed. With thin QR factorizations ``B = Q_B R_B`` and ``Aᵀ = Q_A R_A``, the
singular values of ``s B A`` are those of the ``[r, r]`` matrix ``s R_B R_Aᵀ``. Directions that the rank mask excludes do not
count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rmlora.adapter import Adapter, LoraModule

__all__ = ["AdapterSpectrum", "Spectrum", "adapter_spectrum", "module_spectrum", "spectrum_of"]

FloatArray = npt.NDArray[np.float64]

RELATIVE_TOLERANCE = 1e-5
"""Singular values below this share of the largest count as zero; float32 rounding is about 1e-7 per product."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values of an update and three measures of its dimension."""

    singular_values: FloatArray
    """``[r]``, descending."""
    numerical_rank: int
    """Number of singular values above ``RELATIVE_TOLERANCE`` times the largest."""
    stable_rank: float
    """``Σσ² / σ₁²``: dimension weighted by energy (Rudelson & Vershynin, 2007)."""
    effective_rank: float
    """``exp(−Σ p ln p)``, ``p = σ / Σσ``: entropy of the spectrum (Roy & Vetterli, 2007)."""


@dataclass(frozen=True)
class AdapterSpectrum:
    """Spectra of all modules, their means, and the spectrum of the adapter as a whole."""

    modules: Mapping[str, Spectrum]
    """Module path → its spectrum."""
    joint: Spectrum
    """Spectrum of the direct sum of all updates: the singular values of all modules together."""

    @property
    def numerical_rank(self) -> float:
        """Mean over modules."""
        return float(np.mean([item.numerical_rank for item in self.modules.values()]))

    @property
    def stable_rank(self) -> float:
        """Mean over modules."""
        return float(np.mean([item.stable_rank for item in self.modules.values()]))

    @property
    def effective_rank(self) -> float:
        """Mean over modules."""
        return float(np.mean([item.effective_rank for item in self.modules.values()]))


def spectrum_of(singular_values: npt.ArrayLike) -> Spectrum:
    """Return the spectrum with these singular values (in any order); if all are zero its dimension is 0."""
    values = np.sort(np.asarray(singular_values, dtype=np.float64))[::-1]
    if values.size == 0 or values[0] <= 0:
        return Spectrum(values, 0, 0.0, 0.0)
    share = values / values.sum()
    share = share[share > 0]
    return Spectrum(
        singular_values=values,
        numerical_rank=int((values > RELATIVE_TOLERANCE * values[0]).sum()),
        stable_rank=float(((values / values[0]) ** 2).sum()),
        effective_rank=float(np.exp(-(share * np.log(share)).sum())),
    )


def module_spectrum(module: LoraModule) -> Spectrum:
    """Return the spectrum of one module's update, scale included."""
    triangle_a, triangle_b = _triangle(module.A.T), _triangle(module.B)
    return spectrum_of(np.linalg.svd(module.scale * triangle_b @ triangle_a.T, compute_uv=False))


def _triangle(matrix: npt.NDArray[np.float32]) -> FloatArray:
    """Return R of the thin QR factorization, in float64."""
    return np.linalg.qr(matrix.astype(np.float64)).R


def adapter_spectrum(adapter: Adapter) -> AdapterSpectrum:
    """Return the spectra of all modules of ``adapter``."""
    modules = {path: module_spectrum(module) for path, module in adapter.modules.items()}
    return AdapterSpectrum(modules, spectrum_of(np.concatenate([item.singular_values for item in modules.values()])))
