"""The penalty's closed-form gradient equals autograd's, for any mix of shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmlora.regularizer import penalty, penalty_and_gradients

shapes = st.lists(st.sampled_from([(2, 5), (4, 16), (4, 7), (8, 8), (1, 3)]), min_size=1, max_size=6)


@settings(max_examples=50)
@given(shapes=shapes, seed=st.integers(0, 10_000), squared=st.booleans(), scale=st.sampled_from([1e-3, 0.1, 1.0, 3.0]))
def test_gradient_equals_autograds(shapes: list[tuple[int, int]], seed: int, squared: bool, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrices = [(scale * torch.randn(s, generator=generator)).requires_grad_() for s in shapes]
    value = penalty(matrices, squared=squared)
    expected = torch.autograd.grad(value, matrices)
    closed_value, closed = penalty_and_gradients([m.detach() for m in matrices], squared=squared)
    torch.testing.assert_close(closed_value, value.detach())
    for got, want in zip(closed, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_value_is_the_mean_of_frobenius_norms() -> None:
    first, second = torch.randn(3, 10), torch.randn(2, 6)
    norms = [torch.linalg.matrix_norm(m @ m.T - torch.eye(len(m))) for m in (first, second)]
    torch.testing.assert_close(penalty([first, second]), sum(norms) / 2)
    torch.testing.assert_close(penalty([first, second], squared=True), sum(n**2 for n in norms) / 2)


@pytest.mark.parametrize("squared", [False, True])
def test_orthonormal_matrices_cost_nothing_and_get_no_nan(squared: bool) -> None:
    value, (gradient,) = penalty_and_gradients([torch.eye(4, 9)], squared=squared)
    assert value == 0
    assert (gradient == 0).all()


def test_a_fresh_lora_b_of_zeros_gets_no_gradient() -> None:
    value, (gradient,) = penalty_and_gradients([torch.zeros(4, 9)])
    assert value == 2.0  # ‖−I₄‖_F
    assert (gradient == 0).all()


def test_half_precision_factors_are_computed_in_float32() -> None:
    matrix = torch.randn(4, 300)
    _, (full,) = penalty_and_gradients([matrix.bfloat16().float()])
    _, (half,) = penalty_and_gradients([matrix.bfloat16()])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full)
