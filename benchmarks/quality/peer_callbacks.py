"""What AdaLoRA and SoRA do between two steps (torch, peft)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["AllocateBudget", "SparseGates", "fold_gates"]


class AllocateBudget(TrainerCallback):
    """Let PEFT's AdaLoRA measure importance and prune after each optimizer step."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Prune; PEFT reads the gradients, which are still there."""
        allocate: Any = self._model.base_model.update_and_allocate
        allocate(state.global_step + 1)


class SparseGates(TrainerCallback):
    """Give every direction a gate between A and B, and shrink all gates after each step (soft thresholding).

    Args:
        model: gets the gates, as parameters of its ``lora_A`` modules.
        strength: λ of ``λ‖g‖₁``; a step moves a gate by λ times the learning rate towards zero.
    """

    def __init__(self, model: PeftModel, strength: float = 0.1) -> None:
        self._strength = strength
        self._gates: list[Parameter] = []
        for layer in _down_projections(model):
            gate = Parameter(torch.ones(layer.weight.shape[0], device=layer.weight.device))
            layer.register_parameter("gate", gate)
            layer.register_forward_hook(_apply_gate)
            self._gates.append(gate)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move every gate towards zero, not beyond it."""
        threshold = self._strength * kwargs["optimizer"].param_groups[0]["lr"]
        with torch.no_grad():
            for gate in self._gates:
                gate.copy_(torch.nn.functional.softshrink(gate, threshold))


def fold_gates(model: PeftModel) -> None:
    """Multiply the gates into A and remove them."""
    with torch.no_grad():
        for layer in _down_projections(model):
            layer.weight.mul_(layer.gate[:, None])
            layer._forward_hooks.clear()
            del layer.gate


def _apply_gate(module: Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output * module.gate.to(output.dtype)


def _down_projections(model: PeftModel) -> list[Any]:
    return [module for name, module in model.named_modules() if ".lora_A." in f"{name}." and hasattr(module, "weight")]
