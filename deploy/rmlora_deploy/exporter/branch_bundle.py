"""Exporting a base with side-branches, and adapters that its inputs select row by row."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from rmlora.adapter import Adapter
from rmlora.adapter_task import drop_unused_modules
from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, ConfigError, InputError
from rmlora.fingerprint import check_base, weight_digests, without_copies
from rmlora.inputs import Arrays
from rmlora.package import load_package
from rmlora.renamed_modules import in_memory_names
from rmlora.scoring import problem_type_in
from rmlora.storage import atomic_directory
from rmlora.stored_weights import stored_weights
from rmlora_converters.delta import check_updates
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.files.model_file import load_model
from rmlora_converters.graph.locate.targets import check_adapters, check_nothing_computed, find_targets
from rmlora_converters.graph.passes.adopt import adopt_graph, keep_named_output, keep_output
from rmlora_converters.graph.passes.insert_branches import check_lora_inputs, insert_branches
from rmlora_converters.graph.passes.join_outputs import join_outputs
from rmlora_converters.graph.passes.open_attention import open_attention_per_projection
from rmlora_converters.graph.passes.pooling import insert_pooling
from rmlora_converters.graph.passes.quantize_products import FloatArray
from rmlora_converters.graph.passes.share_weights import share_equal_weights
from rmlora_deploy.bundles.adapters import check_name, store_reference, write_adapter
from rmlora_deploy.bundles.bundle import MODEL_FILE, REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.convert_adapter import TryOut
from rmlora_deploy.bundles.manifest import Manifest, Optimization, Precision
from rmlora_deploy.bundles.processor import write_side_files
from rmlora_deploy.bundles.reference import save_reference
from rmlora_deploy.exporter.calibration import calibrate
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.fit_length import fit_length
from rmlora_deploy.exporter.float_parts import kept_in_float
from rmlora_deploy.exporter.graph_precision import found_precision
from rmlora_deploy.exporter.plan import ExportPlan, complete_bundle, make_plan
from rmlora_deploy.exporter.precision import save_in_precision
from rmlora_deploy.exporter.torch_export import OUTPUT_NAME
from rmlora_deploy.runtime.graph_logits import graph_logits
from rmlora_deploy.runtime.providers import create_session
from rmlora_deploy.verification.check_rows import check_rows
from rmlora_deploy.verification.sample_batches import make_sample_batches, sample_inputs
from rmlora_deploy.verification.torch_pair import TorchPair, torch_is_installed
from rmlora_deploy.verification.verify_branches import raise_on_branch_mismatch, verify_branches

__all__ = ["check_written", "export_branches", "read_adapter"]

_SEED = 0
"""Seed of the head given to a base that has none; adapters replace this head, and no output ever comes from it."""


@dataclass(frozen=True)
class _BaseGraph:
    """The graph of the base before branches are inserted, and the manifest's fields about it."""

    model: ir.Model
    batches: list[Arrays]
    labels: list[str]
    """Labels of the base's own head; empty if it has none."""
    exporter: str
    optimization: Optimization
    precision: Precision = "fp32"
    """Precision of ``model``; other than fp32 only if the user gave a quantized graph."""
    needed: frozenset[str] = frozenset()
    """Parameters that PyTorch's output depends on; not known of a given graph."""
    new_weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Parameter → the weight with which it was exported, if the base has none."""


def export_branches(settings: ExportSettings, *, on_progress: Callable[[str], None]) -> Bundle:
    """Export the base, insert branches, convert the adapters, verify, and write the bundle.

    Arguments and errors as those of :func:`rmlora_deploy.exporter.pipeline.export_bundle`.
    """
    started = time.monotonic()
    on_progress("loading adapters")
    plan = _load(settings, on_progress)
    with atomic_directory(settings.output, overwrite=settings.overwrite) as directory:
        base, modules = _write_graph(plan, directory)
        bundle = Bundle(directory, _manifest(plan, base, modules, directory), settings.trust_remote_code)
        fit_length(bundle, plan.adapters.values())
        on_progress("converting adapters")
        try_out = TryOut.of(bundle)
        bundle.manifest.adapters = {
            name: write_adapter(
                bundle, try_out, name, adapter, allow_base_mismatch=settings.allow_base_mismatch,
                label_names=settings.labels,
            )
            for name, adapter in plan.adapters.items()
        }  # fmt: skip
        compared = settings.verify and torch_is_installed()
        on_progress("trying rows of several adapters")
        check_rows(bundle, compare_merged=not compared)
        if compared:
            on_progress("verifying against PyTorch and PEFT")
            _verify(plan, bundle)
        complete_bundle(bundle, plan, bundle.adapters, started)
    return Bundle.open(settings.output, check_files=False)


def _load(settings: ExportSettings, on_progress: Callable[[str], None]) -> ExportPlan:
    """Return the plan of the export, with adapters that fit the base and can be switched."""
    for name in settings.adapters:
        check_name(name)
    checkpoint = Checkpoint(resolve_base(settings.base, revision=settings.revision))
    adapters = {name: read_adapter(path, checkpoint, settings) for name, path in settings.adapters.items()}
    if not adapters:
        raise ConfigError(
            "--mode branches needs at least one --adapter NAME=PATH: the adapters decide which modules get branches."
        )
    plan = make_plan(settings, checkpoint, adapters, on_progress)
    used = {name: drop_unused_modules(adapter, plan.task, plan.pooling) for name, adapter in plan.adapters.items()}
    for name, adapter in used.items():
        plan.task.outputs.check_switchable(adapter, name)
    check_adapters(list(used.values()))
    return replace(plan, adapters=used)


def read_adapter(path: Path, checkpoint: Checkpoint, settings: ExportSettings) -> Adapter:
    """Return the adapter at ``path``, with the names of the modules in memory and without copies of the base's weights."""
    adapter = load_package(path)
    check_base(adapter, checkpoint, allow_mismatch=settings.allow_base_mismatch)
    weights = stored_weights(checkpoint, adapter)
    adapter = in_memory_names(adapter, weights)
    check_updates(adapter.modules.values(), weights)
    return without_copies(adapter, weight_digests(checkpoint, adapter.modules, adapter))


def _manifest(plan: ExportPlan, base: _BaseGraph, modules: list[str], directory: Path) -> Manifest:
    return Manifest(
        **plan.manifest_fields(directory, modules, base.labels, problem_type_in(plan.checkpoint.config)),
        precision=base.precision if base.precision != "fp32" else plan.settings.precision,
        exporter=base.exporter,
        optimization=base.optimization,
        adapters={},
    )


def _write_graph(plan: ExportPlan, directory: Path) -> tuple[_BaseGraph, list[str]]:
    """Write the graph with branches, its reference outputs and the side files into ``directory``.

    Returns:
        the base's graph, and the paths of the modules that have branches.
    """
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        scratch = Path(temporary)
        base = _trace(plan, scratch) if plan.settings.graph is None else _read_graph(plan, plan.settings.graph)
        write_side_files(directory, plan.base, plan.checkpoint.config, plan.processor)
        plan.on_progress("inserting branches")
        lora_inputs, outputs = _insert_branches(plan, base, directory / MODEL_FILE, scratch)
    save_reference(directory / REFERENCE_FILE, base.batches, outputs)
    return base, sorted(branch.module for branch in lora_inputs.modules)


def _trace(plan: ExportPlan, scratch: Path) -> _BaseGraph:
    """Export the base through PyTorch, with its own head or, if it has none, a random one that adapters replace."""
    import torch

    from rmlora.torch_models import check_complete, load_task_model
    from rmlora_deploy.exporter.trace import trace_graph

    plan.on_progress("loading the base")
    torch.manual_seed(_SEED)
    own = plan.task.outputs.labels_in(plan.checkpoint.config)
    loaded = load_task_model(plan.base, plan.task, own or ["0", "1"], trust_remote_code=plan.settings.trust_remote_code)
    for adapter in plan.adapters.values():
        check_complete(loaded, adapter, plan.task, plan.base)
    traced = trace_graph(loaded.model.eval().requires_grad_(False), plan, scratch=scratch)
    return _BaseGraph(
        traced.optimized.model,
        traced.batches,
        [] if loaded.new_modules else own,
        plan.settings.exporter,
        Optimization(level=traced.optimized.level, reason=traced.optimized.reason),
        needed=traced.parameters,
        new_weights={
            name: value.numpy()
            for name, value in loaded.model.state_dict().items()
            if name.rpartition(".")[0] in loaded.new_modules
        },
    )


def _read_graph(plan: ExportPlan, graph: Path) -> _BaseGraph:
    """Read the user's own export of the base; a quantized one keeps its precision.

    Raises:
        ConfigError: the graph is quantized and the settings ask for another precision.
    """
    plan.on_progress(f"reading {graph}")
    model = load_model(graph)
    labels = plan.task.outputs.labels_in(plan.checkpoint.config)
    adopt_graph(model, source=str(graph))
    name = plan.settings.output_name
    if plan.pooling is not None:
        if name is not None:
            keep_named_output(model, name, source=str(graph))
        insert_pooling(model, plan.pooling, padded=plan.task.inputs.varies_in_length)
    else:
        if plan.task.outputs.graph_outputs is not None and name is None:
            join_outputs(model, plan.task.outputs.graph_outputs, name=OUTPUT_NAME)
        keep_output(model, name=name, labels=len(labels), axes=plan.task.outputs.axes, source=str(graph))
    names = [str(value.name) for value in model.graph.inputs if value.name not in model.graph.initializers]
    if plan.task.inputs.varies_in_length:
        _check_inputs(names, plan.processor, graph)
    preprocessor = plan.preprocessor(names)
    batches = make_sample_batches(preprocessor, sample_inputs(preprocessor, None, plan.input_forms))
    precision = found_precision(model)
    if precision != "fp32" and plan.settings.precision not in ("fp32", precision):
        raise ConfigError(f"{graph} is {precision} already: give the float32 graph, or leave --precision out.")
    return _BaseGraph(model, batches, labels, "given", Optimization(level="as given"), precision)


def _check_inputs(names: Sequence[str], processor: Any, graph: Path) -> None:
    """Raise :class:`InputError` if ``graph`` takes what no tokenizer makes, or cannot tell padding from text.

    PyTorch without a mask computes the same wrong scores, so a comparison would not show it.
    """
    made = {"input_ids", "token_type_ids", *getattr(processor, "model_input_names", ("attention_mask",))}
    if unknown := [name for name in names if name not in made]:
        raise InputError(
            f"{graph} takes '{unknown[0]}', which the base's tokenizer does not make: it makes {', '.join(sorted(made))}. Export "
            "it with inputs of these names alone."
        )
    if "attention_mask" in made and "attention_mask" not in names:
        raise InputError(
            f"{graph} takes no attention_mask, so the answer of a text would depend on the longer texts in its batch: export it "
            "with attention_mask among its inputs."
        )


def _insert_branches(
    plan: ExportPlan, base: _BaseGraph, target: Path, scratch: Path
) -> tuple[LoraInputs, list[np.ndarray]]:
    """Write the graph with branches to ``target``; return its LoRA inputs and the outputs of the graph without them.

    fp16 is applied before branches are inserted, so that their inputs get that type. int8 and int4 are applied after: the
    quantizers recognize branches by name and keep them in floating point.
    """
    model = base.model
    precision = (
        plan.settings.precision if base.precision == "fp32" else "fp32"
    )  # a given quantized graph stays as it is
    open_attention_per_projection(model)
    share_equal_weights(model, plan.checkpoint)
    targets = find_targets(model, list(plan.adapters.values()), plan.checkpoint, base.new_weights)
    check_nothing_computed(targets, base.needed)
    plain = scratch / "plain.onnx"
    bits = plan.settings.int8_bits or 8
    balances: Mapping[str, FloatArray] = {}
    if precision == "int8":
        balances = calibrate(model, plan.samples(model), scratch, skip=kept_in_float(model.graph), bits=bits).balances
    save_in_precision(model, plain, precision, scratch=scratch, bits=bits, balances=balances)
    if precision == "fp16":
        model, precision = load_model(plain), "fp32"
    digests = weight_digests(plan.checkpoint, targets.modules)
    lora_inputs = insert_branches(model, targets, base_weights=digests)
    save_in_precision(model, target, precision, scratch=scratch, bits=bits, balances=balances)
    check_written(target, lora_inputs)
    outputs = graph_logits(create_session(plain, called=plan.settings.graph))
    kind = plan.task.outputs
    return lora_inputs, [kind.padding_zeroed(outputs(batch), batch) for batch in base.batches]


def check_written(graph: Path, lora_inputs: LoraInputs) -> None:
    """Raise :class:`AdapterError` if a pass lost a LoRA input of ``graph``, or their description."""
    written = load_model(graph)
    check_lora_inputs(written, lora_inputs)
    if not set(lora_inputs.to_props().items()) <= set(written.metadata_props.items()):
        raise AdapterError(f"{graph.name} lost the description of its LoRA inputs: please report this as a bug.")


def _verify(plan: ExportPlan, bundle: Bundle) -> None:
    """Compare the bundle with PyTorch and PEFT, and store the report and PyTorch's outputs in it.

    Raises:
        ParityError: the graph differs from PyTorch by more than its precision explains.
    """
    report, expected = verify_branches(bundle, lambda name: _torch_pair(plan, name), evaluations=plan.evaluations)
    raise_on_branch_mismatch(report, bundle.precision)
    store_reference(bundle, expected)
    bundle.manifest.verification = report


def _torch_pair(plan: ExportPlan, name: str) -> TorchPair:
    from rmlora.torch_models import load_adapted

    path = plan.settings.adapters[name]
    adapted, _ = load_adapted(
        plan.base, path, task=plan.task.name, labels=plan.adapters[name].labels, allow_base_mismatch=True,
        trust_remote_code=plan.settings.trust_remote_code,
    )  # fmt: skip
    return TorchPair.of(adapted, plan.task.outputs, plan.pooling)
