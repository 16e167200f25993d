"""Exporting through Optimum's ONNX exporter, if it is installed."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.errors import DependencyError, InputError, is_installed
from rmlora.processors import save_processor
from rmlora.quiet import quiet_transformers
from rmlora.tasks import Task

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["export_optimum"]


def export_optimum(model: Any, processor: Any, task: Task, *, opset: int, trust_remote_code: bool) -> ir.Model:
    """Return the graph that Optimum exports for ``model``.

    Args:
        model: PyTorch model, adapter merged.
        processor: its tokenizer or image processor, which Optimum reads from the model's directory.
        task: to export for.
        opset: ONNX operator set.
        trust_remote_code: run code that comes with the model.

    Raises:
        DependencyError: optimum-onnx is not installed.
        InputError: Optimum cannot export the model.
    """
    if not is_installed("optimum.exporters.onnx"):
        raise DependencyError(
            "--exporter optimum needs the package optimum-onnx, which pins transformers below 4.58: install it in a "
            "separate environment (pip install optimum-onnx), or use --exporter torch."
        )
    import onnx_ir as ir
    from optimum.exporters.onnx import main_export

    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory) / "merged", Path(directory) / "onnx"
        model.save_pretrained(source)
        save_processor(processor, source, source="the base")
        try:
            with quiet_transformers(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer warns about every constant; verification decides
                main_export(
                    str(source),
                    output=target,
                    task=task.name,
                    opset=opset,
                    do_validation=False,
                    library_name="transformers",
                    trust_remote_code=trust_remote_code,
                )
        except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            raise InputError(f"Optimum cannot export {type(model).__name__}: {str(error).splitlines()[0]}") from error
        graph = ir.load(target / "model.onnx")
        ir.external_data.load_to_model(graph)  # its files are deleted with the directory
        return graph
