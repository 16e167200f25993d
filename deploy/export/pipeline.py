"""One export: base and adapter in, a verified bundle out."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import MODEL_FILE, REFERENCE_FILE, Bundle
from deploy.export.manifest import describe_files, describe_model, describe_sources
from deploy.export.precision import Precision, lower_precision
from deploy.preprocess import Preprocessor
from deploy.verify.cases import make_cases, sample_inputs, save_reference
from deploy.verify.evaluation import EvaluationData, read_evaluation
from deploy.verify.run import raise_on_departure, verify_bundle
from deploy.verify.sources import TorchPair, torch_logits
from rmlora.adapter import Adapter
from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import ParityError, require
from rmlora.storage import atomic_directory, refuse_existing, write_json
from rmlora.tasks import Task, get_task
from rmlora.training.data import Columns

__all__ = ["ExportSettings", "export_bundle"]


@dataclass(frozen=True)
class ExportSettings:
    """What to export and how."""

    base: str
    adapter: Path
    output: Path
    precision: Precision = "fp32"
    exporter: str = "torch"
    opset: int | None = None
    task: str | None = None
    data: str | None = None
    columns: Columns = field(default_factory=Columns)
    verify: bool = True
    overwrite: bool = False
    allow_base_mismatch: bool = False
    revision: str | None = None


def export_bundle(settings: ExportSettings, *, note: Callable[[str], None]) -> Bundle:
    """Export, lower the precision, verify, and write the bundle; nothing is left when a step fails.

    Args:
        settings: the export.
        note: called with a line before every step.

    Raises:
        InputError: base, adapter or data cannot be used, or the model cannot be exported.
        ParityError: the graph departs from PyTorch by more than its precision explains.
        DependencyError: a package of the extra ``export`` is missing.
        OutputError: the bundle cannot be written.
    """
    for module in ("torch", "transformers", "peft"):
        require(module, "export")
    require("onnxruntime", "cpu")
    from rmlora.models import adapter_labels, load_adapted

    refuse_existing(settings.output, overwrite=settings.overwrite)
    started = time.monotonic()
    note("loading base and adapter")
    base = resolve_base(settings.base, revision=settings.revision)
    adapted, adapter = load_adapted(
        base, settings.adapter, task=settings.task, allow_base_mismatch=settings.allow_base_mismatch
    )
    task = get_task(settings.task or adapter.task or "text-classification")
    labels = adapter_labels(adapter)
    evaluation = (
        read_evaluation(settings.data, settings.columns, task=task.name, labels=labels) if settings.data else None
    )
    pair = TorchPair.of(adapted)
    with atomic_directory(settings.output, overwrite=settings.overwrite) as directory:
        _copy_processor(base, settings.adapter, task, pair.merged, directory)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            made = _make_graph(settings, task, pair, directory, Path(scratch), adapter, note)
        sources = describe_sources(
            base=settings.base,
            revision=settings.revision,
            checkpoint=Checkpoint(base),
            adapter=adapter,
            labels=labels,
        )
        bundle = Bundle(directory, {**sources, **made, "files": describe_files(directory)})
        bundle.manifest["seconds"] = round(time.monotonic() - started, 1)
        bundle.manifest["verification"] = _prove(bundle, pair, evaluation, note) if settings.verify else None
        bundle.save_manifest()
    return Bundle.open(settings.output, check_files=False)


def _make_graph(
    settings: ExportSettings, task: Task, pair: TorchPair, directory: Path, scratch: Path, adapter: Adapter,
    note: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Write the model files into ``directory`` and return the manifest's part about them."""
    from converters.graph.file import save_model
    from deploy.export.inputs import trace_inputs
    from deploy.export.layers import confirmed_layers
    from deploy.export.optimise import optimise
    from deploy.export.torch_export import DEFAULT_OPSET, OUTPUT_NAME, export_torch
    from rmlora.models import load_processor

    processor = load_processor(directory, task)
    inputs = trace_inputs(task, pair.merged.config, processor)
    opset = settings.opset or DEFAULT_OPSET
    if settings.exporter == "optimum":
        from deploy.export.optimum_export import export_optimum

        note("exporting with Optimum")
        graph = export_optimum(pair.merged, processor, task, opset=opset)
    else:
        note("exporting with torch.onnx")
        graph = export_torch(pair.merged, inputs, opset=opset)
    names = [value.name or "" for value in graph.graph.inputs]
    max_length = _max_length(adapter, processor, task)
    preprocessor = Preprocessor(task, processor, max_length, tuple(names))
    cases = make_cases(preprocessor, sample_inputs(preprocessor, None))
    note("optimising for ONNX Runtime")
    best = optimise(graph, cases, scratch)
    layers = confirmed_layers(best.model, pair.merged, cases, scratch)
    if settings.precision == "fp32":
        save_model(best.model, directory / MODEL_FILE)
    else:
        note(f"lowering to {settings.precision}")
        save_model(best.model, scratch / "fp32.onnx")
        lower_precision(scratch / "fp32.onnx", directory / MODEL_FILE, settings.precision, output=OUTPUT_NAME)
    save_reference(directory / REFERENCE_FILE, cases, [torch_logits(pair.adapted, case) for case in cases])
    return {
        "mode": "merged",
        "task": task.name,
        "precision": settings.precision,
        "max_length": max_length,
        "exporter": settings.exporter,
        "optimisation": {"level": best.level, "reason": best.reason},
        "model": describe_model(directory),
        "layers": layers,
    }


def _prove(
    bundle: Bundle, pair: TorchPair, evaluation: EvaluationData | None, note: Callable[[str], None]
) -> dict[str, Any]:
    """Verify the new bundle and return the report."""
    note("verifying against PyTorch and PEFT")
    report = verify_bundle(bundle, bundle.preprocessor(), pair, evaluation=evaluation)
    try:
        raise_on_departure(report, bundle.precision)
    except ParityError as error:
        raise ParityError(f"{error} No bundle was written.") from None
    return report


def _copy_processor(base: Path, adapter: Path, task: Task, model: Any, directory: Path) -> None:
    """Save tokenizer or image processor (the adapter's own where it has one) and the configuration."""
    from rmlora.models import load_processor

    own = (adapter / "preprocessor_config.json").is_file() or (adapter / "tokenizer.json").is_file()
    load_processor(adapter if own else base, task).save_pretrained(directory)
    config = model.config.to_dict()
    config.pop("_name_or_path", None)
    write_json(directory / "config.json", _jsonable(config))
    for name in ("LICENSE", "LICENSE.txt"):
        if (base / name).is_file():
            shutil.copyfile(base / name, directory / name)


def _max_length(adapter: Adapter, processor: Any, task: Task) -> int | None:
    if task.modality == "image":
        return None
    trained = (adapter.metadata.get("training") or {}).get("settings", {}).get("max_length")
    limit = getattr(processor, "model_max_length", None)
    return int(trained) if trained else int(limit) if limit and limit < 100_000 else 512


def _jsonable(value: Any) -> Any:
    """Return configuration values as JSON types; torch types become their names."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value).removeprefix("torch.")
