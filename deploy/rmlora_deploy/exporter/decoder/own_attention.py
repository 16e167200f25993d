"""Layers of transformers that torch.onnx is given another form of: attention that is not exchangeable there, experts, ``Conv1D``.

transformers lets most models' attention be exchanged for a function of that signature. Older models compute it in a method of
their own, which is replaced here, on the instance, by one that reads the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rmlora_deploy.exporter.decoder.cached_attention import CachedAttention
from rmlora_deploy.exporter.decoder.traced_experts import has_experts, replace_experts

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["OWN_ATTENTION", "replace_layers"]

Replacement = Callable[[Any, CachedAttention], None]


def replace_layers(model: nn.Module, cache: CachedAttention) -> None:
    """Give the layers of ``model`` that need it the form in which they are traced, in place."""
    for module in model.modules():
        name = type(module).__name__
        if name in OWN_ATTENTION:
            OWN_ATTENTION[name](module, cache)
        elif has_experts(module):
            replace_experts(module)
        elif name == "Conv1D":  # its own form flattens rows and tokens, which separates product and bias
            module.forward = partial(_conv1d, module)


def _conv1d(module: Any, x: Tensor) -> Tensor:
    weight: Tensor = module.weight
    bias: Tensor = module.bias
    return x @ weight + bias


def _falcon(module: Any, cache: CachedAttention) -> None:
    module.forward = partial(_falcon_forward, module, cache)


def _falcon_forward(
    module: Any,
    cache: CachedAttention,
    hidden_states: Tensor,
    alibi: Tensor | None,
    attention_mask: Tensor | None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

    del attention_mask
    query, key, value = (part.transpose(1, 2) for part in module._split_heads(module.query_key_value(hidden_states)))
    bias = None
    if alibi is None and position_embeddings is not None:
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    elif alibi is not None:
        bias = _falcon_bias(module, alibi, query)
    output = cache.attend(module.layer_idx, query, key, value, bias=bias)
    return module.dense(output.flatten(2)), None


def _falcon_bias(module: Any, alibi: Tensor, query: Tensor) -> Tensor:
    """Return what is added to the scores; Falcon rounds it to bfloat16, in which ONNX Runtime's CPU cannot compute, so it is a table."""
    import torch
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    mask = torch.ones(1, module.max_position_embeddings, dtype=torch.long)
    table = build_alibi_tensor(mask, module.num_heads, query.dtype) * module.inv_norm_factor
    return _alibi_bias(table[:, :, torch.arange(alibi.shape[-1])], module.num_heads, query.shape[2])


def _bloom(module: Any, cache: CachedAttention) -> None:
    module.forward = partial(_bloom_forward, module, cache)


def _bloom_forward(
    module: Any, cache: CachedAttention, hidden_states: Tensor, residual: Tensor, alibi: Tensor, **_: Any
) -> tuple[Tensor, None]:
    query, key, value = module._reshape(module.query_key_value(hidden_states))
    bias = _alibi_bias(alibi, module.num_heads, query.shape[2])
    output = cache.attend(module.layer_idx, query, key, value, scaling=module.inv_norm_factor, bias=bias)
    return module.dense(output.flatten(2)) + residual, None


def _alibi_bias(alibi: Tensor, heads: int, tokens: int) -> Tensor:
    """Return ``alibi [rows · heads, 1, total]``, the same for all rows, as ``[1, heads, tokens, total]``."""
    return alibi[:heads].view(1, heads, 1, -1).expand(1, heads, tokens, -1)


def _gpt_j(module: Any, cache: CachedAttention) -> None:
    module._attn = partial(_heads_first, cache, module.layer_idx, float(1 / module.scale_attn))


def _gpt_neo(module: Any, cache: CachedAttention) -> None:
    window = module.config.window_size if module.attention_type == "local" else None
    module._attn = partial(_heads_first, cache, module.layer_id, 1.0, window=window)


def _heads_first(
    cache: CachedAttention,
    layer: int,
    scaling: float,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    window: int | None = None,
) -> tuple[Tensor, None]:
    """Return the output as ``[rows, heads, tokens, size]``."""
    del attention_mask
    return cache.attend(layer, query, key, value, scaling=scaling, window=window).transpose(1, 2), None


OWN_ATTENTION: Mapping[str, Replacement] = {
    "BloomAttention": _bloom,
    "CodeGenAttention": _gpt_j,
    "FalconAttention": _falcon,
    "GPTJAttention": _gpt_j,
    "GPTNeoSelfAttention": _gpt_neo,
}
"""Class of a layer → what replaces its attention."""
