"""Graphs that contradict themselves are refused when they are read, with the node or weight that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rmlora.errors import InputError
from rmlora_converters.graph.files.model_file import load_model


def model() -> onnx.ModelProto:
    """Return ``y = relu(x · w)``, with a weight and an operator of ONNX Runtime's own."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
            helper.make_node("Cast", ["p"], ["c"], name="cast", to=1),
            helper.make_node("FusedThing", ["c"], ["y"], name="own", domain="com.microsoft"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(np.ones((2, 3), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _declare_empty_and_huge(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[:] = [0, 2**62, 4]
    proto.graph.initializer[0].raw_data = b""


def _declare_huge(proto: onnx.ModelProto) -> None:
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.float_data.append(1.0)
    weight.dims[:] = [2**40, 2**20]


CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "no opset": (lambda proto: proto.ClearField("opset_import"), "which ONNX operator set"),
    "no outputs": (lambda proto: proto.graph.ClearField("output"), "no outputs"),
    "same names": (lambda proto: proto.graph.input.add().CopyFrom(proto.graph.input[0]), "name of their own"),
    "short weight": (lambda proto: setattr(proto.graph.initializer[0], "raw_data", b"1234"), "damaged weight 'w'"),
    "negative size": (lambda proto: proto.graph.initializer[0].dims.__setitem__(0, -2), "damaged weight 'w'"),
    "unknown type": (lambda proto: setattr(proto.graph.initializer[0], "data_type", 0), "damaged weight 'w'"),
    "huge weight": (_declare_huge, "damaged weight 'w'"),
    "empty and huge": (_declare_empty_and_huge, "damaged weight 'w'"),
    "missing input": (lambda proto: proto.graph.node[0].input.pop(), "damaged node 'product'"),
    "empty input": (lambda proto: proto.graph.node[0].input.__setitem__(0, ""), "damaged node 'product'"),
    "attribute type": (lambda proto: proto.graph.node[1].attribute[0].CopyFrom(helper.make_attribute("to", "x")), "'to'"),
    "no attribute": (lambda proto: proto.graph.node[1].ClearField("attribute"), "needs the attribute 'to'"),
    "nothing makes it": (lambda proto: proto.graph.node[2].input.__setitem__(0, "z"), "reads 'z'"),
    "circle": (lambda proto: proto.graph.node[0].input.__setitem__(0, "c"), "wait for each other"),
    "no output": (lambda proto: proto.graph.node[2].output.__setitem__(0, "z"), "the output 'y'"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_graph_is_refused(change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    proto = model()
    CHANGES[change][0](proto)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "model.onnx")
    assert CHANGES[change][1] in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not caplog.records  # one sentence, not also onnx_ir's own


def test_nodes_may_come_in_any_order(tmp_path: Path) -> None:
    """ONNX Runtime accepts that, so some tools write it."""
    proto = model()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert [node.name for node in load_model(tmp_path / "model.onnx").graph] == ["product", "cast", "own"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", "-4", "cannot be read as an ONNX model"),
        ("length", "8", "damaged weight"),
        ("offset", "8", "cannot be read to the end of"),
        ("location", "other.data", "missing"),
        ("offset", "x", "cannot be read as an ONNX model"),
    ],
)
def test_external_weights_are_checked_before_they_are_read(key: str, value: str, message: str, tmp_path: Path) -> None:
    proto = model()
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    assert load_model(tmp_path / "model.onnx").graph.initializers["w"].const_value.numpy().shape == (2, 3)
    changed = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    entries = {entry.key: entry for entry in changed.graph.initializer[0].external_data}
    entries[key].value = value
    (tmp_path / "model.onnx").write_bytes(changed.SerializeToString())
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "model.onnx")
