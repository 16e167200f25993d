"""Writes what the GenAI builder would, for language models that it does not know: graph, ``genai_config.json``, tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rmlora.checkpoint import Checkpoint
from rmlora.tasks import Task
from rmlora_converters.graph.files.model_file import save_model
from rmlora_deploy.bundles.bundle import MODEL_FILE
from rmlora_deploy.bundles.manifest import Precision
from rmlora_deploy.exporter.decoder.block_products import quantize_in_blocks
from rmlora_deploy.exporter.decoder.trace_decoder import cache_shape, trace_decoder
from rmlora_deploy.exporter.decoder.traced_files import write_traced_files

__all__ = ["trace_model"]


def trace_model(
    checkpoint: Path,
    output: Path,
    precision: Precision,
    *,
    task: Task,
    on_progress: Callable[[str], None],
    trust_remote_code: bool = False,
) -> None:
    """Trace the model in ``checkpoint`` with torch.onnx, and write it to ``output``.

    Args:
        checkpoint: directory with ``config.json``, safetensors and tokenizer.
        output: directory to create.
        precision: of the weights.
        task: that the model is loaded for.
        on_progress: called with a line before every step.
        trust_remote_code: run code that comes with the model.

    Raises:
        CheckpointError: transformers cannot load the model, or it keeps something else than keys and values.
        InputError: torch.onnx cannot trace it.
    """
    import torch

    from rmlora.torch_models import load_task_model

    dtype = torch.float16 if precision == "fp16" else torch.float32
    model = load_task_model(checkpoint, task, (), trust_remote_code=trust_remote_code, dtype=dtype).model.eval()
    shape = cache_shape(model)
    graph = trace_decoder(model, shape)
    output.mkdir()
    if precision in ("int8", "int4"):
        on_progress(f"rounding the weights to {precision}")
        graph = quantize_in_blocks(graph, 8 if precision == "int8" else 4)
    save_model(graph, output / MODEL_FILE)
    write_traced_files(output, Checkpoint(checkpoint), graph, shape, model.config)
