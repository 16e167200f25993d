"""The orthogonality penalty and its gradient, in closed form (torch).

    R = mean over all LoRA matrices of ‖M Mᵀ − I‖_F,   M = A [r, in]  or  M = Bᵀ [r, out]
    ∂‖G‖_F / ∂M = 2 G M / ‖G‖_F,   G = M Mᵀ − I  (symmetric);   squared: ∂‖G‖²_F / ∂M = 4 G M

Matrices of the same shape share one batched product. Everything is computed in float32, whatever the parameters' type.
Source: Mao et al., arXiv 2407.12074, section on the regularizer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["group_by_shape", "penalty", "penalty_and_gradients"]


def penalty(matrices: Sequence[Tensor], *, squared: bool = False) -> Tensor:
    """Return R as a differentiable scalar, for training loops that add it to the loss.

    Args:
        matrices: every A as ``[r, in]`` and every B transposed, ``[r, out]``.
        squared: take the mean of squared norms.
    """
    import torch

    norms = []
    for group in group_by_shape(matrices).values():
        gram = _gram_minus_identity(torch.stack([matrices[i].float() for i in group]))
        square = gram.square().sum(dim=(1, 2))
        norms.append(square if squared else square.sqrt())
    return torch.cat(norms).mean()


def penalty_and_gradients(matrices: Sequence[Tensor], *, squared: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Return R and ∂R/∂M for every matrix, without autograd.

    Args:
        matrices: every A as ``[r, in]`` and every B transposed, ``[r, out]``.
        squared: take the mean of squared norms.

    Returns:
        the scalar R, and float32 gradients in the shapes of ``matrices``. The norm has no gradient where M is
        orthonormal; the subgradient zero is returned there.
    """
    import torch

    gradients: list[Tensor | None] = [None] * len(matrices)
    norms = []
    with torch.no_grad():
        for group in group_by_shape(matrices).values():
            stacked = torch.stack([matrices[i].float() for i in group])
            gram = _gram_minus_identity(stacked)
            square = gram.square().sum(dim=(1, 2))
            norm = square.sqrt()
            norms.append(square if squared else norm)
            if squared:
                gram.mul_(4 / len(matrices))
            else:
                gram.mul_((2 / len(matrices) / norm.clamp_min(torch.finfo(norm.dtype).tiny)).view(-1, 1, 1))
            for index, gradient in zip(group, torch.bmm(gram, stacked), strict=True):
                gradients[index] = gradient
        return torch.cat(norms).mean(), [gradient for gradient in gradients if gradient is not None]


def _gram_minus_identity(stacked: Tensor) -> Tensor:
    """Return ``M Mᵀ − I`` as ``[n, r, r]`` for matrices ``[n, r, m]``."""
    import torch

    gram = torch.bmm(stacked, stacked.transpose(1, 2))
    return gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def group_by_shape(matrices: Sequence[Tensor]) -> dict[tuple[object, ...], list[int]]:
    """Return the indices of matrices of the same shape on the same device, which can share one batched product."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        key = (tuple(matrix.shape), matrix.device)
        groups[key].append(index)
    return groups
