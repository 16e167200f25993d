"""The scale-free regularizer: turn the directions of a factor away from each other, without changing their lengths (torch).

    n = lengths of the rows of M,   M̂ = M / n,   C = M̂ M̂ᵀ with a zero diagonal
    M ← M − ρ · n · C M̂            M = A [r, in]  or  M = Bᵀ [r, out]

``C M̂`` is the gradient of ½ Σ_{i<j} (m̂ᵢ · m̂ⱼ)², up to its part along m̂, so this is gradient descent on the correlation of
the directions. The penalty ``‖M Mᵀ − I‖`` of the paper also pulls every direction to length 1, which late in training adds
directions that the task did not ask for, and its gradient goes through Adam, which scales it up as the task's fades. Here the
step is decoupled from the optimizer, as weight decay is in AdamW (Loshchilov & Hutter, 2019), and fades with the learning rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rmlora.regularizer import group_by_shape

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["decorrelate"]

_LARGEST = 0.5
"""ρ is at most this over r − 1, the largest eigenvalue that C can have: correlations never grow."""


def decorrelate(matrices: Sequence[Tensor], amount: float) -> None:
    """Take one step on every matrix, in place. A direction of length zero stays as it is.

    Args:
        matrices: every A as ``[r, in]`` and every B transposed, ``[r, out]``; views of the parameters.
        amount: ρ.
    """
    import torch

    with torch.no_grad():
        for group in group_by_shape(matrices).values():
            rank = matrices[group[0]].shape[0]
            if rank == 1:
                continue
            stacked = torch.stack([matrices[index].float() for index in group])
            lengths = torch.linalg.vector_norm(stacked, dim=2, keepdim=True)
            directions = stacked / lengths.clamp_min(torch.finfo(stacked.dtype).tiny)
            correlations = torch.bmm(directions, directions.transpose(1, 2))
            correlations.diagonal(dim1=1, dim2=2).zero_()
            moved = stacked - min(amount, _LARGEST / (rank - 1)) * lengths * torch.bmm(correlations, directions)
            moved *= lengths / torch.linalg.vector_norm(moved, dim=2, keepdim=True).clamp_min(
                torch.finfo(stacked.dtype).tiny
            )
            for index, matrix in zip(group, moved, strict=True):
                matrices[index].copy_(matrix)
