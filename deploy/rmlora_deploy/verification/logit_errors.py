"""How far two models' logits are apart, text by text: the logits of all texts together would fill the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import InputError
from rmlora_deploy.bundles.report import Comparison

__all__ = ["LogitErrors"]

AnyArray = npt.NDArray[Any]

_BLOCK = 64
"""Positions that are compared at a time."""


class LogitErrors:
    """The running comparison of logits."""

    def __init__(self) -> None:
        self._largest = self._sum = self._square = self._expected_square = self._expected_largest = 0.0
        self._finite = self._numbers = self._rows = self._agreed = 0

    def add(self, expected: AnyArray, got: AnyArray) -> None:
        """Compare the logits ``[positions, vocabulary]`` of one text.

        Args:
            expected: finite.
            got: the same shape; values that are not finite count as wrong.

        Raises:
            InputError: the shapes differ.
        """
        if expected.shape != got.shape:
            raise InputError(
                f"The graph gives logits of the shape {list(got.shape)} where {list(expected.shape)} is expected: it is of "
                "another model; export again."
            )
        for start in range(0, len(expected), _BLOCK):  # in float64 a whole text may not fit into memory
            self._add(expected[start : start + _BLOCK], got[start : start + _BLOCK])

    def _add(self, expected: AnyArray, got: AnyArray) -> None:
        finite = np.isfinite(got)
        difference = np.abs(np.where(finite, got, expected).astype(np.float64) - expected)
        self._largest = max(self._largest, float(difference.max()))
        self._sum += float(difference.sum())
        self._square += float((difference**2).sum())
        self._expected_square += float((expected.astype(np.float64) ** 2).sum())
        self._expected_largest = max(self._expected_largest, float(np.abs(expected).max()))
        self._finite += int(finite.sum())
        self._numbers += expected.size
        self._rows += len(expected)
        self._agreed += int(((expected.argmax(-1) == got.argmax(-1)) & finite.all(-1)).sum())

    def comparison(self) -> Comparison:
        """Return the comparison over all texts; a row is a position."""
        rows, numbers = max(1, self._rows), max(1, self._numbers)
        return Comparison(
            max_abs_error=self._largest,
            mean_abs_error=self._sum / max(1, self._finite),
            max_relative_error=self._largest / (self._expected_largest or 1.0),
            rms_relative_error=float(
                np.sqrt(self._square / numbers) / (np.sqrt(self._expected_square / numbers) or 1.0)
            ),
            argmax_agreement=self._agreed / rows,
            not_finite=self._numbers - self._finite,
            rows=self._rows,
        )
