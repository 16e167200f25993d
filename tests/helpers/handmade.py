"""Bundles written by hand, with known answers; making one takes no export, no torch and almost no time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rmlora.storage import sha256_file
from rmlora_deploy.bundles.bundle import MANIFEST_FILE, MODEL_FILE
from rmlora_deploy.bundles.manifest import FORMAT_VERSION
from tests.helpers.bundles import PROCESSOR
from tests.helpers.cli import tokenizer
from tests.helpers.models import VOCABULARY

LABELS = ("red", "green", "blue")
POSITIONS = 32

Inputs = Mapping[str, tuple["TensorProto.DataType", Sequence[str | int]]]
"""Graph input → element type and shape."""


def word_bundle(
    directory: Path, *, labels: tuple[str, ...] = LABELS, precision: str = "fp32", task: str = "text-classification"
) -> Path:
    """Write a text bundle: each word w0, w1 or w2 adds five points to the first, second or third label.

    With the task feature-extraction (and no labels) those points are the vector of a text.
    """
    votes = np.zeros((VOCABULARY, 3), dtype=np.float32)
    votes[[3, 4, 5], [0, 1, 2]] = 5.0  # the tokenizer puts three special tokens before w0
    nodes = [
        helper.make_node("Gather", ["votes", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["seen", "last"], ["column"]),
        helper.make_node("Mul", ["each", "column"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "sequence_axis"], ["logits"], keepdims=0),
    ]
    weights = {"votes": votes, "last": np.array([-1]), "sequence_axis": np.array([1])}
    inputs: Inputs = {name: (TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")}
    _write(directory, task, labels, precision, nodes, weights, inputs)
    tokenizer().save_pretrained(directory)
    return directory


def color_bundle(directory: Path, *, labels: tuple[str, ...] = LABELS, task: str = "image-classification") -> Path:
    """Write an image bundle: the scores of red, green and blue are the means of those channels.

    With the task image-feature-extraction (and no labels) those means are the vector of an image.
    """
    nodes = [helper.make_node("ReduceMean", ["pixel_values", "axes"], ["logits"], keepdims=0)]
    inputs: Inputs = {"pixel_values": (TensorProto.FLOAT, ["batch", 3, 16, 16])}
    _write(directory, task, labels, "fp32", nodes, {"axes": np.array([2, 3])}, inputs)
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return directory


def _write(
    directory: Path, task: str, labels: tuple[str, ...], precision: str, nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray], inputs: Inputs,
) -> None:  # fmt: skip
    directory.mkdir(parents=True)
    graph = helper.make_graph(
        nodes,
        "handmade",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, directory / MODEL_FILE)
    kinds = {TensorProto.INT64: "int64", TensorProto.FLOAT: "float"}
    manifest = {
        "format_version": FORMAT_VERSION,
        "created_by": "tests",
        "mode": "merged",
        "task": task,
        "precision": precision,
        "labels": list(labels),
        "max_length": POSITIONS,
        "base": {"source": "nowhere", "fingerprint": "none"},
        "adapter": {"source": "no-such-adapter", "sha256": "none", "modules": 2, "parameters": 10},
        "model": {
            "files": {MODEL_FILE: sha256_file(directory / MODEL_FILE)},
            "bytes": (directory / MODEL_FILE).stat().st_size,
            "opset": 20,
            "operators": {node.op_type: 1 for node in nodes},
            "inputs": [{"name": name, "dtype": kinds[kind], "shape": shape} for name, (kind, shape) in inputs.items()],
            "outputs": [{"name": "logits", "dtype": "float", "shape": ["batch", 3]}],
        },
        "verification": None,
    }
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))
    config = {"model_type": "bert", "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS}
    (directory / "config.json").write_text(json.dumps(config))
