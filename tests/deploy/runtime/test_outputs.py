"""Outputs that are not rows of numbers, and ONNX Runtime's reasons, become sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from rmlora.errors import InputError
from rmlora_deploy.runtime.graph_logits import check_output
from rmlora_deploy.runtime.providers import create_session, run_error


@pytest.mark.parametrize("output", [np.zeros((2, 3)), np.zeros((2, 4, 3), np.float32), np.zeros((2, 1), np.float16)])
def test_rows_of_numbers_pass(output: np.ndarray) -> None:
    assert check_output(output, 2) is output


@pytest.mark.parametrize(
    "output", [np.zeros(2), np.zeros((1, 3)), np.zeros((2, 0)), np.zeros((2, 3), np.int64), np.array([["a"], ["b"]])]
)
def test_anything_else_is_refused(output: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"answers 2 rows with \S+ of the shape .*, not with numbers for each row"):
        check_output(output, 2)


def test_reasons_are_told_without_codes_and_temporary_paths(tmp_path: Path) -> None:
    shape = ("x", onnx.TensorProto.FLOAT, [1])
    made = onnx.helper.make_graph(
        [onnx.helper.make_node("Unheard", ["x"], ["y"], domain="nowhere")], "g",
        [onnx.helper.make_tensor_value_info(*shape)], [onnx.helper.make_tensor_value_info("y", *shape[1:])],
    )  # fmt: skip
    sets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("nowhere", 1)]
    onnx.save(onnx.helper.make_model(made, opset_imports=sets), tmp_path / "model.onnx")
    with pytest.raises(InputError) as caught:
        create_session(tmp_path / "model.onnx", called=Path("given.onnx"))
    message = str(caught.value)
    assert message.startswith("ONNX Runtime cannot load given.onnx: ") and message.endswith(".")
    assert "ONNXRuntimeError" not in message and str(tmp_path) not in message
    error = RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status\n code.")
    assert str(run_error(error)) == "The graph cannot be run on these inputs: Non-zero status code."
