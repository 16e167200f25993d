"""Starting A in the directions that the task's gradient has (torch).

With B = 0 an update starts at zero whatever A is, and the first steps move B alone: ``∂L/∂B = s · G Aᵀ`` with ``G = ∂L/∂W
[out, in]``. PEFT's random A keeps ``r / in`` of G's energy. Here the rows of A become an orthogonal basis of the leading right
singular directions of G, with the lengths that PEFT gave them. G is not formed (randomized range finder; Halko, Martinsson &
Tropp, 2011): with A = 0 and a random B = Ω the model is the base, and ``∂L/∂A = s · Ωᵀ G`` is the sketch whose rows are made
orthogonal. It costs one forward and backward pass over a few examples and no memory beyond the factors'. Choosing A by a
gradient follows LoRA-GA (Wang et al., 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rmlora.errors import TrainingError
from rmlora.factors import Factors
from rmlora.sharding import local_part, whole, write_whole

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

__all__ = ["align_with_gradient", "fresh_factors"]


def fresh_factors(factors: Sequence[Factors]) -> list[Factors]:
    """Return the factors whose update is zero because B is, and whose A can have ``r`` orthogonal rows.

    Trained factors, embeddings (where PEFT starts A at zero) and ranks above the width are left as they are.
    """
    return [
        item
        for item in factors
        if not whole(item.B).any() and whole(item.A).any() and item.rank <= item.A.shape[1:].numel()
    ]


def align_with_gradient(
    model: Module, factors: Sequence[Factors], losses: Sequence[Callable[[], Tensor]], *, seed: int
) -> int:
    """Set A of every fresh factor to an orthogonal basis of its gradient's leading directions; rows keep their lengths.

    Args:
        model: whose gradients are used and then cleared; it is in evaluation mode meanwhile.
        factors: from :func:`rmlora.factors.find_factors`.
        losses: computes the task's loss on one batch each; they are called once.
        seed: decides the random sketch; with the same seed, batches and device the result is the same.

    Returns:
        how many factors were set. A factor that the losses do not reach keeps its A.

    Raises:
        TrainingError: a gradient is NaN or infinite.
    """
    import torch

    fresh = fresh_factors(factors)
    if not fresh:
        return 0
    kept = [whole(item.A).clone() for item in fresh]
    generator = torch.Generator().manual_seed(seed)
    was_training = model.training
    model.eval()
    model.zero_grad()
    with torch.no_grad():
        for item in fresh:
            local_part(item.A).zero_()
            write_whole(item.B, torch.randn(item.B.shape, generator=generator).to(item.B.device, item.B.dtype))
    try:
        for loss in losses:
            with torch.enable_grad():
                loss().backward()
        sketches = [None if item.A.grad is None else item.matrix_of_A(whole(item.A.grad)).float() for item in fresh]
    finally:
        with torch.no_grad():
            for item, a in zip(fresh, kept, strict=True):
                write_whole(item.A, a)
                local_part(item.B).zero_()
        model.zero_grad()
        model.train(was_training)
    return sum(_set_rows(item, sketch) for item, sketch in zip(fresh, sketches, strict=True) if sketch is not None)


def _set_rows(item: Factors, sketch: Tensor) -> bool:
    """Set A to an orthogonal basis of the rows of the sketch; False if the sketch is zero."""
    import torch

    if not torch.isfinite(sketch).all():
        raise TrainingError(
            f"The gradient of '{item.module}' before the first step is NaN or infinite: check the data and the base, or use "
            "--init peft."
        )
    if not sketch.any():
        return False
    tiny = torch.finfo(sketch.dtype).tiny
    with torch.no_grad():
        # Rows of very different sizes are brought to one length first, so that rounding does not decide small ones.
        rows = sketch / torch.linalg.vector_norm(sketch, dim=1, keepdim=True).clamp_min(tiny)
        factor = whole(item.A)
        a = item.matrix_of_A(factor)
        a.copy_(torch.linalg.qr(rows.T)[0].T * torch.linalg.vector_norm(a.float(), dim=1, keepdim=True))
        write_whole(item.A, factor)
    return True
