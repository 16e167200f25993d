"""Graphs of products whose weights are quantized in blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["float_graph", "in_blocks"]

Floats = npt.NDArray[np.float32]


def float_graph(weights: dict[str, Floats]) -> ir.Model:
    """Return a graph with one product of ``x [batch, n, in]`` for each of ``weights [in, out]``, and one output for each."""
    fan_in = len(next(iter(weights.values())))
    x = ir.Value(name="x", shape=ir.Shape(["batch", "n", fan_in]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, outputs, values = [], [], []
    for name, weight in weights.items():
        value = ir.Value(name=f"{name}.weight", const_value=ir.tensor(weight, name=f"{name}.weight"))
        product = ir.node("MatMul", [x, value], name=f"/{name}")
        output = ir.node("Relu", product.outputs, name=f"/{name}/relu")
        for value_, title in ((product.outputs[0], f"{name}_product"), (output.outputs[0], f"{name}_y")):
            value_.name, value_.type = title, ir.TensorType(ir.DataType.FLOAT)
            value_.shape = ir.Shape(["batch", "n", weight.shape[1]])
        nodes += [product, output]
        outputs.append(output.outputs[0])
        values.append(value)
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=values, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def in_blocks(model: ir.Model, bits: int, *, symmetric: bool) -> ir.Model:
    """Return the graph with its products in ``MatMulNBits``, in blocks of 32."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        ir.serde.serialize_model(model), bits=bits, block_size=32, is_symmetric=symmetric, accuracy_level=4
    )
    quantizer.process()
    return ir.serde.deserialize_model(quantizer.model.model)
