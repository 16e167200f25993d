"""The front door: train, merge, export, verify and load, with a keyword for every flag of the command line.

    >>> from rmlora_deploy import export, load, train
    >>> train("./MiniLM", "sms.csv", "spam")                                             # doctest: +SKIP
    >>> export("./MiniLM", "spam", "spam-bundle")                                        # doctest: +SKIP
    >>> load("spam-bundle").predict(["You have won a prize, call now"])[0].label         # doctest: +SKIP
    'spam'

Errors are subclasses of :class:`rmlora.RMLoRAError`; their text is the sentence that the command line prints.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.config import RMLoRAConfig
from rmlora.errors import ConfigError, ReadOnlyError, some_of
from rmlora.package import load_package
from rmlora.training.answer_metrics import AnswerMetric
from rmlora.training.data import Columns
from rmlora.training.settings import TrainSettings
from rmlora_converters.checkpoint_merge import MergeReport, merge_checkpoint
from rmlora_converters.graph.passes.merge_weights import OnnxMergeReport, merge_graph
from rmlora_deploy.bundles.adapters import record_verification
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import Mode, Precision
from rmlora_deploy.bundles.report import VerificationReport
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.exporter.pipeline import export_bundle
from rmlora_deploy.inference import Answerer, Classifier, Embedder, Generator, Tagger, open_bundle
from rmlora_deploy.inspection.bundle_card import write_card
from rmlora_deploy.verification.compare_bundle import ComparisonInputs, compare_bundle
from rmlora_deploy.verification.torch_pair import torch_is_installed
from rmlora_deploy.verification.verify_branches import raise_on_branch_mismatch
from rmlora_deploy.verification.verify_decoder import raise_on_text_mismatch
from rmlora_deploy.verification.verify_merged_bundle import raise_on_mismatch
from rmlora_deploy.verification.verify_merged_graph import verify_merged_graph

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from rmlora.training.run import TrainResult

__all__ = ["export", "load", "merge", "raise_if_failed", "train", "verify"]


def train(
    base: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    config: RMLoRAConfig | None = None,
    console: Console | None = None,
    resume: bool = True,
    overwrite: bool = False,
    **settings: Any,
) -> TrainResult:
    """Train an RM-LoRA adapter and write it as a package that PEFT loads.

    A run that was killed continues from its last complete checkpoint when called again with the same settings. Needs the
    extra ``train``.

    Args:
        base: checkpoint directory, ``.gguf`` file or hub name.
        data: csv, tsv, jsonl or parquet file, folder of images, or hub data set (``name:split``).
        output: directory of the package to write.
        config: rank, active rank, alpha, penalty, target modules and other settings of the method; None takes the
            defaults.
        console: where progress is shown; None shows none.
        resume: continue an interrupted run; False starts over.
        overwrite: replace an existing package.
        **settings: fields of :class:`rmlora.training.settings.TrainSettings`, such as ``validation``, ``test``, ``task``,
            ``epochs``, ``batch_size``, ``learning_rate``, ``max_length``, ``seed``.

    Returns:
        the package's directory, its metrics by split, trained parameters, steps and seconds.

    Raises:
        ConfigError: unknown settings, or settings that do not fit the model or the interrupted run.
        InputError: unusable data or base.
        TrainingError: the run diverged, or RM-LoRA had no effect.
        OutputError: the package cannot be written.
        DependencyError: a package of the extra ``train`` is missing.

    Examples:
        >>> result = train("./MiniLM", "sms.csv", "spam", epochs=2)                      # doctest: +SKIP
        >>> result.metrics["validation"]["accuracy"]                                     # doctest: +SKIP
        0.98
    """
    from rmlora.training.run import train as run

    _refuse_unknown("train", settings, TrainSettings, given={"base", "train", "output", "rmlora"})
    chosen = TrainSettings(
        base=str(base), train=str(data), output=Path(output), rmlora=config or RMLoRAConfig(), **settings
    )
    return run(chosen, console=console, resume=resume, overwrite=overwrite)


def merge(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    onnx: str | Path | None = None,
    verify: bool = True,
    overwrite: bool = False,
    allow_base_mismatch: bool = False,
    revision: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> MergeReport | OnnxMergeReport:
    """Merge an adapter into a checkpoint, or into an ONNX export of it; needs neither torch nor a GPU.

    Weights are streamed, so a model larger than memory merges in a few hundred megabytes. Sharding and element types stay
    those of the base.

    Args:
        base: checkpoint directory, ``.gguf`` file or hub name.
        adapter: any PEFT LoRA adapter.
        output: directory to write.
        onnx: an ONNX export of ``base`` from any exporter, to merge into instead.
        verify: with ``onnx``, compare the result with PyTorch and PEFT before it is written, if they are installed.
        overwrite: replace an existing directory.
        allow_base_mismatch: merge although the adapter was made for another base.
        revision: branch, tag or commit of a hub base.
        on_progress: called with the bytes written so far and the bytes in total.

    Returns:
        the modules that were merged and the tensors that were added, with the share of each update that rounding lost
        (``worst_loss`` is the largest).

    Raises:
        InputError: base, adapter or graph cannot be read, or do not belong together.
        ParityError: the merged graph differs from PyTorch.
        OutputError: the target exists or cannot be written.

    Examples:
        >>> merge("./MiniLM", "spam", "spam-merged").worst_loss                          # doctest: +SKIP
        2.1e-08
    """
    loaded = load_package(adapter)
    checkpoint = resolve_base(base, revision=revision)

    def check(graph: Path) -> dict[str, Any]:
        return verify_merged_graph(graph, checkpoint, loaded, allow_base_mismatch=allow_base_mismatch)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report says it
        if onnx is None:
            return merge_checkpoint(
                checkpoint, loaded, output, overwrite=overwrite, allow_base_mismatch=allow_base_mismatch,
                on_progress=on_progress,
            )  # fmt: skip
        return merge_graph(
            onnx, loaded, output, base=Checkpoint(checkpoint), overwrite=overwrite,
            allow_base_mismatch=allow_base_mismatch, check=check if verify else None, on_progress=on_progress,
        )  # fmt: skip


def export(
    base: str | Path,
    adapters: str | Path | Mapping[str, str | Path],
    output: str | Path,
    *,
    mode: Mode | None = None,
    precision: Precision = "fp32",
    data: str | Mapping[str, str] | None = None,
    onnx: str | Path | None = None,
    on_progress: Callable[[str], None] | None = None,
    **settings: Any,
) -> Bundle:
    """Make an ONNX bundle, and verify it against PyTorch and PEFT before it is written.

    Args:
        base: checkpoint directory, ``.gguf`` file or hub name.
        adapters: one adapter package, or name → package.
        output: directory of the bundle to write.
        mode: ``merged`` merges one adapter into the weights; with ``branches`` every row of a batch may use another adapter.
            None takes ``merged`` for a path and ``branches`` for a mapping.
        precision: ``fp32``, ``fp16``, ``int8`` or ``int4``.
        data: labeled data to compare the metric on; with several adapters, name → data.
        onnx: with branches, an ONNX export of ``base`` from any exporter; needs no torch.
        on_progress: called with a line before every step.
        **settings: other fields of :class:`rmlora_deploy.exporter.export_settings.ExportSettings`, such as ``task``,
            ``labels``, ``opset``, ``verify``, ``overwrite``, ``pooling``, ``trust_remote_code``.

    Returns:
        the bundle; ``bundle.manifest.verification`` is the report.

    Raises:
        ConfigError: unknown settings, or settings that do not go together.
        InputError: base, adapter or data cannot be used, or the model cannot be exported.
        ParityError: the graph differs from PyTorch by more than its precision explains; no bundle is written.
        OutputError: the bundle cannot be written.
        DependencyError: a package of the extra ``export`` is missing.

    Examples:
        >>> bundle = export("./MiniLM", {"spam": "spam", "trec": "trec"}, "both")        # doctest: +SKIP
        >>> bundle.manifest.verification.passed                                          # doctest: +SKIP
        True
    """
    _refuse_unknown("export", settings, ExportSettings, given={"base", "adapters", "output", "graph"})
    if isinstance(adapters, Mapping):
        paths = {name: Path(path) for name, path in adapters.items()}
    else:
        paths = {Path(adapters).resolve().name: Path(adapters)}
    if isinstance(data, str):
        if len(paths) != 1:
            raise ConfigError(
                f"With several adapters data is a mapping from name to file; the names are {some_of(paths)}."
            )
        data = dict.fromkeys(paths, data)
    chosen: Mode = mode or ("branches" if isinstance(adapters, Mapping) else "merged")
    return export_bundle(
        ExportSettings(
            base=str(base), adapters=paths, output=Path(output), mode=chosen, precision=precision, data=data or {},
            graph=Path(onnx) if onnx is not None else None, **settings,
        ),
        on_progress=on_progress,
    )  # fmt: skip


def verify(
    bundle: str | Path | Bundle,
    *,
    base: str | None = None,
    adapters: str | Path | Mapping[str, str | Path] | None = None,
    data: str | Mapping[str, str] | None = None,
    columns: Columns | None = None,
    metric: AnswerMetric | None = None,
    max_new_tokens: int | None = None,
    provider: str = "cpu",
    reference_only: bool = False,
    record: bool = True,
    check: bool = True,
    trust_remote_code: bool = False,
    on_unrecorded: Callable[[str], None] | None = None,
) -> VerificationReport:
    """Compare a bundle with PyTorch and PEFT on real inputs of several shapes.

    Args:
        bundle: directory or opened bundle, merged or with branches.
        base: directory, ``.gguf`` file or hub name of the base; None takes the one recorded on this machine at export.
        adapters: package of the adapter, with branches name → package; None takes those recorded on this machine.
        data: labeled data to measure the metric on, with branches name → data.
        columns: names of the data's columns; None recognizes the usual ones.
        metric: what to measure on the answers that a language model generates to ``data``: ``exact_match``, ``json`` or ``rougeL``.
        max_new_tokens: most tokens of such an answer; None takes 128.
        provider: execution provider to run on.
        reference_only: compare with PyTorch's outputs stored in the bundle; always so if torch is not installed.
        record: add the report to the bundle's manifest, which keeps the last few of each kind.
        check: raise if the comparison failed; if False, :func:`raise_if_failed` can be called on the report later.
        trust_remote_code: run code that comes with the base; only for sources you trust.
        on_unrecorded: called with a sentence if the report could not be recorded because the bundle is read-only.

    Returns:
        the report: differences on every kind of input, and whether they are within the tolerance.

    Raises:
        ParityError: the graph differs from PyTorch by more than its precision explains.
        InputError: the bundle, its base or an adapter cannot be used.
        ProviderError: the provider is not available.

    Examples:
        >>> verify("spam-bundle", data="test.jsonl").evaluation.onnx                     # doctest: +SKIP
        0.9806
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    opened = dataclasses.replace(opened, trust_remote_code=trust_remote_code or opened.trust_remote_code)
    with_torch = not reference_only and torch_is_installed()
    inputs = ComparisonInputs(base, adapters, data, columns or Columns(), metric, max_new_tokens, with_torch)
    report, expected = compare_bundle(opened, inputs, provider=provider)
    if record:
        _record(opened, report, expected, on_unrecorded)
    if check:
        raise_if_failed(report, opened)
    return report


def _record(
    bundle: Bundle,
    report: VerificationReport,
    expected: Mapping[str, list[np.ndarray]],
    on_unrecorded: Callable[[str], None] | None,
) -> None:
    """Record a report; a bundle that may not be written to stays as it is."""
    try:
        record_verification(bundle, report, expected)
        write_card(bundle)
    except ReadOnlyError:
        if on_unrecorded is not None:
            on_unrecorded(f"{bundle.path} may not be written to: the report was not recorded in it.")


def raise_if_failed(report: VerificationReport, bundle: Bundle) -> None:
    """Raise :class:`ParityError` saying what differs, if ``report`` says that ``bundle`` failed.

    Args:
        report: of :func:`verify`.
        bundle: that was verified.
    """
    if bundle.task.outputs.kind == "text":
        raise_on_text_mismatch(report, bundle.precision)
        return
    (raise_on_branch_mismatch if bundle.mode == "branches" else raise_on_mismatch)(report, bundle.precision)


def load(
    path: str | Path, *, provider: str = "cpu", trust_remote_code: bool = False, **options: Any
) -> Classifier | Tagger | Answerer | Embedder | Generator:
    """Open a bundle of any kind, to predict, tag, embed or generate with it; needs no torch.

    Args:
        path: bundle directory, merged or with branches.
        provider: execution provider, such as ``cpu``, ``cuda``, or ``openvino?INFERENCE_PRECISION_HINT=bf16``
            (docs/providers.md).
        trust_remote_code: run code that comes with the tokenizer; only for sources you trust.
        **options: ``threads``; with branches also ``max_active_adapters``, ``rows`` and ``max_concurrent_runs`` of
            :class:`rmlora_deploy.runtime.AdapterSession`.

    Returns:
        a :class:`Classifier` (``predict``), for token-classification a :class:`Tagger` (``tag``), for
        question-answering an :class:`Answerer` (``answer``), for feature-extraction an
        :class:`Embedder` (``embed``), or for text-generation a :class:`Generator` (``generate``).

    Raises:
        InputError: the directory is not a bundle, or is damaged.
        ProviderError: the provider is not available or does not start.

    Examples:
        >>> both = load("both")                                                          # doctest: +SKIP
        >>> [p.label for p in both.predict(["Call now", "Who was it ?"], ["spam", "trec"])]  # doctest: +SKIP
        ['spam', 'HUM']
    """
    return open_bundle(path, provider=provider, trust_remote_code=trust_remote_code, **options)


def _refuse_unknown(function: str, settings: Mapping[str, Any], settings_class: Any, *, given: set[str]) -> None:
    """Raise :class:`ConfigError` for a keyword that is not a field of ``settings_class``, or is one of ``given``."""
    known = [field.name for field in dataclasses.fields(settings_class) if field.name not in given]
    for name in settings:
        if name not in known:
            raise ConfigError(f"{function}() has no setting '{name}': the settings are {', '.join(known)}.")
