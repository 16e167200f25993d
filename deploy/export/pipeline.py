"""One export: base and adapter in, a verified bundle out."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle import BUNDLE_FORMAT_VERSION, MODEL_FILE, REFERENCE_FILE, Bundle
from deploy.export.precision import Precision, lower_precision
from deploy.preprocess import Preprocessor
from deploy.verify.cases import make_cases, sample_inputs, save_reference
from deploy.verify.run import TorchPair, raise_on_departure, read_evaluation, torch_logits, verify_bundle
from rmlora._version import __version__
from rmlora.adapter import Adapter
from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import ParityError, require
from rmlora.fingerprint import base_fingerprint
from rmlora.storage import atomic_directory, refuse_existing, sha256_file, write_json
from rmlora.tasks import Task, get_task
from rmlora.training.data import Columns

__all__ = ["ExportSettings", "export_bundle"]

_TOOLS = ("torch", "transformers", "peft", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "optimum")


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
    from rmlora.models import load_adapted

    refuse_existing(settings.output, overwrite=settings.overwrite)
    started = time.monotonic()
    note("loading base and adapter")
    base = resolve_base(settings.base, revision=settings.revision)
    adapted, adapter = load_adapted(
        base, settings.adapter, task=settings.task, allow_base_mismatch=settings.allow_base_mismatch
    )
    task = get_task(settings.task or adapter.task or "text-classification")
    pair = TorchPair(adapted, copy.deepcopy(adapted).merge_and_unload())
    with atomic_directory(settings.output, overwrite=settings.overwrite) as directory:
        _copy_processor(base, settings.adapter, task, pair.merged, directory)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            made = _make_graph(settings, task, pair, directory, Path(scratch), adapter, note)
        bundle = Bundle(directory, {**made, **_provenance(settings, base, adapter, task)})
        bundle.manifest["seconds"] = round(time.monotonic() - started, 1)
        _prove(settings, bundle, pair, note)
        bundle.save_manifest()
    return Bundle.open(settings.output, check_files=False)


def _make_graph(
    settings: ExportSettings, task: Task, pair: TorchPair, directory: Path, scratch: Path, adapter: Adapter,
    note: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Write the model files into ``directory`` and return the manifest's part about them."""
    from deploy.export.inputs import trace_inputs
    from deploy.export.layers import confirmed_layers
    from deploy.export.optimise import optimise, save_model
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
    layers = confirmed_layers(best.model, pair.merged, cases[-1], scratch) if settings.exporter == "torch" else []
    if settings.precision == "fp32":
        save_model(best.model, directory / MODEL_FILE)
    else:
        note(f"lowering to {settings.precision}")
        save_model(best.model, scratch / "fp32.onnx")
        lower_precision(scratch / "fp32.onnx", directory / MODEL_FILE, settings.precision, output=OUTPUT_NAME)
    save_reference(directory / REFERENCE_FILE, cases, [torch_logits(pair.adapted, case) for case in cases])
    return {
        "max_length": max_length,
        "exporter": settings.exporter,
        "optimisation": {"level": best.level, "reason": best.reason},
        "model": _describe(directory, opset),
        "layers": layers,
    }


def _prove(settings: ExportSettings, bundle: Bundle, pair: TorchPair, note: Callable[[str], None]) -> None:
    """Verify the new bundle and put the report into its manifest."""
    if not settings.verify:
        bundle.manifest["verification"] = None
        return
    note("verifying against PyTorch and PEFT")
    evaluation = read_evaluation(bundle, settings.data, settings.columns) if settings.data else None
    report = verify_bundle(bundle, bundle.preprocessor(), pair, evaluation=evaluation)
    try:
        raise_on_departure(report, settings.precision)
    except ParityError as error:
        raise ParityError(f"{error} No bundle was written.") from None
    bundle.manifest["verification"] = report


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


def _provenance(settings: ExportSettings, base: Path, adapter: Adapter, task: Task) -> dict[str, Any]:
    from rmlora.models import adapter_labels

    return {
        "format_version": BUNDLE_FORMAT_VERSION,
        "created_by": f"rmlora-deploy {__version__}",
        "mode": "merged",
        "task": task.name,
        "precision": settings.precision,
        "labels": adapter_labels(adapter),
        "base": {
            "source": str(Path(settings.base).resolve()) if Path(settings.base).exists() else settings.base,
            "revision": settings.revision,
            "fingerprint": base_fingerprint(Checkpoint(base), adapter.modules),
        },
        "adapter": {
            "source": str(settings.adapter.resolve()),
            "sha256": adapter.metadata.get("tensors_sha256"),
            "modules": len(adapter.modules),
            "parameters": adapter.parameters,
            "rmlora": adapter.metadata.get("rmlora"),
            "metrics": adapter.metadata.get("metrics"),
        },
        "tools": {name: _version(name) for name in _TOOLS},
    }


def _describe(directory: Path, opset: int) -> dict[str, Any]:
    """Return what the manifest says of the model files."""
    import onnx_ir as ir

    from deploy.export.optimise import operator_counts

    graph = ir.load(directory / MODEL_FILE)
    files = [directory / MODEL_FILE, directory / f"{MODEL_FILE}.data"]
    return {
        "files": {path.name: sha256_file(path) for path in files if path.is_file()},
        "bytes": sum(path.stat().st_size for path in files if path.is_file()),
        "opset": graph.opset_imports.get("", opset),
        "operators": operator_counts(graph),
        "inputs": [_signature(value) for value in graph.graph.inputs],
        "outputs": [_signature(value) for value in graph.graph.outputs],
    }


def _signature(value: Any) -> dict[str, Any]:
    shape = [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
    return {"name": value.name, "dtype": value.dtype.name.lower() if value.dtype else None, "shape": shape}


def _max_length(adapter: Adapter, processor: Any, task: Task) -> int | None:
    if task.modality == "image":
        return None
    trained = (adapter.metadata.get("training") or {}).get("settings", {}).get("max_length")
    limit = getattr(processor, "model_max_length", None)
    return int(trained) if trained else int(limit) if limit and limit < 100_000 else 512


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _jsonable(value: Any) -> Any:
    """Return configuration values as JSON types; torch types become their names."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value).removeprefix("torch.")
