"""Exporting one adapter inside the weights of its base."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import ConfigError
from rmlora.storage import atomic_directory
from rmlora.tasks import Task
from rmlora_deploy.bundles.bundle import MODEL_FILE, REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.choose_pooling import choose_pooling
from rmlora_deploy.bundles.describe import (
    describe_adapter,
    describe_base,
    describe_files,
    describe_model,
    describe_tools,
)
from rmlora_deploy.bundles.manifest import Manifest, Optimization
from rmlora_deploy.bundles.processor import common_processor, max_length, write_side_files
from rmlora_deploy.bundles.reference import save_reference
from rmlora_deploy.bundles.sources import note_adapter_directory, note_base_directory
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.precision import lower_precision
from rmlora_deploy.verification.evaluation import read_evaluation
from rmlora_deploy.verification.torch_pair import TorchPair
from rmlora_deploy.verification.verify_merged import raise_on_mismatch, verify_bundle

__all__ = ["export_merged"]


def export_merged(settings: ExportSettings, *, on_progress: Callable[[str], None]) -> Bundle:
    """Export, lower the precision, verify, and write; arguments and errors as those of ``export_bundle``."""
    from rmlora.adapter_task import task_of
    from rmlora.torch_models import load_adapted

    if len(settings.adapters) != 1:
        raise ConfigError(
            f"--mode merged takes one --adapter, not {len(settings.adapters)}: use --mode branches, or add them up with  "
            "rmlora-deploy mix."
        )
    if settings.graph is not None:
        raise ConfigError("--onnx goes with --mode branches; merge into a graph with  rmlora-deploy merge --onnx.")
    started = time.monotonic()
    ((name, path),) = settings.adapters.items()
    on_progress("loading base and adapter")
    base = resolve_base(settings.base, revision=settings.revision)
    adapted, adapter = load_adapted(base, path, task=settings.task, allow_base_mismatch=settings.allow_base_mismatch)
    task = task_of(adapter, settings.task)
    labels = task.outputs.labels_of(adapter)
    data = settings.data.get(name)
    evaluation = read_evaluation(data, settings.columns, task=task, labels=labels) if data else None
    processor = common_processor(base, [adapter], task)
    length = max_length([adapter], processor, task, base)
    pooling = choose_pooling(
        task, base, {name: adapter}, processor, mode=settings.pooling, normalize=settings.normalize
    )
    pair = TorchPair.of(adapted, task.outputs, pooling.pooling if pooling is not None else None)
    with atomic_directory(settings.output, overwrite=settings.overwrite) as directory:
        write_side_files(directory, base, pair.merged.config.to_dict(), processor)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            made = _make_graph(settings, task, pair, processor, length, directory, Path(scratch), on_progress)
        manifest = Manifest(
            **describe_tools(),
            mode="merged",
            task=task.name,
            labels=labels,
            pooling=pooling,
            max_length=length,
            base=describe_base(settings.base, settings.revision, Checkpoint(base), adapter.modules),
            adapter=describe_adapter(adapter),
            **made,
            files=describe_files(directory),
            verification=None,
        )
        bundle = Bundle(directory, manifest)
        if settings.verify:
            on_progress("verifying against PyTorch and PEFT")
            manifest.verification = report = verify_bundle(bundle, bundle.preprocessor(), pair, evaluation=evaluation)
            raise_on_mismatch(report, bundle.precision)
        manifest.seconds = round(time.monotonic() - started, 1)
        bundle.save_manifest()
        note_base_directory(manifest, base)
        note_adapter_directory(manifest, bundle.merged_adapter, path)
    return Bundle.open(settings.output, check_files=False)


def _make_graph(
    settings: ExportSettings, task: Task, pair: TorchPair, processor: Any, length: int | None, directory: Path,
    scratch: Path, on_progress: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Write the model files into ``directory`` and return the manifest's part about them."""
    from rmlora_converters.graph.files.model_file import save_model
    from rmlora_deploy.exporter.trace import trace_graph
    from rmlora_deploy.verification.layers import confirmed_layers

    traced = trace_graph(
        pair.merged, processor, task, max_length=length, exporter=settings.exporter, opset=settings.opset,
        scratch=scratch, on_progress=on_progress, pooling=pair.pooling,
    )  # fmt: skip
    graph, batches = traced.optimized, traced.batches
    layers = confirmed_layers(graph.model, pair.merged, batches, scratch)
    if settings.precision == "fp32":
        save_model(graph.model, directory / MODEL_FILE)
    else:
        on_progress(f"lowering to {settings.precision}")
        save_model(graph.model, scratch / "fp32.onnx")
        lower_precision(scratch / "fp32.onnx", directory / MODEL_FILE, settings.precision)
    save_reference(directory / REFERENCE_FILE, batches, [pair.output(batch) for batch in batches])
    return {
        "precision": settings.precision,
        "exporter": settings.exporter,
        "optimization": Optimization(level=graph.level, reason=graph.reason),
        "model": describe_model(directory),
        "layers": layers,
    }
