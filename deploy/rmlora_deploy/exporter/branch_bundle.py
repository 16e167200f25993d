"""Exporting a base with side-branches, and adapters beside it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rmlora.adapter import Adapter
from rmlora.adapter_task import drop_unused_modules, task_of
from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, ConfigError
from rmlora.fingerprint import check_base, weight_digests
from rmlora.package import load_package
from rmlora.pooling import Pooling
from rmlora.storage import atomic_directory
from rmlora.tasks import Task
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.locate.targets import find_targets
from rmlora_converters.graph.passes.insert_branches import check_lora_inputs, insert_branches
from rmlora_converters.graph.passes.open_attention import open_attention_per_projection
from rmlora_converters.graph.passes.pooling import insert_pooling
from rmlora_deploy.bundles.adapters import check_name, store_reference, write_entry
from rmlora_deploy.bundles.bundle import MODEL_FILE, REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.choose_pooling import choose_pooling
from rmlora_deploy.bundles.convert_adapter import TryOut, convert_adapter
from rmlora_deploy.bundles.describe import describe_base, describe_files, describe_model, describe_tools
from rmlora_deploy.bundles.manifest import AdapterEntry, Manifest, Optimization
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.bundles.processor import common_processor, max_length, write_side_files
from rmlora_deploy.bundles.reference import save_reference
from rmlora_deploy.bundles.sources import note_adapter_directory, note_base_directory
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.precision import Precision, found_precision, lower_precision
from rmlora_deploy.runtime.outputs import Arrays, graph_logits
from rmlora_deploy.runtime.providers import create_session
from rmlora_deploy.verification.evaluation import read_evaluation
from rmlora_deploy.verification.sample_batches import make_sample_batches, sample_inputs
from rmlora_deploy.verification.torch_pair import TorchPair, torch_is_installed
from rmlora_deploy.verification.verify_branches import raise_on_branch_mismatch, verify_branches

__all__ = ["export_branches"]

_SEED = 0
"""Of the head that a base without one is given; no answer ever comes from it."""


@dataclass(frozen=True)
class _Base:
    """The base as a graph, before anything is inserted."""

    model: ir.Model
    batches: list[Arrays]
    labels: list[str]
    """Of the base's own head; empty where it has none."""
    facts: dict[str, Any]
    """The manifest's part about how it was made."""
    precision: Precision = "fp32"
    """What it has already."""


def export_branches(settings: ExportSettings, *, on_progress: Callable[[str], None]) -> Bundle:
    """Export the base, insert branches, add the adapters, verify; arguments and errors as those of ``export_bundle``."""
    started = time.monotonic()
    on_progress("loading adapters")
    for name in settings.adapters:
        check_name(name)
    base = resolve_base(settings.base, revision=settings.revision)
    checkpoint = Checkpoint(base)
    adapters = {name: load_package(path) for name, path in settings.adapters.items()}
    for adapter in adapters.values():
        check_base(adapter, checkpoint, allow_mismatch=settings.allow_base_mismatch)
    task = _task(settings, adapters)
    evaluations = {
        name: read_evaluation(data, settings.columns, task=task, labels=task.outputs.labels_of(adapters[name]))
        for name, data in settings.data.items()
    }
    adapters = {name: drop_unused_modules(adapter, task) for name, adapter in adapters.items()}
    for name, adapter in adapters.items():
        task.outputs.check_switchable(adapter, name)
    processor = common_processor(base, list(adapters.values()), task)
    length = max_length(list(adapters.values()), processor, task, base)
    chosen = choose_pooling(task, base, adapters, processor, mode=settings.pooling, normalize=settings.normalize)
    pooling = chosen.pooling if chosen is not None else None
    modules = sorted({path for adapter in adapters.values() for path in adapter.modules})
    with atomic_directory(settings.output, overwrite=settings.overwrite) as directory:
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            if settings.graph is not None:
                on_progress(f"reading {settings.graph}")
                made = _given(settings, settings.graph, checkpoint, Preprocessor(task, processor, length, ()), pooling)
            else:
                made = _traced(settings, base, task, processor, length, Path(scratch), on_progress, pooling)
            write_side_files(directory, base, checkpoint.config, processor)
            on_progress("inserting branches")
            plain = _insert(made, list(adapters.values()), checkpoint, modules, settings, directory, Path(scratch))
        save_reference(directory / REFERENCE_FILE, made.batches, plain)
        manifest = Manifest(
            **describe_tools(),
            mode="branches",
            task=task.name,
            labels=made.labels,
            pooling=chosen,
            max_length=length,
            precision=made.precision if made.precision != "fp32" else settings.precision,
            base=describe_base(settings.base, settings.revision, checkpoint, modules),
            adapters={},
            **made.facts,
            model=describe_model(directory),
            files=describe_files(directory),
            verification=None,
        )
        bundle = Bundle(directory, manifest)
        on_progress("converting adapters")
        manifest.adapters = _convert(bundle, adapters, allow_base_mismatch=settings.allow_base_mismatch)
        if settings.verify and torch_is_installed():
            on_progress("verifying against PyTorch and PEFT")
            report, expected = verify_branches(
                bundle, lambda name: _pair(base, settings.adapters[name], task, pooling), evaluations=evaluations
            )
            raise_on_branch_mismatch(report, bundle.precision)
            store_reference(bundle, expected)
            manifest.verification = report
        manifest.seconds = round(time.monotonic() - started, 1)
        bundle.save_manifest()
        note_base_directory(manifest, base)
        for name, entry in bundle.adapters.items():
            note_adapter_directory(manifest, entry, settings.adapters[name])
    return Bundle.open(settings.output, check_files=False)


def _convert(bundle: Bundle, adapters: Mapping[str, Adapter], *, allow_base_mismatch: bool) -> dict[str, AdapterEntry]:
    """Write what the graph takes for every adapter; the graph is opened once for all of them."""
    session = bundle.adapter_session()
    try_out = TryOut.of(bundle, session)
    return {
        name: write_entry(
            bundle.path,
            name,
            convert_adapter(
                adapter, session.lora_inputs, session.input_types, name=name, task=bundle.task,
                pooling=bundle.manifest.pooling, max_length=bundle.manifest.max_length, try_out=try_out,
                allow_base_mismatch=allow_base_mismatch,
            ),
        )
        for name, adapter in adapters.items()
    }  # fmt: skip


def _pair(base: Path, adapter: Path, task: Task, pooling: Pooling | None) -> TorchPair:
    from rmlora.torch_models import load_adapted

    adapted, _ = load_adapted(base, adapter, task=task.name, allow_base_mismatch=True)
    return TorchPair.of(adapted, task.outputs, pooling)


def _task(settings: ExportSettings, adapters: Mapping[str, Adapter]) -> Task:
    """Return the one task of all adapters.

    Raises:
        ConfigError: there are no adapters, or one does not say what it is for.
        AdapterError: they are for different tasks.
    """
    if not adapters:
        raise ConfigError(
            "--mode branches needs at least one --adapter NAME=PATH: they say which modules get branches."
        )
    (first, task), *others = ((name, task_of(adapter, settings.task)) for name, adapter in adapters.items())
    for name, other in others:
        if other != task:
            raise AdapterError(
                f"'{first}' is for {task.name} and '{name}' for {other.name}: export them into bundles of their own."
            )
    return task


def _traced(
    settings: ExportSettings, base: Path, task: Task, processor: Any, length: int | None, scratch: Path,
    on_progress: Callable[[str], None], pooling: Pooling | None,
) -> _Base:  # fmt: skip
    """Export the base through PyTorch, with its own head or, where it has none, one that the adapters replace."""
    import torch

    from rmlora.torch_models import load_task_model
    from rmlora_deploy.exporter.trace import trace_graph

    on_progress("loading the base")
    torch.manual_seed(_SEED)
    own = task.outputs.labels_in(Checkpoint(base).config)
    loaded = load_task_model(base, task, own or ["0", "1"])
    traced = trace_graph(
        loaded.model.eval(), processor, task, max_length=length, exporter=settings.exporter, opset=settings.opset,
        scratch=scratch, on_progress=on_progress, pooling=pooling,
    )  # fmt: skip
    facts = {
        "exporter": settings.exporter,
        "optimization": Optimization(level=traced.optimized.level, reason=traced.optimized.reason),
    }
    return _Base(traced.optimized.model, traced.batches, [] if loaded.new_modules else own, facts)


def _given(
    settings: ExportSettings, graph: Path, checkpoint: Checkpoint, preprocessor: Preprocessor, pooling: Pooling | None
) -> _Base:
    """Take the user's own export of the base; one that is quantized stays as it is."""
    model = load_model(graph)
    if pooling is not None:
        insert_pooling(model, pooling)
    names = tuple(str(value.name) for value in model.graph.inputs if value.name not in model.graph.initializers)
    preprocessor = replace(preprocessor, input_names=names)
    batches = make_sample_batches(preprocessor, sample_inputs(preprocessor, None))
    facts = {"exporter": "given", "optimization": Optimization(level="as given")}
    quantized = found_precision(model)
    if quantized != "fp32" and settings.precision not in ("fp32", quantized):
        raise ConfigError(f"{graph} is {quantized} already: give the float32 graph, or leave --precision out.")
    return _Base(model, batches, preprocessor.task.outputs.labels_in(checkpoint.config), facts, quantized)


def _insert(
    base: _Base, adapters: Sequence[Adapter], checkpoint: Checkpoint, modules: Sequence[str], settings: ExportSettings,
    directory: Path, scratch: Path,
) -> list[np.ndarray]:  # fmt: skip
    """Write the graph with branches into ``directory`` and return what the one without them answers.

    fp16 converts before branches come, since their inputs are to be of that type; int8 and int4 after, since the
    quantizers keep branches in floating point by their names.
    """
    model = base.model
    precision = settings.precision if base.precision == "fp32" else "fp32"  # else there is nothing left to lower
    open_attention_per_projection(model)
    places = find_targets(model, adapters, checkpoint)
    save_model(model, scratch / "fp32.onnx")
    plain = scratch / "fp32.onnx"
    if precision != "fp32":
        lower_precision(plain, scratch / "plain.onnx", precision)
        plain = scratch / "plain.onnx"
    if precision == "fp16":
        model = load_model(plain)
    lora_inputs = insert_branches(model, places, base_weights=weight_digests(checkpoint, modules))
    if precision in ("fp32", "fp16"):
        save_model(model, directory / MODEL_FILE)
    else:
        save_model(model, scratch / "branches.onnx")
        lower_precision(scratch / "branches.onnx", directory / MODEL_FILE, precision)
    written = load_model(directory / MODEL_FILE)
    check_lora_inputs(written, lora_inputs)
    if not set(lora_inputs.to_props().items()) <= set(written.metadata_props.items()):
        raise AdapterError("The slots' description did not survive in the graph: please report this as a bug.")
    logits = graph_logits(create_session(plain))
    return [logits(batch) for batch in base.batches]
