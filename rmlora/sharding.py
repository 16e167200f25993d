"""Parameters of which every process holds a part, seen whole (torch).

FSDP2 (``torch.distributed.fsdp.fully_shard``) makes every parameter a ``DTensor``, split along its first axis: of A each process
has some directions, of B some outputs. What couples the directions, their Gram matrix, needs them all. The factors are small,
so they are gathered, and each process keeps its part of the result. For parameters that are not sharded nothing is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["is_sharded", "local_part", "part_of", "whole", "write_whole"]


def is_sharded(tensor: Tensor) -> bool:
    """Return True if this process may hold only a part of ``tensor``."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, detached; a sharded one is gathered, which all processes must do at the same time."""
    detached = tensor.detach()
    return cast("Tensor", cast(Any, detached).full_tensor()) if is_sharded(tensor) else detached


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor, in the same memory; all of one that is not sharded."""
    return cast("Tensor", cast(Any, tensor.detach()).to_local()) if is_sharded(tensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """Return the part of ``value`` that this process holds of ``like``, without communication."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded = cast(Any, like)
    split = distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)
    return split.to_local()


def write_whole(tensor: Tensor, value: Tensor) -> None:
    """Set a tensor to ``value``, of which every process has all; nothing to do if ``value`` is its memory."""
    if is_sharded(tensor):
        local_part(tensor).copy_(part_of(value, tensor))
    elif value.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(value)
