"""The spectrum by QR equals that of the dense update; its measures are right on known spectra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmlora.adapter import Adapter, LoraModule
from rmlora.spectrum import adapter_spectrum, module_spectrum, spectrum_of


def make_module(rank: int, fan_in: int, fan_out: int, seed: int, mask: list[bool] | None = None) -> LoraModule:
    rng = np.random.default_rng(seed)
    return LoraModule(
        path=f"layer{seed}",
        kind="linear",
        lora_A=rng.normal(size=(rank, fan_in)).astype(np.float32),
        lora_B=rng.normal(size=(fan_out, rank)).astype(np.float32),
        scale=0.7,
        rank_mask=None if mask is None else np.array(mask),
    )


@settings(max_examples=40)
@given(rank=st.integers(1, 8), fan_in=st.integers(1, 20), fan_out=st.integers(1, 20), seed=st.integers(0, 99))
def test_singular_values_are_those_of_the_dense_product(rank: int, fan_in: int, fan_out: int, seed: int) -> None:
    module = make_module(rank, fan_in, fan_out, seed)
    dense = 0.7 * module.lora_B.astype(float) @ module.lora_A.astype(float)
    expected = np.linalg.svd(dense, compute_uv=False)
    got = module_spectrum(module).singular_values
    size = min(len(got), len(expected))
    np.testing.assert_allclose(got[:size], expected[:size], rtol=1e-6, atol=1e-9)
    assert np.all(got[size:] < 1e-6) and np.all(expected[size:] < 1e-6)


def test_masked_directions_do_not_count() -> None:
    masked = make_module(4, 12, 9, 1, mask=[True, False, True, False])
    spectrum = module_spectrum(masked)
    dense = 0.7 * masked.lora_B[:, [0, 2]] @ masked.lora_A[[0, 2]]
    np.testing.assert_allclose(spectrum.singular_values, np.linalg.svd(dense, compute_uv=False)[:2], rtol=1e-5)
    assert spectrum.numerical_rank == 2


def test_measures_on_known_spectra() -> None:
    flat = spectrum_of([2.0] * 5)
    assert (flat.numerical_rank, flat.stable_rank) == (5, 5.0)
    assert flat.effective_rank == pytest.approx(5.0)
    single = spectrum_of([3.0, 0.0, 0.0])
    assert (single.numerical_rank, single.stable_rank, single.effective_rank) == (1, 1.0, 1.0)
    zero = spectrum_of([0.0, 0.0])
    assert (zero.numerical_rank, zero.stable_rank, zero.effective_rank) == (0, 0.0, 0.0)


def test_adapter_totals_are_means_and_the_direct_sum() -> None:
    modules = {f"layer{seed}": make_module(4, 12, 9, seed) for seed in range(3)}
    spectrum = adapter_spectrum(Adapter(modules=modules))
    assert spectrum.numerical_rank == 4
    assert spectrum.effective_rank == pytest.approx(np.mean([s.effective_rank for s in spectrum.modules.values()]))
    assert spectrum.joint.numerical_rank == 12
    assert spectrum.joint.singular_values.shape == (12,)
