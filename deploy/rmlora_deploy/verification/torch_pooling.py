"""What pooling and normalization are in PyTorch, written apart from the graph's so that each can prove the other wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rmlora.pooling import Pooling

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["pool"]


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return ``[rows, width]`` of the tokens' vectors, by sentence-transformers' definitions.

    Args:
        hidden: ``[rows, tokens, width]``.
        mask: ``[rows, tokens]``, 1 for text and 0 for padding.
        pooling: which tokens count, and whether the result is brought to length 1.
    """
    import torch

    if pooling.mode == "cls":
        vectors = hidden[:, 0]
    elif pooling.mode == "last":
        last = hidden.shape[1] - 1 - mask.flip(1).argmax(1)
        vectors = hidden[torch.arange(len(hidden)), last]
    else:
        counted = mask.unsqueeze(-1).to(hidden.dtype)
        vectors = (hidden * counted).sum(1) / counted.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(vectors, dim=1) if pooling.normalize else vectors
