"""Exporting one adapter, merged into the weights of its base."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import ConfigError
from rmlora.package import load_package
from rmlora.renamed_modules import in_memory_names
from rmlora.storage import atomic_directory
from rmlora.stored_weights import stored_weights
from rmlora_converters.delta import check_updates
from rmlora_deploy.bundles.bundle import MODEL_FILE, REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.describe import describe_adapter
from rmlora_deploy.bundles.manifest import Manifest, Optimization
from rmlora_deploy.bundles.processor import write_side_files
from rmlora_deploy.bundles.reference import save_reference
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.fit_length import fit_length
from rmlora_deploy.exporter.int8 import save_in_int8
from rmlora_deploy.exporter.plan import ExportPlan, complete_bundle, make_plan
from rmlora_deploy.exporter.precision import save_in_precision
from rmlora_deploy.verification.torch_pair import TorchPair
from rmlora_deploy.verification.verify_merged_bundle import (
    raise_on_mismatch,
    stored_inputs_error,
    verify_bundle,
)

__all__ = ["export_merged"]


def export_merged(settings: ExportSettings, *, on_progress: Callable[[str], None]) -> Bundle:
    """Trace the merged model, lower its precision, verify it, and write the bundle.

    Arguments and errors as those of :func:`rmlora_deploy.exporter.pipeline.export_bundle`.
    """
    if len(settings.adapters) != 1:
        raise ConfigError(
            f"--mode merged takes one --adapter, not {len(settings.adapters)}: use --mode branches, or add them up with  "
            "rmlora-deploy mix."
        )
    if settings.graph is not None:
        raise ConfigError("--onnx goes with --mode branches; merge into a graph with  rmlora-deploy merge --onnx.")
    started = time.monotonic()
    on_progress("loading base and adapter")
    plan, pair = _load(settings, on_progress)
    ((name, adapter),) = plan.adapters.items()
    with atomic_directory(settings.output, overwrite=settings.overwrite) as directory:
        write_side_files(directory, plan.base, pair.merged.config.to_dict(), plan.processor)
        graph_fields = _write_graph(plan, pair, directory)
        manifest = Manifest(
            **plan.manifest_fields(directory, adapter.modules, adapter.labels or [], adapter.problem_type),
            **graph_fields,
            adapter=describe_adapter(adapter),
        )
        bundle = Bundle(directory, manifest, settings.trust_remote_code)
        fit_length(bundle, [adapter])
        if settings.verify:
            on_progress("verifying against PyTorch and PEFT")
            evaluation = plan.evaluations.get(name)
            manifest.verification = report = verify_bundle(
                bundle, bundle.preprocessor(), pair, evaluation=evaluation, samples=plan.calibration_inputs
            )
            raise_on_mismatch(report, bundle.precision)
            if manifest.quantization is not None and (evaluation is not None or plan.calibration_inputs):
                manifest.quantization.stored_inputs_error = stored_inputs_error(bundle)
        complete_bundle(bundle, plan, {name: bundle.merged_adapter}, started)
    return Bundle.open(settings.output, check_files=False)


def _load(settings: ExportSettings, on_progress: Callable[[str], None]) -> tuple[ExportPlan, TorchPair]:
    """Return the plan of the export and PyTorch's models of the adapter."""
    from rmlora.torch_models import load_adapted

    ((name, path),) = settings.adapters.items()
    base = resolve_base(settings.base, revision=settings.revision)
    read = load_package(path)
    checkpoint = Checkpoint(base)
    weights = stored_weights(checkpoint, read)
    check_updates(in_memory_names(read, weights).modules.values(), weights)
    adapted, adapter = load_adapted(
        base, path, task=settings.task, labels=settings.labels, allow_base_mismatch=settings.allow_base_mismatch,
        trust_remote_code=settings.trust_remote_code,
    )  # fmt: skip
    stored_weights(checkpoint, adapter)  # from here on, its parameters have the names of the adapter's model
    plan = make_plan(settings, checkpoint, {name: adapter}, on_progress)
    return plan, TorchPair.of(adapted, plan.task.outputs, plan.pooling)


def _write_graph(plan: ExportPlan, pair: TorchPair, directory: Path) -> dict[str, Any]:
    """Write the graph and its reference outputs into ``directory``; return the manifest's fields about the graph."""
    from rmlora_deploy.exporter.trace import trace_graph
    from rmlora_deploy.verification.layers import confirmed_layers

    precision = plan.settings.precision
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        scratch = Path(temporary)
        traced = trace_graph(pair.merged, plan, scratch=scratch)
        graph, batches = traced.optimized, traced.batches
        layers = confirmed_layers(graph.model, pair.merged, batches, scratch)
        if precision != "fp32":
            plan.on_progress(f"lowering to {precision}")
        quantization = None
        if precision == "int8":
            data, bits = plan.calibration(graph.model), plan.settings.int8_bits or 8
            quantization = save_in_int8(
                graph.model, directory / MODEL_FILE, data, samples=plan.samples(graph.model), scratch=scratch, bits=bits
            )
        else:
            save_in_precision(graph.model, directory / MODEL_FILE, precision, scratch=scratch)
    save_reference(directory / REFERENCE_FILE, batches, [pair.output(batch) for batch in batches])
    return {
        "precision": precision,
        "quantization": quantization,
        "exporter": plan.settings.exporter,
        "optimization": Optimization(level=graph.level, reason=graph.reason),
        "layers": layers,
    }
