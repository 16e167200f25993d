"""A model whose weights cannot be read is refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from rmlora.errors import InputError
from rmlora_converters.graph.files.model_file import load_model, save_model


@pytest.mark.parametrize("reason", ["multiple hard links", "is a link that leads out of", "missing", "cannot be read"])
def test_weights_that_cannot_be_read_are_an_error_with_a_reason(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmlora_converters.graph.files.model_file.INLINE_LIMIT", 0)
    weight = ir.Value(name="w", const_value=ir.tensor(np.ones((64, 64), np.float32), name="w"))
    x = ir.Value(name="x", shape=ir.Shape([1, 64]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("MatMul", [x, weight])
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 21}, name="g")
    (tmp_path / "model").mkdir()
    path, other = tmp_path / "model" / "m.onnx", tmp_path / "weights"
    save_model(ir.Model(graph, ir_version=10), path)
    data = path.with_name("m.onnx.data")
    assert load_model(path).graph.initializers["w"].const_value.numpy().sum() == 64 * 64
    data.rename(other)
    if reason == "multiple hard links":
        data.hardlink_to(other)
    elif reason == "is a link that leads out of":
        data.symlink_to(other)
    elif reason == "cannot be read":
        data.write_bytes(other.read_bytes()[:8])
    with pytest.raises(InputError, match=reason):
        load_model(path)
