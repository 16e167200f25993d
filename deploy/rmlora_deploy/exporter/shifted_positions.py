"""DeBERTa's attention to relative positions, in a form that ONNX Runtime computes faster than transformers' own.

transformers multiplies every query with a table of all ``2k`` relative positions, of which a text of ``n`` tokens has ``2n - 1``,
and picks one product for every pair of tokens with ``gather``, the same for all rows and heads. Here only the rows of the table
that occur are multiplied, in the order of distances, so that query ``i`` has the product for token ``j`` at ``j - i + n - 1``:
each line is shifted by one against the line before. Read with lines that are one shorter, the products stand in columns, which
are copied as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["shifted_positions"]

_METHOD = "disentangled_attention_bias"


@contextmanager
def shifted_positions(model: nn.Module) -> Iterator[None]:
    """Compute the same scores by shifting, inside the block, in every layer of DeBERTa v2 or v3 that ``model`` has."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

    layers = [module for module in model.modules() if type(module) is DisentangledSelfAttention]
    for layer in layers:
        setattr(layer, _METHOD, MethodType(_bias, layer))
    try:
        yield
    finally:
        for layer in layers:
            delattr(layer, _METHOD)


def _bias(
    layer: Any, query: Tensor, key: Tensor, relative_pos: Tensor | None, rel_embeddings: Tensor, scale_factor: int
) -> Tensor | int:
    """Return what transformers' method of that name does: scores ``[rows * heads, n, n]``; its arguments are the same.

    Args:
        layer: its ``self``.
        query: ``[rows * heads, n, width of a head]``.
        key: of the same shape.
        relative_pos: not used, as positions are those of the tokens.
        rel_embeddings: the table ``[2k, hidden]``.
        scale_factor: products that are added up for a score.
    """
    import torch

    length, heads, span = query.size(1), layer.num_attention_heads, layer.pos_ebd_size
    table = rel_embeddings[: 2 * span].unsqueeze(0)
    scale = (query.size(-1) * scale_factor) ** 0.5
    rising = torch.arange(1 - length, length + 1, device=query.device)  # the last only makes the lines even

    def products(tokens: Tensor, projection: nn.Module, distances: Tensor) -> Tensor:
        positions = layer.transpose_for_scores(projection(table), heads)[:, _places(layer, distances)]
        found = tokens.reshape(-1, heads, length, tokens.size(-1)) @ positions.transpose(-1, -2)
        picked: Tensor = _shifted(found, length).reshape(-1, length, length) / scale
        return picked

    score: Tensor | int = 0
    if "c2p" in layer.pos_att_type:
        score = score + products(query, layer.key_proj if layer.share_att_key else layer.pos_key_proj, -rising)
    if "p2c" in layer.pos_att_type:
        projection = layer.query_proj if layer.share_att_key else layer.pos_query_proj
        score = score + products(key, projection, rising).transpose(-1, -2)
    return score


def _places(layer: Any, distances: Tensor) -> Tensor:
    """Return the rows of the table for distances from token to token."""
    import torch
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    span = layer.pos_ebd_size
    if layer.position_buckets > 0:
        distances = make_log_bucket_position(distances, layer.position_buckets, layer.max_relative_positions)
    return torch.clamp(distances.long() + span, 0, 2 * span - 1)


def _shifted(products: Tensor, length: int) -> Tensor:
    """Return ``[rows, heads, n, n]`` from ``[rows, heads, n, 2n]``: of line ``i`` those from ``n - 1 - i`` on."""
    rows, heads = products.shape[:2]
    flat = products.reshape(rows, heads, 2 * length * length)
    lines = flat[..., length - 1 : length - 1 + length * (2 * length - 1)]
    shifted: Tensor = lines.reshape(rows, heads, length, 2 * length - 1)[..., :length]
    return shifted
