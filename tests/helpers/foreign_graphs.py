"""ONNX exports of the tiny BERT in the forms that people have on disk: old operator sets, other types, other names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.float16 import convert_float_to_float16
from transformers import PreTrainedModel

__all__ = ["FORMS", "export_legacy"]

_INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


class _Outputs(torch.nn.Module):
    """The model with its outputs as a tuple, perhaps with the hidden states first."""

    def __init__(self, model: PreTrainedModel, *, hidden: bool) -> None:
        super().__init__()
        self.model, self.hidden = model, hidden

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits, after the last hidden states if these are wanted."""
        made = self.model(input_ids=ids, attention_mask=mask, token_type_ids=types, output_hidden_states=self.hidden)
        return (made.hidden_states[-1], made.logits) if self.hidden else (made.logits,)


def export_legacy(
    model: PreTrainedModel, path: Path, *, opset: int = 17, hidden: bool = False, fixed: bool = False
) -> Path:
    """Export a text classifier with torch's older exporter, which renames most weights (``onnx::MatMul_740``)."""
    model.eval().config._attn_implementation = "eager"
    ids = torch.randint(3, 90, (2, 8))
    axes = {name: {0: "batch", 1: "tokens"} for name in _INPUTS}
    names = ["last_hidden_state", "logits"] if hidden else ["logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Outputs(model, hidden=hidden), (ids, torch.ones_like(ids), torch.zeros_like(ids)), path,
            dynamo=False, opset_version=opset, input_names=_INPUTS, output_names=names,
            dynamic_axes=None if fixed else {**axes, **{name: {0: "batch"} for name in names}},
        )  # fmt: skip
    return path


def _weights_as_constants(path: Path) -> None:
    model = onnx.load(path)
    constants = [helper.make_node("Constant", [], [weight.name], value=weight) for weight in model.graph.initializer]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _weights_as_inputs(path: Path) -> None:
    model = onnx.load(path)
    for weight in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    model.ir_version = 3
    onnx.save(model, path)


def _int32_inputs(path: Path) -> None:
    model = onnx.load(path)
    casts = []
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32
        casts.append(helper.make_node("Cast", [value.name], [f"{value.name}_wide"], to=TensorProto.INT64))
    for node in model.graph.node:
        node.input[:] = [f"{name}_wide" if name in _INPUTS else name for name in node.input]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _half(path: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


def _dynamic_int8(path: Path) -> None:
    quantize_dynamic(path, path, weight_type=QuantType.QInt8)


def _dynamic_per_channel(path: Path) -> None:
    quantize_dynamic(path, path, weight_type=QuantType.QUInt8, per_channel=True)


class _Samples(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self) -> None:
        ids = np.random.default_rng(0).integers(3, 90, (2, 8))
        self.batches = iter([dict(zip(_INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def _static_int8(path: Path) -> None:
    quantize_static(path, path, _Samples(), op_types_to_quantize=["MatMul"])


def _fused(path: Path) -> None:
    made = optimizer.optimize_model(str(path), "bert", num_heads=2, hidden_size=16, opt_level=1)
    assert made.get_fused_operator_statistics()["Attention"] == 2
    made.save_model_to_file(str(path))


def _fused_but_embedding(path: Path) -> None:
    options = optimizer.FusionOptions("bert")
    options.enable_embed_layer_norm = False  # so that the tokens of each row are counted by a node of their own
    made = optimizer.optimize_model(
        str(path), "bert", num_heads=2, hidden_size=16, opt_level=1, optimization_options=options
    )
    assert made.get_fused_operator_statistics()["Attention"] == 2
    made.save_model_to_file(str(path))


def _stored_as(dtype: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        model = onnx.load(path)
        casts = []
        for weight in model.graph.initializer:
            if weight.data_type == TensorProto.FLOAT:
                name, content = weight.name, numpy_helper.to_array(weight)
                weight.CopyFrom(numpy_helper.from_array(content.astype(dtype), f"{name}_stored"))
                casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
        nodes = [*casts, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        onnx.save(model, path)

    return change


FORMS: dict[str, Callable[[Path], None]] = {
    "weights as constants": _weights_as_constants,
    "weights as inputs": _weights_as_inputs,
    "int32 inputs": _int32_inputs,
    "fp16": _half,
    "int8": _dynamic_int8,
    "uint8 per channel": _dynamic_per_channel,
    "static int8": _static_int8,
    "fused attention": _fused,
    "fused attention alone": _fused_but_embedding,
    "weights stored in fp16": _stored_as("float16"),
    "weights stored in float64": _stored_as("float64"),
}
"""What people do to an export → a function that does it to a file in place."""
