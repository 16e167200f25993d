"""Exporting a causal language model: merged, or with branches."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from rmlora.adapter import Adapter
from rmlora.adapter_task import drop_unused_modules
from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.confine import confine_files
from rmlora.errors import AdapterError, ConfigError
from rmlora.fingerprint import check_base, weight_digests
from rmlora.package import load_package
from rmlora.readable import is_readable_file
from rmlora.storage import atomic_directory, sha256_file, write_json
from rmlora.stored_weights import stored_weights
from rmlora.tasks import Task
from rmlora_converters.checkpoint_merge import merge_checkpoint
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.locate.targets import check_adapters, find_targets
from rmlora_converters.graph.passes.insert_branches import insert_branches
from rmlora_converters.graph.passes.logits_start import add_logits_start
from rmlora_converters.graph.passes.pack_products import pack_products
from rmlora_deploy.bundles.adapters import check_name, store_reference, write_adapter
from rmlora_deploy.bundles.bundle import MODEL_FILE, REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.convert_adapter import TryOut
from rmlora_deploy.bundles.describe import describe_adapter
from rmlora_deploy.bundles.manifest import AdapterSource, DecoderEntry, Manifest, Optimization
from rmlora_deploy.bundles.reference import load_reference, save_reference
from rmlora_deploy.bundles.text_codec import TextCodec
from rmlora_deploy.exporter.branch_bundle import check_written, read_adapter
from rmlora_deploy.exporter.decoder.calibrated_blocks import read_texts, round_by_texts
from rmlora_deploy.exporter.decoder.decoder_routes import DecoderRoute, choose_route
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.plan import ExportPlan, common_task, complete_bundle
from rmlora_deploy.runtime.decoder.decoder_layout import DecoderLayout
from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession
from rmlora_deploy.verification.answer_quality import AnswerMeasure, read_answers
from rmlora_deploy.verification.decoder_prompts import decoder_samples
from rmlora_deploy.verification.exchanges import check_columns, read_exchanges
from rmlora_deploy.verification.torch_decoder import TorchDecoder
from rmlora_deploy.verification.verify_decoder import (
    NEW_TOKENS,
    DecoderData,
    last_logits,
    raise_on_text_mismatch,
    reference_case,
    verify_decoder,
)

__all__ = ["export_decoder"]

_STORED_PROMPTS = 4
"""Prompts whose last logits are stored in a bundle."""


@dataclass(frozen=True, kw_only=True)
class _DecoderPlan(ExportPlan):
    """The plan of a language model's export."""

    codec: TextCodec
    """Its tokenizer."""
    route: DecoderRoute
    """How its graph is made."""
    measure: AnswerMeasure | None
    """How answers are judged while the bundle is verified."""
    texts: Sequence[Sequence[int]]
    """Tokens of the texts that int4 is rounded by; none if it rounds every weight by itself."""


def export_decoder(settings: ExportSettings, *, on_progress: Callable[[str], None]) -> Bundle:
    """Build the model with the adapter merged, or the base with branches; verify it, and write the bundle.

    Arguments and errors as those of :func:`rmlora_deploy.exporter.pipeline.export_bundle`.
    """
    _refuse_other_options(settings)
    started = time.monotonic()
    on_progress("loading base and adapters" if len(settings.adapters) > 1 else "loading base and adapter")
    plan = _plan(settings, on_progress)
    branches = settings.mode == "branches"
    with atomic_directory(settings.output, overwrite=settings.overwrite) as directory:
        modules, recipe = (_build_branches if branches else _build_merged)(plan, directory)
        bundle = Bundle(directory, _manifest(plan, directory, modules, recipe), settings.trust_remote_code)
        if branches:
            _write_adapters(plan, bundle)
        else:
            ((_, adapter),) = plan.adapters.items()
            bundle.manifest.adapter = describe_adapter(adapter)
        if settings.verify:
            _verify(plan, bundle)
        elif not branches:  # so that it can be verified later without PyTorch
            prompts = [batch["input_ids"][0].tolist() for batch in load_reference(directory / REFERENCE_FILE)[0]]
            _store_merged_reference(bundle, last_logits(_torch_of(plan, None), prompts))
        sources: Mapping[str, AdapterSource] = bundle.adapters
        if not branches:
            sources = dict.fromkeys(plan.adapters, bundle.merged_adapter)
        complete_bundle(bundle, plan, sources, started)
    return Bundle.open(settings.output, check_files=False)


def _refuse_other_options(settings: ExportSettings) -> None:
    """Raise :class:`ConfigError` for an option that changes nothing of a language model."""
    given = {
        "--onnx": settings.graph is not None,
        "--output-name": settings.output_name is not None,
        "--exporter": settings.exporter != "torch",
        "--opset": settings.opset is not None,
        "--int8-bits": settings.int8_bits is not None,
        "--pooling": settings.pooling is not None,
        "--normalize": settings.normalize is not None,
        "--labels": settings.labels is not None,
    }
    if flag := next((name for name, there in given.items() if there), None):
        raise ConfigError(
            f"{flag} does not go with adapters for text-generation, which it changes nothing of: leave it out."
        )
    check_columns(settings.columns)
    if settings.calibration is not None and (settings.precision, settings.mode) != ("int4", "merged"):
        raise ConfigError(
            "--calibration of a language model goes with --precision int4 and --mode merged: nothing else is rounded by texts."
        )
    if settings.mode == "merged" and len(settings.adapters) != 1:
        raise ConfigError(
            f"--mode merged takes one --adapter, not {len(settings.adapters)}: use --mode branches, or add them up with  "
            "rmlora-deploy mix."
        )


def _plan(settings: ExportSettings, on_progress: Callable[[str], None]) -> _DecoderPlan:
    """Return the plan of the export; whatever can be refused is refused here, before the work."""
    checkpoint = Checkpoint(resolve_base(settings.base, revision=settings.revision))
    route = choose_route(checkpoint.config, settings.base, settings.precision, settings.provider)
    codec = TextCodec.open(checkpoint.path)
    route.check_checkpoint(checkpoint, trust_remote_code=settings.trust_remote_code)
    adapters = {name: load_package(path) for name, path in settings.adapters.items()}
    task = common_task(settings, adapters)
    if settings.mode == "branches":
        adapters = {name: _switchable(name, path, checkpoint, settings) for name, path in settings.adapters.items()}
        for name, adapter in adapters.items():
            route.check_branches(adapter.modules, stored_weights(checkpoint, adapter), name)
        check_adapters(list(adapters.values()))
    else:
        for adapter in adapters.values():
            check_base(adapter, checkpoint, allow_mismatch=settings.allow_base_mismatch)
    measure = _measure(settings, task)
    if settings.verify:
        _check_data(codec, adapters, settings, measure)
    texts: list[list[int]] = []
    if settings.calibration is not None:
        raw = next(iter(adapters.values())).prompt_format == "raw"
        texts = read_texts(codec, settings.calibration, settings.columns, raw=raw)
    return _DecoderPlan(
        settings, checkpoint, adapters, task, None, None, None, {}, on_progress,
        codec=codec, route=route, measure=measure, texts=texts,
    )  # fmt: skip


def _check_data(
    codec: TextCodec, adapters: Mapping[str, Adapter], settings: ExportSettings, measure: AnswerMeasure | None
) -> None:
    """Read what the bundle is verified on, which is needed after the graph is built; errors as :func:`read_answers`."""
    for name, source in settings.data.items():
        raw = adapters[name].prompt_format == "raw"
        if measure is None:
            read_exchanges(codec, source, settings.columns, raw=raw)
        else:
            read_answers(codec, source, settings.columns, measure, context_length=None, raw=raw)


def _measure(settings: ExportSettings, task: Task) -> AnswerMeasure | None:
    """Return how answers are judged while the bundle is verified.

    Raises:
        ConfigError: the settings do not go together.
    """
    if settings.metric is not None and not settings.verify:
        raise ConfigError("--metric is measured while a bundle is verified: leave out --no-verify.")
    return AnswerMeasure.of(settings.metric, settings.max_new_tokens, task=task, data=bool(settings.data))


def _switchable(name: str, path: Path, checkpoint: Checkpoint, settings: ExportSettings) -> Adapter:
    """Return an adapter that a graph with branches can switch.

    Raises:
        AdapterError: it changes the embedding, or stores modules whole.
    """
    check_name(name)
    adapter = read_adapter(path, checkpoint, settings)
    task = common_task(settings, {name: adapter})
    adapter = drop_unused_modules(adapter, task)
    task.outputs.check_switchable(adapter, name)
    if embedding := next((module.path for module in adapter.modules.values() if module.kind == "embedding"), None):
        raise AdapterError(
            f"'{name}' changes the embedding '{embedding}', which has no branch in a language model's graph: merge it (--mode merged)."
        )
    return adapter


def _build_merged(plan: _DecoderPlan, directory: Path) -> tuple[list[str], str | None]:
    """Merge the adapter into a copy of the checkpoint, write its graph, and return the adapted modules and how weights were rounded."""
    ((_, adapter),) = plan.adapters.items()
    recipe = plan.route.recipe
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        merged = Path(temporary) / "merged"
        plan.on_progress("merging the adapter into the checkpoint")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # verification measures what rounding loses
            merge_checkpoint(plan.base, adapter, merged, allow_base_mismatch=plan.settings.allow_base_mismatch)
        built = _build(plan, merged, Path(temporary) / "built")
        model = load_model(built / MODEL_FILE)
        if plan.texts:
            done = _round_by_texts(plan, model, merged, DecoderLayout.read(built).context_length)
            recipe = f"{recipe}, {done}"
        pack_products(model)
        add_logits_start(model)
        save_model(model, directory / MODEL_FILE)
        _copy_side_files(built, directory, Checkpoint(merged))
    session = DecoderSession(directory / MODEL_FILE, DecoderLayout.read(directory))
    _save_reference(plan, session, directory)
    return list(adapter.modules), recipe


def _round_by_texts(plan: _DecoderPlan, model: ir.Model, merged: Path, context_length: int) -> str:
    """Round the 4-bit weights of ``model`` by the texts of the plan, in place; return what was done."""
    rounded, weights = round_by_texts(
        model,
        merged,
        [text[:context_length] for text in plan.texts],
        task=plan.task,
        trust_remote_code=plan.settings.trust_remote_code,
        on_progress=plan.on_progress,
    )
    tokens, source = sum(map(len, plan.texts)), Path(str(plan.settings.calibration)).name
    return f"{rounded} of {weights} weights in 4 bits rounded by {tokens:,} tokens of {source} (GPTQ)"


def _build_branches(plan: _DecoderPlan, directory: Path) -> tuple[list[str], str | None]:
    """Write the graph of the base with branches, and what it computes without; return as :func:`_build_merged`."""
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        built = _build(plan, plan.base, Path(temporary) / "built")
        _copy_side_files(built, directory, plan.checkpoint)
        plan.on_progress("inserting branches")
        model = load_model(built / MODEL_FILE)
        pack_products(model)
        targets = find_targets(model, list(plan.adapters.values()), plan.checkpoint)
        if targets.absent:
            raise AdapterError(
                f"The graph has no product for '{targets.absent[0]}', so it has no branch: merge the adapter (--mode merged), or leave "
                "that module out of its target_modules."
            )
        digests = weight_digests(plan.checkpoint, targets.modules)
        lora_inputs = insert_branches(model, targets, base_weights=digests)
        add_logits_start(model)
        save_model(model, directory / MODEL_FILE)
        check_written(directory / MODEL_FILE, lora_inputs)
        _save_reference(plan, DecoderSession(built / MODEL_FILE, DecoderLayout.read(built)), directory)
    return sorted(branch.module for branch in lora_inputs.modules), plan.route.recipe


def _build(plan: _DecoderPlan, checkpoint: Path, output: Path) -> Path:
    plan.route.make_graph(
        checkpoint,
        output,
        task=plan.task,
        on_progress=plan.on_progress,
        trust_remote_code=plan.settings.trust_remote_code,
    )
    return output


def _copy_side_files(built: Path, directory: Path, checkpoint: Checkpoint) -> None:
    """Copy what was written beside the graph, and configuration and license of the checkpoint."""
    for path in sorted(built.iterdir()):
        if path.is_file() and not path.name.startswith(MODEL_FILE):
            shutil.copyfile(path, directory / path.name)
    config = {key: value for key, value in checkpoint.config.items() if key != "_name_or_path"}
    write_json(directory / "config.json", config, allow_nan=True)
    for name in ("LICENSE", "LICENSE.txt"):
        if is_readable_file(checkpoint.path / name):
            confine_files(checkpoint.path, [name])
            shutil.copyfile(checkpoint.path / name, directory / name)


def _save_reference(plan: _DecoderPlan, session: DecoderSession, directory: Path) -> None:
    """Store prompts and the graph's last logits for them; verification replaces a merged graph's by PyTorch's."""
    prompts = _prompts(plan, session.layout)
    cases = [reference_case(prompt, session.logits(prompt)) for prompt in prompts]
    save_reference(directory / REFERENCE_FILE, [batch for batch, _ in cases], [logits for _, logits in cases])


def _prompts(plan: _DecoderPlan, layout: DecoderLayout) -> list[list[int]]:
    samples = decoder_samples(
        plan.codec, None, plan.settings.columns, context_length=layout.context_length, new_tokens=NEW_TOKENS
    )
    return samples.prompts[:_STORED_PROMPTS]


def _manifest(plan: _DecoderPlan, directory: Path, modules: Sequence[str], recipe: str | None) -> Manifest:
    settings = plan.settings
    return Manifest(
        **plan.manifest_fields(directory, modules, [], None),
        precision=settings.precision,
        exporter=plan.route.exporter,
        optimization=Optimization(level="as built" if plan.route.exporter == "genai" else "norms fused"),
        decoder=DecoderEntry(
            built_for=plan.route.provider,
            recipe=recipe,
            context_length=DecoderLayout.read(directory).context_length,
            chat=plan.codec.chat is not None,
        ),
        adapters={},
    )


def _write_adapters(plan: _DecoderPlan, bundle: Bundle) -> None:
    """Convert the adapters and try each out."""
    plan.on_progress("converting adapters")
    try_out = TryOut.of(bundle)
    bundle.manifest.adapters = {
        name: write_adapter(bundle, try_out, name, adapter, allow_base_mismatch=plan.settings.allow_base_mismatch)
        for name, adapter in plan.adapters.items()
    }


def _verify(plan: _DecoderPlan, bundle: Bundle) -> None:
    """Compare the bundle with PyTorch and PEFT, and store the report and PyTorch's last logits in it.

    Raises:
        ParityError: the graph differs from PyTorch by more than its precision explains.
    """
    plan.on_progress("verifying against PyTorch and PEFT")
    merged = bundle.mode == "merged"
    data: dict[str | None, DecoderData] = {
        None if merged else name: DecoderData(source, plan.settings.columns, plan.measure)
        for name, source in plan.settings.data.items()
    }
    report, expected = verify_decoder(bundle, partial(_torch_of, plan), data)
    raise_on_text_mismatch(report, bundle.precision)
    store_reference(bundle, {name: logits for name, logits in expected.items() if name is not None})
    if None in expected:
        _store_merged_reference(bundle, expected[None])
    bundle.manifest.verification = report


def _torch_of(plan: _DecoderPlan, name: str | None) -> TorchDecoder:
    """Return the base with PEFT's layers of an adapter; None names the only one."""
    from rmlora.torch_models import load_adapted

    path = plan.settings.adapters[name or next(iter(plan.settings.adapters))]
    adapted, _ = load_adapted(
        plan.base,
        path,
        task=plan.task.name,
        allow_base_mismatch=True,
        trust_remote_code=plan.settings.trust_remote_code,
    )
    return TorchDecoder(adapted, f"the adapter {path}")


def _store_merged_reference(bundle: Bundle, logits: Sequence[np.ndarray]) -> None:
    """Replace the graph's own last logits in a merged bundle by PyTorch's."""
    file = bundle.path / REFERENCE_FILE
    save_reference(file, load_reference(file)[0], logits)
    bundle.manifest.files = {**bundle.manifest.files, REFERENCE_FILE: sha256_file(file)}
