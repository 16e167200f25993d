"""Finding the trainable LoRA factors of a PEFT model (torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rmlora.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter

__all__ = ["Factors", "find_factors"]


@dataclass(frozen=True)
class Factors:
    """The two trainable factors of one module. The rank is axis 0 of A and axis 1 of B in every layer type."""

    module: str
    """Module path without the prefixes of PEFT and launchers; ``#name`` is appended if the adapter is not ``default``."""
    A: Parameter
    """``[r, in]``, embeddings ``[r, tokens]``, convolutions ``[r, in, *k]``."""
    B: Parameter
    """``[out, r]``, embeddings ``[width, r]``, convolutions ``[out, r, 1…]``."""

    @property
    def rank(self) -> int:
        """Directions r."""
        return int(self.A.shape[0])

    @staticmethod
    def matrix_of_A(value: Tensor) -> Tensor:  # noqa: N802 - the paper's symbol
        """View A, or its gradient, as ``[r, in]``."""
        return value.flatten(1)

    @staticmethod
    def matrix_of_B(value: Tensor) -> Tensor:  # noqa: N802 - the paper's symbol
        """View B, or its gradient, transposed as ``[r, out]``."""
        return value.flatten(1).T


def find_factors(model: Module) -> list[Factors]:
    """Return the trainable LoRA factors of ``model``, ordered by module path.

    The model may be wrapped in DistributedDataParallel or torch.compile, or sharded by FSDP2 (:mod:`rmlora.sharding`). Factors
    that are in another order in memory, as those of convolutions after ``to(memory_format=torch.channels_last)``, are put in
    their usual one: the matrix of a factor must be a view of it.

    Raises:
        TrainingError: there are none, or no rank directions are left to see: they are of a convolution with groups, flattened
            (FSDP1), or emptied (DeepSpeed ZeRO-3).
    """
    from peft.tuners.lora import LoraLayer

    found: list[Factors] = []
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        for side_a, side_b in ((layer.lora_A, layer.lora_B), (layer.lora_embedding_A, layer.lora_embedding_B)):
            for name in side_a:
                a, b = _parameter(side_a[name]), _parameter(side_b[name])
                if a.requires_grad and b.requires_grad:
                    _refuse_sharded(path, a)
                    _refuse_groups(path, a, b)
                    _make_contiguous(a)
                    found.append(Factors(_clean(path) + ("" if name == "default" else f"#{name}"), a, b))
    if not found:
        raise TrainingError(
            "The model has no trainable LoRA factors: wrap it with peft.get_peft_model and a LoRA config first "
            "(RMLoRAConfig.to_peft), and do not load the adapter for inference only."
        )
    return sorted(found, key=lambda factors: factors.module)


def _parameter(factor: Any) -> Parameter:
    """Return the parameter of a factor: PEFT stores it directly for embeddings, in a layer otherwise."""
    parameter: Parameter = getattr(factor, "weight", factor)
    return parameter


def _refuse_sharded(path: str, parameter: Parameter) -> None:
    if hasattr(parameter, "ds_id"):
        raise TrainingError(
            f"The LoRA factors of '{path}' are sharded by DeepSpeed ZeRO-3, which keeps them empty between passes, so RM-LoRA "
            "cannot see their rank directions: use FSDP2 (fully_shard, fsdp_config version 2) or DDP."
        )
    if "fsdp" in path or parameter.dim() < 2:
        raise TrainingError(
            f"The LoRA factors of '{path}' are flattened by FSDP1, so their rank directions cannot be told apart: use FSDP2 "
            "(fully_shard, fsdp_config version 2) or DDP."
        )


def _refuse_groups(path: str, a: Parameter, b: Parameter) -> None:
    if b.shape[1] != a.shape[0]:
        raise TrainingError(
            f"'{path}' is a convolution with {a.shape[0] // b.shape[1]} groups: each row of its A is read by one of them only, so its "
            "factors have no rank directions in common; leave it out of target_modules."
        )


def _make_contiguous(parameter: Parameter) -> None:
    if not parameter.is_contiguous():
        parameter.data = parameter.data.contiguous()


def _clean(path: str) -> str:
    """Remove the prefixes that wrappers add to the base model's module path."""
    for prefix in ("module.", "_orig_mod.", "base_model.model."):
        path = path.removeprefix(prefix)
    return path
