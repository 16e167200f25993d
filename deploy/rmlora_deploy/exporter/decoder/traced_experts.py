"""A mixture of experts as torch.onnx sees it: ONNX Runtime's ``MoE``, which computes the chosen experts of each token only.

The operator chooses the experts itself, by the largest probabilities. Models choose in different ways, so it is given the
weights that the model has computed: their logarithms, and minus infinity for experts that were not chosen.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from rmlora.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["has_experts", "replace_experts"]

_OPERATOR = "com.microsoft::MoE"
_INTERLEAVED = 1
"""The order of gate and up in the weights, output by output: the only one that the operator's CPU version takes."""


def has_experts(module: Any) -> bool:
    """Return True if ``module`` holds the weights of all experts of a layer, in the way that transformers keeps them."""
    return getattr(getattr(module, "gate_up_proj", None), "ndim", 0) == 3 and hasattr(module, "num_experts")


def replace_experts(module: Any) -> None:
    """Give the experts the form in which they are traced, in place.

    Raises:
        InputError: their weights or their activation have another form than the operator's.
    """
    others = [name for name in ("has_bias", "is_transposed", "has_post_expert_norm") if getattr(module, name, False)]
    activation = type(getattr(module, "act_fn", None)).__name__
    if others or activation not in ("SiLUActivation", "SiLU") or not getattr(module, "is_concatenated", True):
        raise InputError(f"The experts of {type(module).__name__} are not those of ONNX Runtime's operator MoE.")
    count, width, inputs = module.gate_up_proj.shape
    halves = module.gate_up_proj.detach().view(count, 2, width // 2, inputs)
    module.register_buffer("gate_up_interleaved", halves.transpose(1, 2).reshape(count, width, inputs).contiguous())
    module.forward = partial(_forward, module)


def _forward(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    import torch

    weights = top_k_weights.to(hidden_states.dtype)
    unchosen = hidden_states.new_full((hidden_states.shape[0], module.num_experts), float("-inf"))
    chosen = unchosen.scatter(1, top_k_index, weights.log())
    output = torch.onnx.ops.symbolic(
        _OPERATOR,
        [hidden_states, chosen, module.gate_up_interleaved, None, module.down_proj],
        {
            "k": top_k_index.shape[1],
            "activation_type": "swiglu",
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "swiglu_fusion": _INTERLEAVED,
            "normalize_routing_weights": 1,
        },
        dtype=hidden_states.dtype,
        shape=hidden_states.shape,
        version=1,
    )
    return output * weights.sum(1, keepdim=True)  # the operator's own weights add up to 1
