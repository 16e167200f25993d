"""From a transformers language model to a graph with the inputs and outputs that the GenAI builder's graphs have."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.errors import CheckpointError, InputError, require
from rmlora.library_calls import library_call
from rmlora_deploy.exporter.decoder.cached_attention import ATTENTION, CachedAttention
from rmlora_deploy.exporter.decoder.own_attention import replace_layers
from rmlora_deploy.exporter.quiet import quiet_libraries
from rmlora_deploy.exporter.torch_export import DEFAULT_OPSET, run_exporter

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["CacheShape", "cache_shape", "trace_decoder"]

_ROWS, _NEW, _SEEN, _CAPACITY = 2, 5, 4, 32
"""Sizes to trace with; the exporter would treat an axis of size 0 or 1 as fixed, and equal ones as one."""
_WRAPPER = "model_"
"""Attribute that holds the model, and with which the exporter begins the names of its parameters."""
_ADVICE = "Merge the adapter with  rmlora-deploy merge  and run the result with an engine for language models."


@dataclass(frozen=True)
class CacheShape:
    """What a model keeps of each token."""

    layers: int
    heads: int
    """Heads of keys and values."""
    size: int
    """Of a head."""

    def names(self, start: str) -> list[str]:
        """Return the names of keys and values of every layer in turn."""
        return [f"{start}.{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]


def cache_shape(model: PreTrainedModel) -> CacheShape:
    """Return what ``model`` keeps of each token, by running it on one.

    Raises:
        CheckpointError: it keeps something else than keys and values, or not the same of each in all layers.
    """
    import torch

    with torch.inference_mode():
        cache: Any = model(input_ids=torch.tensor([[1, 2]]), use_cache=True).past_key_values
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in getattr(cache, "layers", [])]
    shapes = {tuple(tensor.shape[1::2]) if tensor is not None else None for pair in pairs for tensor in pair}
    if len(shapes) != 1 or None in shapes:
        raise CheckpointError(
            f"{type(model).__name__} does not keep keys and values of one size in all layers, which its export needs. {_ADVICE}"
        )
    heads, size = next(shape for shape in shapes if shape is not None)
    return CacheShape(len(pairs), int(heads), int(size))


def trace_decoder(model: PreTrainedModel, shape: CacheShape) -> ir.Model:
    """Return the graph of ``model``: new tokens and what is kept of past ones in, logits and what is kept of all out.

    Args:
        model: in evaluation mode; its layers are changed in place.
        shape: from :func:`cache_shape`.

    Raises:
        InputError: the exporter cannot trace it, or its attention does something that is not exported.
    """
    require("onnxscript", "export")
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    cache = CachedAttention()
    replace_layers(model, cache)
    tensors, shapes = _example(model, shape, torch)
    ALL_ATTENTION_FUNCTIONS[ATTENTION] = cache
    try:
        _use_attention(model)
        graph = run_exporter(
            _wrapped(model, cache),
            tensors,
            shapes,
            opset=DEFAULT_OPSET,
            inputs=[name for name in tensors if name != "past"] + shape.names("past_key_values"),
            outputs=["logits", *shape.names("present")],
            name=type(model).__name__,
            advice=_ADVICE,
        )
    finally:
        del ALL_ATTENTION_FUNCTIONS[ATTENTION]
    _use_own_names(graph)
    _simplify(graph, fuse_norms=next(model.parameters()).dtype == torch.float32)
    return graph


def _use_attention(model: PreTrainedModel) -> None:
    """Choose the attention that is traced, in all parts of the model."""
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module.config, "_attn_implementation"):
            module.config._attn_implementation = ATTENTION


def _example(model: PreTrainedModel, shape: CacheShape, torch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return arguments to trace with, and which of their axes vary."""
    rows, new, total, capacity = (
        torch.export.Dim(name)
        for name in ("batch_size", "sequence_length", "total_sequence_length", "max_sequence_length")
    )
    dtype = next(model.parameters()).dtype
    past = [torch.zeros(_ROWS, shape.heads, _CAPACITY, shape.size, dtype=dtype) for _ in range(2 * shape.layers)]
    tensors: dict[str, Any] = {
        "input_ids": torch.ones(_ROWS, _NEW, dtype=torch.long),
        "attention_mask": torch.ones(_ROWS, _SEEN + _NEW, dtype=torch.long),
    }
    shapes: dict[str, Any] = {"input_ids": {0: rows, 1: new}, "attention_mask": {0: rows, 1: total}}
    if "position_ids" in signature(model.forward).parameters:
        tensors["position_ids"] = torch.arange(_SEEN, _SEEN + _NEW).repeat(_ROWS, 1)
        shapes["position_ids"] = {0: rows, 1: new}
    return {**tensors, "past": past}, {**shapes, "past": [{0: rows, 2: capacity} for _ in past]}


def _wrapped(model: PreTrainedModel, cache: CachedAttention) -> nn.Module:
    """Return a module that takes and returns tensors alone."""
    from torch import nn

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, _WRAPPER, model)

        def forward(self, input_ids: Any, attention_mask: Any, past: Any, position_ids: Any = None) -> Any:
            cache.begin(past, attention_mask, input_ids.shape[1])
            positions = {} if position_ids is None else {"position_ids": position_ids}
            output = model(input_ids=input_ids, past_key_values=cache, use_cache=True, **positions)
            return output.logits, *cache.present

    return Decoder().eval()


def _use_own_names(model: ir.Model) -> None:
    """Give parameters the names that they have in the checkpoint's model."""
    graph = model.graph
    for name in [name for name in graph.initializers if name.startswith(f"{_WRAPPER}.")]:
        value = graph.initializers.pop(name)
        value.name = name.removeprefix(f"{_WRAPPER}.")
        graph.initializers[value.name] = value


def _simplify(model: ir.Model, *, fuse_norms: bool) -> None:
    """Fold constants, in place; what onnxscript could fuse beside norms hides products from branches and quantizers.

    Args:
        model: the graph.
        fuse_norms: make one node of each norm, with the addition before it; the fusions mix the types of fp16's norms.

    Raises:
        InputError: onnxscript fails.
    """
    import onnxscript.optimizer
    from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization
    from onnxscript.rewriter.ort_fusions.skip_normalization import (
        fuse_skip_layer_normalization,
        fuse_skip_rms_normalization,
    )

    def refuse(reason: str) -> InputError:
        return InputError(f"The traced graph cannot be simplified ({reason}): please report this as a bug.")

    with library_call(refuse), quiet_libraries():
        onnxscript.optimizer.optimize(model)
        if fuse_norms:
            for fuse in (fuse_rms_normalization, fuse_skip_layer_normalization, fuse_skip_rms_normalization):
                fuse(model, debug=False)
            onnxscript.optimizer.optimize(model)
    RemoveUnusedNodesPass()(model)
    _remove_unused_positions(model)


def _remove_unused_positions(model: ir.Model) -> None:
    """Remove the positions of new tokens from the inputs if nothing reads them."""
    inputs = model.graph.inputs
    unused = [number for number, value in enumerate(inputs) if value.name == "position_ids" and not value.uses()]
    for number in unused:
        del inputs[number]
