"""A language model's attention as torch.onnx sees it: ONNX Runtime's ``GroupQueryAttention``, with its cache in fixed memory.

transformers asks a cache for all keys and values, and a function for the attention over them. While a graph is traced, one object
is both: as the cache it hands the new keys and values on, and as the function it writes the operator, which appends them to the
memory of past ones itself. It does so at each row's own length, so rows of different lengths advance together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rmlora.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ATTENTION", "CachedAttention"]

ATTENTION = "rmlora_cached"
"""Name under which transformers finds the attention while a graph is traced."""

_OPERATOR = "com.microsoft::GroupQueryAttention"
_BIAS_INPUT = 10
"""Input of the operator with numbers that are added to the scores."""
_HARMLESS = frozenset({"dropout", "position_ids", "use_cache", "output_attentions", "cache_position", "is_causal"})
"""Arguments of an attention function that change nothing here: the operator is causal, and nothing is dropped."""


class CachedAttention:
    """The cache and the attention function of one trace; :meth:`begin` sets it up for one call of the model."""

    def __init__(self) -> None:
        self._past: list[tuple[Tensor, Tensor]] = []
        self._present: list[tuple[Tensor, Tensor] | None] = []
        self._lengths: Sequence[Tensor] = ()
        self._seen: Any = 0

    def begin(self, past: Sequence[Tensor], attention_mask: Tensor, new: int) -> None:
        """Start a call of the model.

        Args:
            past: keys and values of every layer in turn, ``[rows, heads, capacity, head size]``.
            attention_mask: ``[rows, total]``, 1 for each row's own tokens, which come first.
            new: tokens of this call.
        """
        import torch

        total = attention_mask.shape[1]
        self._past = list(zip(past[::2], past[1::2], strict=True))
        self._present = [None] * len(self._past)
        self._lengths = (attention_mask.sum(1) - 1).int(), torch.scalar_tensor(total, dtype=torch.int32)
        self._seen = total - new

    @property
    def present(self) -> list[Tensor]:
        """Keys and values of every layer in turn, after a call.

        Raises:
            InputError: a layer keeps none.
        """
        found = [pair for pair in self._present if pair is not None]
        if len(found) != len(self._present):
            raise InputError(
                f"Layer {self._present.index(None)} of the model does not call the attention that is traced: merge the adapter with "
                " rmlora-deploy merge, and run the result with an engine for language models."
            )
        return [tensor for pair in found for tensor in pair]

    # What transformers asks of a cache.

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the new keys and values as they are."""
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """Return how many tokens the longest row has read before this call."""
        del layer_idx
        return self._seen

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        """Return what :meth:`get_seq_length` does."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[Any, int]:
        """Return the number of keys, and the first of them."""
        return self.get_seq_length(layer_idx) + query_length, 0

    # What transformers asks of an attention function.

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Return the output ``[rows, tokens, heads, head size]`` of a layer's attention.

        Raises:
            InputError: the layer asks for something that the operator does not do.
        """
        unknown = sorted(
            name for name, given in others.items() if given is not None and given is not False and name not in _HARMLESS
        )
        if attention_mask is not None or unknown:
            what = f"'{unknown[0]}'" if unknown else "a mask of its own"
            raise InputError(f"{type(module).__name__} gives its attention {what}, which is not exported.")
        return self.attend(
            module.layer_idx, query, key, value, scaling=scaling, window=sliding_window, softcap=softcap
        ), None

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Write the operator, and return its output ``[rows, tokens, heads, head size]``.

        Args:
            layer: number of the layer.
            query: ``[rows, heads, tokens, head size]``.
            key: the same, perhaps with fewer heads.
            value: as ``key``.
            scaling: factor of the scores; None for 1/√(head size).
            window: last tokens that each one sees; None for all.
            softcap: soft limit of the scores; None for none.
            bias: added to the scores, ``[1, heads, tokens, total]``.
        """
        import torch

        rows, heads, tokens, size = query.shape
        attributes: dict[str, Any] = {
            "num_heads": heads,
            "kv_num_heads": key.shape[1],
            "scale": float(scaling if scaling is not None else size**-0.5),
        }
        if window:
            attributes["local_window_size"] = int(window)
        if softcap:
            attributes["softcap"] = float(softcap)
        past = self._past[layer]
        inputs: list[Tensor | None] = [*(_flat(part) for part in (query, key, value)), *past, *self._lengths]
        if bias is not None:
            inputs += [None] * (_BIAS_INPUT - len(inputs)) + [bias]
        output, *present = torch.onnx.ops.symbolic_multi_out(
            _OPERATOR,
            inputs,
            attributes,
            dtypes=[query.dtype] * 3,
            shapes=[(rows, tokens, heads * size), *(part.shape for part in past)],
            version=1,
        )
        self._present[layer] = (present[0], present[1])
        return output.view(rows, tokens, heads, size)


def _flat(heads: Tensor) -> Tensor:
    """Return ``[rows, heads, tokens, size]`` as ``[rows, tokens, heads · size]``."""
    return heads.transpose(1, 2).flatten(2)
