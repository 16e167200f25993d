"""Products in 8 bits: which are found, what they compute, and what stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from rmlora_converters.graph.files.model_file import save_model
from rmlora_converters.graph.locate.products import find_products
from rmlora_converters.graph.passes.quantize_products import (
    InputScale,
    quantize_products,
    quantize_tables,
    round_weight,
)

RNG = np.random.default_rng(0)
WIDTH, OUT = 24, 16
TOKENS = RNG.normal(size=(6, WIDTH)).astype(np.float32)
OUTLIERS = TOKENS * np.where(np.arange(WIDTH) == 3, 60, 1).astype(np.float32)
"""Tokens with one channel far larger than the others, as transformers have them."""


def weight(name: str, *shape: int) -> ir.Value:
    tensor = ir.tensor(RNG.normal(size=shape).astype(np.float32), name=name)
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)


def model_of(nodes: Sequence[ir.Node], *weights: ir.Value) -> ir.Model:
    x = nodes[0].inputs[0]
    assert x is not None
    graph = ir.Graph(
        [x], [nodes[-1].outputs[0]], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="graph"
    )
    nodes[-1].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return ir.Model(graph, ir_version=10)


def node(operator: str, *inputs: ir.Value, name: str, domain: str = "", **attributes: object) -> ir.Node:
    made = ir.node(operator, inputs, attributes, domain=domain, name=name)  # type: ignore[arg-type]
    made.outputs[0].name = f"{name}.out"
    return made


def tokens_input() -> ir.Value:
    return ir.Value(name="x", shape=ir.Shape(["n", WIDTH]), type=ir.TensorType(ir.DataType.FLOAT))


def run(model: ir.Model, path: Path, tokens: np.ndarray) -> np.ndarray:
    if any(item.domain for item in model.graph):
        model.graph.opset_imports.setdefault("com.microsoft", 1)
    save_model(model, path)
    return np.asarray(ort.InferenceSession(str(path)).run(None, {"x": tokens})[0])


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))


def plain_product() -> ir.Model:
    w, b = weight("w", WIDTH, OUT), weight("b", OUT)
    product = node("MatMul", tokens_input(), w, name="product")
    return model_of([product, node("Add", b, product.outputs[0], name="sum")], w, b)


def transposed_gemm() -> ir.Model:
    w, b = weight("w", OUT, WIDTH), weight("b", OUT)
    return model_of([node("Gemm", tokens_input(), w, b, name="product", transB=1)], w, b)


def gelu() -> ir.Model:
    w, b = weight("w", WIDTH, OUT), weight("b", OUT)
    product = node("MatMul", tokens_input(), w, name="product")
    return model_of([product, node("BiasGelu", product.outputs[0], b, name="gelu", domain="com.microsoft")], w, b)


def chain() -> ir.Model:
    first, second = weight("first", WIDTH, WIDTH), weight("second", WIDTH, OUT)
    one = node("MatMul", tokens_input(), first, name="one")
    return model_of([one, node("MatMul", one.outputs[0], second, name="two")], first, second)


@pytest.mark.parametrize("make", [plain_product, transposed_gemm, gelu, chain])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("bits", [7, 8])
def test_products_keep_their_result_and_their_name(
    make: Callable[[], ir.Model], static: bool, bits: int, tmp_path: Path
) -> None:
    model = make()
    expected = run(model, tmp_path / "float.onnx", TOKENS)
    products, name = list(find_products(model.graph)), model.graph.outputs[0].name
    scales = {
        str(product.x.name): InputScale(-20, 20) if product.x.name != "x" else InputScale(-4, 4) for product in products
    }
    assert quantize_products(model, scales if static else None, bits=bits) == len(products)
    assert relative(run(model, tmp_path / "int8.onnx", TOKENS), expected) < 0.04
    assert model.graph.outputs[0].name == name
    operators = [item.op_type for item in model.graph]
    assert not {"MatMul", "Gemm", "Add", "BiasGelu"} & set(operators)
    weights = [
        value
        for value in model.graph.initializers.values()
        if value.dtype == ir.DataType.INT8 and value.shape.rank() == 2
    ]
    assert len(weights) == len(products)
    assert max(np.abs(value.const_value.numpy().astype(int)).max() for value in weights) == (64 if bits == 7 else 127)  # type: ignore[union-attr]


def test_products_of_one_input_share_its_rounding(tmp_path: Path) -> None:
    x, weights = tokens_input(), [weight(name, WIDTH, OUT) for name in "qkv"]
    products = [node("MatMul", x, w, name=w.name or "") for w in weights]
    total = node("Sum", *(product.outputs[0] for product in products), name="total")
    model = model_of([*products, total], *weights)
    expected = run(model, tmp_path / "float.onnx", TOKENS)
    assert quantize_products(model, {"x": InputScale(-4, 4)}) == 3
    assert [item.op_type for item in model.graph].count("QuantizeLinear") == 1
    assert relative(run(model, tmp_path / "int8.onnx", TOKENS), expected) < 0.03


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed grid", "range of the batch"])
def test_balancing_saves_what_an_outlier_channel_would_cost(fixed: bool, tmp_path: Path) -> None:
    low, high = OUTLIERS.min(axis=0), OUTLIERS.max(axis=0)
    balance = np.where(np.arange(WIDTH) == 3, 60, 1).astype(np.float32)
    errors = {}
    for name, factors in (("plain", None), ("balanced", balance)):
        model = plain_product()
        weights = model.graph.initializers["w"].const_value
        assert weights is not None
        weights.numpy()[3] *= 0.02  # so that the outlier does not decide the result alone
        expected = run(model, tmp_path / "float.onnx", OUTLIERS)
        ends = (low, high) if factors is None else (low / factors, high / factors)
        grids = {"x": InputScale(float(ends[0].min()), float(ends[1].max()), factors)} if fixed else None
        quantize_products(model, grids, balances={"w": factors} if factors is not None else None)
        errors[name] = relative(run(model, tmp_path / f"{name}.onnx", OUTLIERS), expected)
    assert errors["balanced"] < errors["plain"] / 5


def test_a_shared_weight_is_stored_once(tmp_path: Path) -> None:
    w = weight("w", WIDTH, WIDTH)
    one = node("MatMul", tokens_input(), w, name="one")
    model = model_of([one, node("MatMul", one.outputs[0], w, name="two")], w)
    expected = run(model, tmp_path / "float.onnx", TOKENS)
    quantize_products(model, {"x": InputScale(-4, 4), "one.out": InputScale(-20, 20)})
    stored = [
        name
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.INT8 and value.shape.rank() == 2
    ]
    assert stored == ["w/int8"]
    assert relative(run(model, tmp_path / "int8.onnx", TOKENS), expected) < 0.05


def test_what_callers_can_replace_and_what_is_skipped_stays_float() -> None:
    model = plain_product()
    assert quantize_products(model, skip=["product"]) == 0
    model.graph.inputs.append(model.graph.initializers["w"])  # an optional input, as LoRA inputs are
    assert list(find_products(model.graph)) == []
    assert quantize_products(model) == 0


def test_the_grid_has_zero_on_it_and_clips() -> None:
    scale = InputScale(-1.0, 3.0)
    np.testing.assert_allclose(scale.rounded(np.array([0, 9, -9], np.float32)), [0, 3.0, -1.0], atol=0.01)
    assert scale.rounded(np.zeros(1, np.float32))[0] == 0
    assert InputScale(0.0, 0.0).step == 1  # an input that is always zero
    rounded, scales = round_weight(np.array([[0, 2], [0, -1]], np.float32), 8)
    assert rounded.tolist() == [[0, 127], [0, -64]] and scales[0] == 1


def test_tables_have_a_scale_for_every_row(tmp_path: Path) -> None:
    rows = RNG.normal(size=(2048, 40)).astype(np.float32) * np.logspace(-3, 3, 2048, dtype=np.float32)[:, None]
    table = ir.Value(
        name="table",
        shape=ir.Shape(rows.shape),
        type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(rows, name="table"),
    )
    ids = ir.Value(name="x", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
    lookup = node("Gather", table, ids, name="lookup")
    graph = ir.Graph([ids], lookup.outputs, nodes=[lookup], initializers=[table], opset_imports={"": 20}, name="graph")
    lookup.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model = ir.Model(graph, ir_version=10)
    assert quantize_tables(model) == 1 and "table" not in graph.initializers
    wanted = np.arange(0, 2048, 7)
    got = run(model, tmp_path / "int8.onnx", wanted)
    assert (np.abs(got - rows[wanted]).max(axis=1) <= np.abs(rows[wanted]).max(axis=1) / 250).all()
    assert quantize_tables(model) == 0
