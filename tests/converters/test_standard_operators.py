"""Graphs for runtimes that lack an operator compute what they did."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from rmlora_converters.graph.files.model_file import to_bytes
from rmlora_converters.graph.passes.expand_attention import expand_attention
from rmlora_converters.graph.passes.truth_of_sizes import replace_truth_casts
from rmlora_deploy.runtime.openvino import standard_operators
from rmlora_deploy.runtime.providers import create_session

ROWS, TOKENS, HEADS, WIDTH = 2, 5, 4, 24


def attention_model(
    *, mask: int | None = TensorProto.FLOAT, kind: int = TensorProto.FLOAT, **attributes: float
) -> onnx.ModelProto:
    names = ["q", "k", "v"]
    inputs = [helper.make_tensor_value_info(name, kind, ["b", "t", WIDTH]) for name in names]
    if mask is not None:
        inputs.append(helper.make_tensor_value_info("mask", mask, ["b", 1, "t", "t"]))
        names.append("mask")
    node = helper.make_node("Attention", names, ["y"], **{"q_num_heads": HEADS, "kv_num_heads": HEADS, **attributes})
    output = helper.make_tensor_value_info("y", kind, ["b", "t", WIDTH])
    graph = helper.make_graph([node], "g", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def arrays(mask: int | None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    found = {name: rng.standard_normal((ROWS, TOKENS, WIDTH)).astype(np.float32) for name in ("q", "k", "v")}
    allowed = np.arange(TOKENS)[None, None, None] < np.array([TOKENS, 3])[:, None, None, None]
    allowed = np.broadcast_to(allowed, (ROWS, 1, TOKENS, TOKENS))
    if mask == TensorProto.BOOL:
        found["mask"] = allowed
    elif mask is not None:
        found["mask"] = np.where(allowed, 0, np.finfo(np.float32).min).astype(np.float32)
    return found


def outputs(model: bytes, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(create_session(model).run(None, inputs)[0])


@pytest.mark.parametrize("mask", [TensorProto.FLOAT, TensorProto.BOOL, None])
@pytest.mark.parametrize("attributes", [{}, {"scale": 0.3}])
def test_attention_is_what_it_stands_for(mask: int | None, attributes: dict[str, float]) -> None:
    made = attention_model(mask=mask, **attributes)
    model = ir.serde.deserialize_model(made)
    assert expand_attention(model) == 1
    assert "Attention" not in {node.op_type for node in model.graph}
    want, got = (outputs(content, arrays(mask)) for content in (made.SerializeToString(), to_bytes(model)))
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("attributes", [{}, {"scale": 0.3}])
def test_attention_in_half_precision_is_what_it_stands_for(attributes: dict[str, float]) -> None:
    made = attention_model(mask=TensorProto.BOOL, kind=TensorProto.FLOAT16, **attributes)
    model = ir.serde.deserialize_model(made)
    assert expand_attention(model) == 1
    given = {
        name: value if value.dtype == bool else value.astype(np.float16)
        for name, value in arrays(TensorProto.BOOL).items()
    }
    want, got = (outputs(content, given) for content in (made.SerializeToString(), to_bytes(model)))
    np.testing.assert_allclose(got, want, atol=5e-3)


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 2.0}, {"kv_num_heads": 2}])
def test_attention_that_means_more_stays(attributes: dict[str, float]) -> None:
    model = ir.serde.deserialize_model(attention_model(**attributes))
    assert expand_attention(model) == 0
    assert [node.op_type for node in model.graph] == ["Attention"]


def test_a_model_that_needs_nothing_is_left_alone() -> None:
    made = attention_model(is_causal=1).SerializeToString()
    assert standard_operators(made, None) == (made, None)


def test_one_for_an_axis_with_elements_and_zero_for_one_without() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["size"], start=0, end=1),
        helper.make_node("Cast", ["size"], ["truth"], to=TensorProto.BOOL),
        helper.make_node("Cast", ["truth"], ["y"], to=TensorProto.INT64),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])]
    output = [helper.make_tensor_value_info("y", TensorProto.INT64, [1])]
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, output), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    model = ir.serde.deserialize_model(made)
    assert replace_truth_casts(model) == 1
    for count in (0, 1, 7):
        for content in (made.SerializeToString(), to_bytes(model)):
            assert outputs(content, {"x": np.ones(count, np.float32)}).tolist() == [min(count, 1)]
