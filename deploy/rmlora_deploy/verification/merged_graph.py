"""Verifying a graph that an adapter was merged into, wherever the graph came from: against PyTorch with PEFT's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rmlora.adapter import Adapter
from rmlora.adapter_task import task_of
from rmlora.errors import ConfigError, ParityError, RMLoRAError, is_installed
from rmlora.torch_models import load_adapted
from rmlora_converters.graph.files.model_file import load_model
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.bundles.processor import max_length
from rmlora_deploy.runtime.outputs import graph_logits
from rmlora_deploy.runtime.providers import create_session
from rmlora_deploy.verification.compare import TOLERANCES, compare, mismatch
from rmlora_deploy.verification.sample_batches import make_sample_batches, sample_inputs
from rmlora_deploy.verification.torch_outputs import finite_outputs
from rmlora_deploy.verification.torch_pair import torch_is_installed

__all__ = ["verify_merged_graph"]


def verify_merged_graph(
    graph: Path, base: Path, adapter: Adapter, *, allow_base_mismatch: bool = False
) -> dict[str, Any]:
    """Run ``graph`` and PyTorch on the same inputs and return the report.

    Args:
        graph: an ONNX file with ``adapter`` in its weights.
        base: checkpoint that the graph was exported from.
        adapter: what was merged.
        allow_base_mismatch: compare although the adapter names another base.

    Returns:
        ``passed``, ``precision``, ``tolerance``, ``shapes`` and ``onnx`` (a comparison); or ``passed`` None and the
        ``reason`` where there is nothing to compare with.

    Raises:
        ParityError: the graph departs from PyTorch by more than its precision explains.
    """
    if not torch_is_installed():
        return _unverified("PyTorch and PEFT are not installed here")
    if not is_installed("onnxruntime"):
        return _unverified("onnxruntime is not installed here")
    try:
        task = task_of(adapter)
        if not task.outputs.has_labels:
            return _unverified(
                f"a graph for {task.name} gives what its exporter chose; export a bundle to have it compared"
            )
    except ConfigError:
        return _unverified("the adapter does not say which task it is for")
    try:
        session = create_session(graph)
        processor = task.inputs.load_processor(base)
        preprocessor = Preprocessor(
            task, processor, max_length([adapter], processor, task), tuple(item.name for item in session.get_inputs())
        )
        batches = make_sample_batches(preprocessor, sample_inputs(preprocessor, None))
        adapted, _ = load_adapted(base, Path(adapter.source), allow_base_mismatch=allow_base_mismatch)
        expected = finite_outputs(adapted, batches, task.outputs, what="the adapter")
        answers = graph_logits(session)
        got = [answers(batch) for batch in batches]
    except RMLoRAError as error:
        return _unverified(str(error))
    if wrong := next((b.shape for a, b in zip(expected, got, strict=True) if a.shape != b.shape), None):
        return _unverified(f"the graph's first output has the shape {list(wrong)} and is no classifier's")
    precision = "fp16" if _is_half(graph) else "fp32"
    tolerance = TOLERANCES[precision]
    result = compare(expected, [np.asarray(array, np.float32) for array in got], task.outputs)
    report: dict[str, Any] = {
        "passed": True,
        "precision": precision,
        "tolerance": tolerance.model_dump(),
        "shapes": [list(next(iter(batch.values())).shape) for batch in batches],
        "onnx": result.model_dump(),
    }
    if how := mismatch(result, tolerance):
        raise ParityError(
            f"The merged graph {how}: it was exported from another base, or computes something else; nothing was written."
        )
    return report


def _unverified(reason: str) -> dict[str, Any]:
    return {"passed": None, "reason": reason}


def _is_half(graph: Path) -> bool:
    return any(value.dtype == ir.DataType.FLOAT16 for value in load_model(graph).graph.initializers.values())
