"""The number of ids of an input is read from the table it looks up in, in every precision; other ids are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from rmlora.errors import InputError
from rmlora_converters.graph.files.model_file import load_model
from rmlora_converters.graph.locate.id_limits import check_ids, id_limits
from rmlora_deploy.exporter.precision import save_in_precision
from tests.helpers.exports import export
from tests.helpers.models import VOCABULARY


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize(("name", "optimized"), [("bert", False), ("bert", True), ("gpt2", True)])
def test_the_table_of_every_precision_is_found(precision: str, name: str, optimized: bool, tmp_path: Path) -> None:
    export(name, tmp_path / "model.onnx", optimized=optimized)
    save_in_precision(load_model(tmp_path / "model.onnx"), tmp_path / "low.onnx", precision, scratch=tmp_path)  # type: ignore[arg-type]
    assert id_limits(load_model(tmp_path / "low.onnx"))["input_ids"] == VOCABULARY


def test_pixels_have_no_limit(tmp_path: Path) -> None:
    export("vit", tmp_path / "model.onnx", optimized=True)
    assert id_limits(load_model(tmp_path / "model.onnx")) == {}


def test_the_smallest_table_counts_and_one_of_unknown_size_does_not() -> None:
    ids = ir.Value(name="ids", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
    tables = [
        ir.Value(name=f"t{rows}", const_value=ir.tensor(np.zeros((rows, 2), np.float32)), shape=ir.Shape([rows, 2]))
        for rows in (9, 5)
    ]
    unknown = ir.Value(name="x", shape=ir.Shape(["rows", 2]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = [ir.node("Gather", [table, ids]) for table in (*tables, unknown)]
    outputs = [node.outputs[0] for node in nodes]
    graph = ir.Graph([ids, unknown], outputs, nodes=nodes, initializers=tables, opset_imports={"": 20})
    assert id_limits(ir.Model(graph, ir_version=10)) == {"ids": 5}


def test_ids_are_followed_through_reshaping_and_not_through_conditions() -> None:
    ids = ir.Value(name="ids", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
    table = ir.Value(name="t", const_value=ir.tensor(np.zeros((9, 2), np.float32)), shape=ir.Shape([9, 2]))
    flags = ir.Value(name="f", const_value=ir.tensor(np.zeros((2, 2), np.float32)), shape=ir.Shape([2, 2]))
    axis = ir.Value(name="axis", const_value=ir.tensor(np.array([0])), shape=ir.Shape([1]))
    wide = ir.node("Unsqueeze", [ids, axis])
    narrow = ir.node("Cast", [wide.outputs[0]], {"to": int(ir.DataType.INT32)})
    is_set = ir.node("Cast", [ids], {"to": int(ir.DataType.BOOL)})
    number = ir.node("Cast", [is_set.outputs[0]], {"to": int(ir.DataType.INT64)})
    lookups = [
        ir.node("Gather", [table, narrow.outputs[0]], {"axis": -2}),
        ir.node("Gather", [flags, number.outputs[0]]),
    ]
    nodes = [wide, narrow, is_set, number, *lookups]
    outputs = [node.outputs[0] for node in lookups]
    graph = ir.Graph([ids], outputs, nodes=nodes, initializers=[table, flags, axis], opset_imports={"": 20})
    assert id_limits(ir.Model(graph, ir_version=10)) == {"ids": 9}


def test_other_ids_are_refused_and_negative_ones_count_from_the_end() -> None:
    check_ids({"ids": np.array([[-5, 4]]), "other": np.array([99])}, {"ids": 5, "absent": 2})
    check_ids({"ids": np.zeros((0, 4), np.int64)}, {"ids": 5})
    check_ids({"ids": np.array([np.nan])}, {"ids": 5})  # of another type, which the session refuses
    for wrong in (5, -6):
        with pytest.raises(InputError, match=f"'ids' holds {wrong}, but the model has ids from 0 to 4 only"):
            check_ids({"ids": np.array([[0, wrong]])}, {"ids": 5})
