"""The scale-free regularizer: directions turn away from each other and keep their lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rmlora.decorrelation import decorrelate


def correlation(matrix: torch.Tensor) -> float:
    directions = matrix / matrix.norm(dim=1, keepdim=True)
    return float((directions @ directions.T - torch.eye(len(matrix))).square().sum())


@settings(max_examples=40, deadline=None)
@given(
    rank=st.integers(2, 64),
    width=st.integers(2, 96),
    amount=st.floats(1e-4, 1e6),
    seed=st.integers(0, 999),
    alike=st.booleans(),
)
def test_correlations_fall_and_lengths_stay(rank: int, width: int, amount: float, seed: int, alike: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rank, width, generator=generator) * torch.rand(rank, 1, generator=generator).add(0.1)
    if alike:
        matrix = matrix[:1] * torch.linspace(1, 2, rank)[:, None] + 0.01 * matrix
    before, lengths = correlation(matrix), matrix.norm(dim=1)
    decorrelate([matrix], amount)
    torch.testing.assert_close(matrix.norm(dim=1), lengths, rtol=1e-4, atol=0)
    assert correlation(matrix) <= before * (1 + 1e-4) + 1e-4


def test_repeated_steps_reach_orthogonal_directions() -> None:
    matrix = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) + 1
    for _ in range(400):
        decorrelate([matrix], 0.05)
    assert correlation(matrix) < 1e-4


def test_views_are_changed_in_place_and_zero_stays_zero() -> None:
    b = torch.zeros(6, 3)
    b[:, 0] = b[:, 1] = torch.arange(6.0)
    decorrelate([b.T], 0.1)
    assert not b[:, 2].any() and torch.isfinite(b).all()
    assert b[:, 0].norm() == pytest.approx(float(torch.arange(6.0).norm()), rel=1e-5)


def test_a_single_direction_is_left_alone() -> None:
    matrix = torch.ones(1, 4)
    decorrelate([matrix], 1.0)
    assert torch.equal(matrix, torch.ones(1, 4))
