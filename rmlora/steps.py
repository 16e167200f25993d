"""One optimizer step of RM-LoRA, as plain functions for hand-written training loops (torch).

::

    factors = find_factors(model)
    for step, batch in enumerate(batches):
        model(**batch).loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        regularize_gradients(factors, config)
        masked = mask_gradients(factors, config, step)
        optimizer.step()
        finish_step(factors, config, masked, learning_rate)
        optimizer.zero_grad()
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rmlora.config import RMLoRAConfig
from rmlora.decorrelation import decorrelate
from rmlora.factors import Factors
from rmlora.mask import Side, masked_directions_of_many
from rmlora.regularizer import penalty_and_gradients
from rmlora.sharding import is_sharded, local_part, part_of, whole, write_whole

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

__all__ = ["MaskedStep", "finish_step", "mask_gradients", "regularize_gradients"]


@dataclass
class MaskedStep:
    """What a step with masks has to put right after the optimizer: values from before it."""

    _before: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)
    """Factors whose step is lengthened, their values, and by how much."""
    _kept: list[tuple[Parameter, int, Tensor, Tensor]] = field(default_factory=list)
    """Factors whose masked directions do not move: the axis of the directions, their numbers and their values."""
    _kept_parts: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """This process's parts of such factors, where they are sharded: which elements do not move, and their values."""

    def lengthen(self) -> None:
        """Multiply the steps that the factors have made, whichever optimizer made them (``compensate``)."""
        import torch

        with torch.no_grad():
            for parameter, before, factor in self._before:
                parameter.lerp_(before, 1.0 - factor)
        self._before.clear()

    def restore(self) -> None:
        """Restore the masked directions to their values before the step (``mask_mode="update"``)."""
        import torch

        with torch.no_grad():
            for parameter, axis, directions, values in self._kept:
                parameter.index_copy_(axis, directions, values)
            for part, fixed, before in self._kept_parts:
                part.copy_(torch.where(fixed, before, part))
        self._kept.clear()
        self._kept_parts.clear()


def regularize_gradients(factors: Sequence[Factors], config: RMLoRAConfig) -> Tensor | None:
    """Add ``orth_weight · ∂R/∂(A, B)`` to the factors' gradients, in place.

    Call this once per optimizer step, after reduction, unscaling and clipping. The penalty's gradient then does not depend
    on gradient accumulation or the number of processes. Sharded factors are gathered (:mod:`rmlora.sharding`).

    Returns:
        R before the step as a 0-d tensor on the device (no synchronization), or None if ``orth_weight`` is 0.
    """
    import torch

    if config.orth_weight == 0:
        return None
    pairs = _matrices(factors)
    wholes = [whole(parameter) for parameter, _ in pairs]
    matrices = [view(value) for value, (_, view) in zip(wholes, pairs, strict=True)]
    value, gradients = penalty_and_gradients(matrices, squared=config.squared)
    with torch.no_grad():
        for (parameter, view), shape, gradient in zip(pairs, wholes, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if is_sharded(parameter):
                added = torch.empty_like(shape)
                view(added).copy_(gradient)
                local_part(parameter.grad).add_(part_of(added, parameter), alpha=config.orth_weight)
            else:
                view(parameter.grad).add_(gradient.to(parameter.dtype), alpha=config.orth_weight)
    return value


def mask_gradients(factors: Sequence[Factors], config: RMLoRAConfig, step: int) -> MaskedStep:
    """Zero the gradients of the directions masked in ``step``, in place.

    Gradients are overwritten by index, not multiplied by 0, so infinite gradients do not become NaN.

    Args:
        factors: from :func:`rmlora.factors.find_factors`.
        config: the method.
        step: number of optimizer steps already done; step 0, with ``mask_interval`` the whole first interval, has no mask.

    Returns:
        what :func:`finish_step` needs after the optimizer's step.
    """
    import torch

    masked = MaskedStep()
    interval = step // config.mask_interval
    if not config.masks or interval == 0:
        return masked
    with torch.no_grad():
        for rank, group in _by_rank(factors).items():
            active = config.active_rank_of(rank)
            if active >= rank:
                continue
            sides: tuple[Side, Side] = ("AB", "AB") if config.mask_sharing == "shared" else ("A", "B")
            names = [(item.module, side) for item in group for side in sides]
            rows = masked_directions_of_many(
                seed=config.seed, step=interval, names=names, rank=rank, active_rank=active
            )
            directions = torch.from_numpy(rows).to(group[0].A.device, non_blocking=True)
            for index, item in enumerate(group):
                for parameter, axis, chosen in (
                    (item.A, 0, directions[2 * index]),
                    (item.B, 1, directions[2 * index + 1]),
                ):
                    _mask(parameter, axis, chosen.to(parameter.device), masked, keep=config.mask_mode == "update")
                    if config.compensate:
                        part = local_part(parameter)
                        masked._before.append((part, part.detach().clone(), config.step_factor_of(rank)))
    return masked


def finish_step(factors: Sequence[Factors], config: RMLoRAConfig, masked: MaskedStep, learning_rate: float) -> None:
    """Do what follows the optimizer's step: lengthen it, decorrelate the directions, restore what must not move.

    Args:
        factors: from :func:`rmlora.factors.find_factors`.
        config: the method.
        masked: from :func:`mask_gradients`, before the step.
        learning_rate: with which the optimizer has moved the factors.
    """
    masked.lengthen()
    if config.decorrelation:
        pairs = _matrices(factors)
        wholes = [whole(parameter) for parameter, _ in pairs]
        matrices = [view(value) for value, (_, view) in zip(wholes, pairs, strict=True)]
        decorrelate(matrices, config.decorrelation * learning_rate)
        for (parameter, _), value in zip(pairs, wholes, strict=True):
            write_whole(parameter, value)
    masked.restore()


def _matrices(factors: Sequence[Factors]) -> list[tuple[Parameter, Callable[[Tensor], Tensor]]]:
    """Return every factor with the function that views it, or its gradient, as ``[r, …]``."""
    return [pair for item in factors for pair in ((item.A, item.matrix_of_A), (item.B, item.matrix_of_B))]


def _mask(parameter: Parameter, axis: int, directions: Tensor, masked: MaskedStep, *, keep: bool) -> None:
    if is_sharded(parameter):
        _mask_part(parameter, axis, directions, masked, keep=keep)
        return
    if keep:
        masked._kept.append((parameter, axis, directions, parameter.detach().index_select(axis, directions)))
    if parameter.grad is not None:
        parameter.grad.index_fill_(axis, directions, 0)


def _mask_part(parameter: Parameter, axis: int, directions: Tensor, masked: MaskedStep, *, keep: bool) -> None:
    """Mask directions of a sharded factor: each process its part of them."""
    import torch

    chosen = torch.zeros(parameter.shape, dtype=torch.bool, device=directions.device).index_fill_(
        axis, directions, True
    )
    fixed, part = part_of(chosen, parameter), local_part(parameter)
    if keep:
        masked._kept_parts.append((part, fixed, part.clone()))
    if parameter.grad is not None:
        local_part(parameter.grad).masked_fill_(fixed, 0)


def _by_rank(factors: Sequence[Factors]) -> dict[int, list[Factors]]:
    groups: dict[int, list[Factors]] = defaultdict(list)
    for item in factors:
        groups[item.rank].append(item)
    return groups
