"""Rounds the weights of a language model's products in blocks (``MatMulNBits``), to 8 or to 4 bits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from rmlora.errors import require
from rmlora_converters.graph.passes.rewire import producer_of
from rmlora_deploy.exporter.quiet import quiet_libraries

__all__ = ["quantize_in_blocks"]

_BLOCK = 32
"""Inputs that share a scale."""
_ACCURACY = 4
"""Activations in 8 bits, the fastest level."""
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the modules it is in, as the exporter writes them."""
_LAYER = re.compile(r"\.(\d+)\.([\w.]+)'\]?$")
"""Number of the layer, and path of the module in it."""
_SENSITIVE = re.compile(
    r"(v_proj|qkv\w*|query_key_value|c_attn|Wqkv|down_proj|fc2|fc_out|w2|dense_4h_to_h|mlp\.c_proj)$"
)
"""Modules that suffer most from 4 bits: those that make the values, and the last ones of a layer."""


def quantize_in_blocks(model: ir.Model, bits: Literal[4, 8]) -> ir.Model:
    """Return the graph with all products of weights in ``MatMulNBits``; the embedding stays as it is.

    With 4 bits, the output layer keeps 8, and so do the sensitive modules of the first and last eighth of the layers and of
    every third between them, as in the builder's recipe ``k_quant_mixed``.

    Args:
        model: float32 graph; changed in place.
        bits: of a weight.
    """
    require("onnxruntime", "cpu")
    products = list(_products(model))
    fine = {str(node.name) for node in _fine_products(model, products)}
    chosen = {str(node.name): {"bits": 8 if str(node.name) in fine else 4} for node in products}
    with quiet_libraries():
        from onnxruntime.quantization.matmul_nbits_quantizer import KQuantWeightOnlyQuantConfig, MatMulNBitsQuantizer

        quantizer = MatMulNBitsQuantizer(
            ir.to_proto(model),
            bits=bits,
            block_size=_BLOCK,
            is_symmetric=True,
            accuracy_level=_ACCURACY,
            op_types_to_quantize=("MatMul",),
            algo_config=KQuantWeightOnlyQuantConfig(customized_weight_config=chosen) if bits == 4 else None,
        )
        quantizer.process()
    return ir.serde.deserialize_model(quantizer.model.model)


def _products(model: ir.Model) -> Iterable[ir.Node]:
    """Yield every product of a weight, after storing the weight as the product reads it: ``[in, out]``."""
    graph = model.graph
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        before = weight.producer() if weight is not None else None
        if before is not None and before.op_type == "Transpose" and before.inputs[0] is not None:
            stored = before.inputs[0].const_value
            if stored is not None:  # of a tied output layer, whose weight is the embedding's, too
                node.replace_input_with(1, _turned(graph, str(before.inputs[0].name), stored.numpy()))
                weight = node.inputs[1]
        if weight is not None and weight.is_initializer() and weight.const_value is not None:
            yield node
    RemoveUnusedNodesPass()(model)


def _turned(graph: ir.Graph, name: str, stored: np.ndarray) -> ir.Value:
    turned = f"{name}.turned"
    if turned not in graph.initializers:
        tensor = ir.tensor(np.ascontiguousarray(stored.T), name=turned)
        graph.register_initializer(
            ir.Value(
                name=turned, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
            )
        )
    return graph.initializers[turned]


def _fine_products(model: ir.Model, products: Iterable[ir.Node]) -> Iterable[ir.Node]:
    """Yield the products that keep 8 bits where the others get 4."""
    found = {node: _LAYER.search(node.metadata_props.get(_SCOPES, "")) for node in products}
    layers = 1 + max((int(match[1]) for match in found.values() if match), default=0)
    logits = _output_layer(model)
    for node, match in found.items():
        if node is logits or (match is not None and _keeps_bits(int(match[1]), layers) and _SENSITIVE.search(match[2])):
            yield node


def _keeps_bits(layer: int, layers: int) -> bool:
    return layer < layers / 8 or layer >= 7 * layers / 8 or (layer - layers // 8) % 3 == 2


def _output_layer(model: ir.Model) -> ir.Node:
    """Return the last product before the logits."""
    node = producer_of(model.graph.outputs[0])
    while node.op_type != "MatMul" and node.inputs[0] is not None:
        node = producer_of(node.inputs[0])
    return node
