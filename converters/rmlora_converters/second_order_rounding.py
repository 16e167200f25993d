"""Rounds a weight to given grids so that its products of real inputs change as little as possible.

Rounding every number to the nearest point of its grid is best only if inputs have nothing to do with each other. Here the inputs
of a weight are rounded one after another, and what rounding one changes in the products is made up for by those that are left, as
far as inputs go together. This is GPTQ (Frantar et al., arXiv:2210.17323), with the inputs in order of their size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["round_to_grids"]

FloatArray = npt.NDArray[np.float32]

_DAMPING = 0.01
"""Share of the mean square of an input that is added to all of them, so that inputs that were never seen are no exception."""
_TOGETHER = 128
"""Inputs whose corrections are gathered before they reach the inputs after them."""


def round_to_grids(
    weight: FloatArray, scales: FloatArray, zeros: FloatArray, moments: FloatArray, *, highest: int
) -> npt.NDArray[np.uint8]:
    """Return the points of a grid that stand for ``weight``: ``(points - zeros) · scales`` are its numbers.

    Args:
        weight: ``[out, in]``.
        scales: distance of two points, ``[out, in]``; may be negative.
        zeros: point that stands for zero, ``[out, in]``.
        moments: sum of ``x xᵀ`` over the inputs of its products, ``[in, in]``.
        highest: last point of a grid; the first is 0.
    """
    order = np.argsort(-np.diag(moments), kind="stable")
    factor = _inverse_factor(moments[np.ix_(order, order)])
    left = np.ascontiguousarray(weight.T[order])
    steps, points_of_zero = np.where(scales != 0, scales, 1.0).T[order], zeros.T[order]
    points = np.empty(left.shape, np.uint8)
    for start in range(0, len(order), _TOGETHER):
        stop = min(start + _TOGETHER, len(order))
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for row in range(start, stop):
            found = np.clip(np.round(left[row] / steps[row] + points_of_zero[row]), 0, highest)
            points[row] = found
            errors[row - start] = (left[row] - (found - points_of_zero[row]) * steps[row]) / factor[row, row]
            left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], errors[row - start])
        left[stop:] -= factor[start:stop, stop:].T @ errors
    result = np.empty_like(points)
    result[order] = points
    return np.ascontiguousarray(result.T)


def _inverse_factor(moments: FloatArray) -> FloatArray:
    """Return the upper Cholesky factor of the inverse of ``moments``."""
    damped = moments.astype(np.float64)
    size = float(np.mean(np.diag(damped))) or 1.0
    damped[np.diag_indices_from(damped)] += _DAMPING * size
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
