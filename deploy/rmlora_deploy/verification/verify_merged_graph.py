"""Verifying a graph that an adapter was merged into, from any exporter, against PyTorch with PEFT's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rmlora.adapter import Adapter
from rmlora.adapter_task import task_of
from rmlora.errors import AdapterError, ConfigError, InputError, ParityError, RMLoRAError, is_installed
from rmlora.inputs import Arrays
from rmlora.tasks import Task
from rmlora.torch_models import load_adapted
from rmlora_converters.graph.files.model_file import load_model
from rmlora_converters.graph.passes.adopt import score_output
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.bundles.processor import max_length
from rmlora_deploy.bundles.report import Comparison, Tolerance
from rmlora_deploy.runtime.graph_logits import graph_logits
from rmlora_deploy.runtime.providers import create_session
from rmlora_deploy.verification.compare import TEXT_TOLERANCES, TOLERANCES, compare, mismatch
from rmlora_deploy.verification.sample_batches import batch_shapes, make_sample_batches, sample_inputs
from rmlora_deploy.verification.torch_outputs import finite_outputs
from rmlora_deploy.verification.torch_pair import torch_is_installed
from rmlora_deploy.verification.verify_merged_text import compare_merged_text

__all__ = ["verify_merged_graph"]


def verify_merged_graph(
    graph: Path, base: Path, adapter: Adapter, *, allow_base_mismatch: bool = False
) -> dict[str, Any]:
    """Run ``graph`` and PyTorch on the same inputs and return the report.

    Args:
        graph: an ONNX file with ``adapter`` in its weights.
        base: checkpoint that the graph was exported from.
        adapter: the adapter that was merged.
        allow_base_mismatch: compare although the adapter was made for another base.

    Returns:
        ``passed``, ``precision``, ``tolerance``, ``shapes`` and ``onnx`` (a comparison). If there is nothing to compare
        with, ``passed`` is None and ``reason`` says why.

    Raises:
        ParityError: the graph differs from PyTorch by more than its precision explains, or cannot be loaded.
    """
    if not is_installed("onnxruntime"):
        return _unverified("onnxruntime is not installed")
    _check_loads(graph)
    if not torch_is_installed():
        return _unverified("PyTorch and PEFT are not installed")
    try:
        task = task_of(adapter)
    except ConfigError:
        return _unverified("the adapter does not record its task")
    except AdapterError as error:
        return _unverified(str(error))
    precision = "fp16" if _is_half(graph) else "fp32"
    if task.outputs.kind == "text":
        try:
            read, shapes = compare_merged_text(
                graph, base, adapter, task=task.name, allow_base_mismatch=allow_base_mismatch
            )
        except RMLoRAError as error:
            return _unverified(str(error))
        return _report(read, shapes, TEXT_TOLERANCES[precision], precision)
    if not task.outputs.has_labels:
        return _unverified(f"exporters disagree on the outputs for {task.name}; export a bundle to have it compared")
    try:
        batches, expected, got = _run_both(graph, base, adapter, task, allow_base_mismatch=allow_base_mismatch)
    except RMLoRAError as error:
        return _unverified(str(error))
    if wrong := next((b.shape for a, b in zip(expected, got, strict=True) if a.shape != b.shape), None):
        return _unverified(f"the graph's output has the shape {list(wrong)}, which is not a classifier's")
    return _report(
        compare(expected, got, task.outputs, batches=batches), batch_shapes(batches), TOLERANCES[precision], precision
    )


def _report(result: Comparison, shapes: list[list[int]], tolerance: Tolerance, precision: str) -> dict[str, Any]:
    """Return the report of a comparison.

    Raises:
        ParityError: it is beyond the tolerance.
    """
    if how := mismatch(result, tolerance):
        raise ParityError(
            f"The merged graph {how}: it was exported from another base, or computes something else; nothing was written."
        )
    return {
        "passed": True,
        "precision": precision,
        "tolerance": tolerance.model_dump(),
        "shapes": shapes,
        "onnx": result.model_dump(),
    }


def _run_both(
    graph: Path, base: Path, adapter: Adapter, task: Task, *, allow_base_mismatch: bool
) -> tuple[list[Arrays], list[np.ndarray], list[np.ndarray]]:
    """Return sample batches, and PyTorch's and the graph's output for each."""
    session = create_session(graph)
    processor = task.inputs.load_processor(base)
    names = tuple(item.name for item in session.get_inputs())
    preprocessor = Preprocessor(task, processor, max_length([adapter], processor, task), names)
    batches = make_sample_batches(preprocessor, sample_inputs(preprocessor, None, [adapter.input_form]))
    adapted, _ = load_adapted(base, Path(adapter.source), allow_base_mismatch=allow_base_mismatch)
    expected = finite_outputs(adapted, batches, task.outputs, what="the adapter")
    pair = task.outputs.graph_outputs
    if pair is not None and set(pair) <= {item.name for item in session.get_outputs()}:
        halves = [graph_logits(session, name) for name in pair]
        return (
            batches,
            expected,
            [np.stack([np.asarray(half(batch), np.float32) for half in halves], -1) for batch in batches],
        )
    output = score_output(load_model(graph), expected[0].shape[-1], axes=task.outputs.axes)
    outputs = graph_logits(session, None if output is None else output.name)
    return batches, expected, [np.asarray(outputs(batch), np.float32) for batch in batches]


def _check_loads(graph: Path) -> None:
    try:
        create_session(graph)
    except InputError as error:
        reason = str(error).replace(str(graph), graph.name).rstrip(".")
        raise ParityError(
            f"The merged graph is of no use here: {reason}. Nothing was written; if other software loads it, pass --no-verify."
        ) from None


def _unverified(reason: str) -> dict[str, Any]:
    return {"passed": None, "reason": reason}


def _is_half(graph: Path) -> bool:
    return any(value.dtype == ir.DataType.FLOAT16 for value in load_model(graph).graph.initializers.values())
