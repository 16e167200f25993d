"""Comparing a bundle of any kind with PyTorch and PEFT, as the caller describes it: paths of base, adapters and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.errors import ConfigError, some_of
from rmlora.training.answer_metrics import AnswerMetric
from rmlora.training.data import Columns
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.report import VerificationReport
from rmlora_deploy.verification.answer_quality import AnswerMeasure
from rmlora_deploy.verification.evaluation import EvaluationData, read_evaluation
from rmlora_deploy.verification.evaluation_data import MeasuredModel
from rmlora_deploy.verification.exchanges import check_columns
from rmlora_deploy.verification.torch_decoder import TorchDecoder
from rmlora_deploy.verification.torch_pair import TorchPair, load_recorded, load_torch_pair
from rmlora_deploy.verification.verify_branches import verify_branches
from rmlora_deploy.verification.verify_decoder import DecoderData, verify_decoder
from rmlora_deploy.verification.verify_merged_bundle import verify_bundle

__all__ = ["ComparisonInputs", "compare_bundle"]


@dataclass(frozen=True)
class ComparisonInputs:
    """What a bundle is compared with."""

    base: str | None = None
    """Directory, ``.gguf`` file or hub name of the base; None takes the one recorded on this machine."""
    adapters: str | Path | Mapping[str, str | Path] | None = None
    """Package of the adapter, with branches name → package; None takes those recorded on this machine."""
    data: str | Mapping[str, str] | None = None
    """Labeled data to measure the metric on, with branches name → data."""
    columns: Columns = field(default_factory=Columns)
    """Names of the data's columns."""
    metric: AnswerMetric | None = None
    """What to measure on the answers that a language model generates to the data."""
    max_new_tokens: int | None = None
    """Most tokens of such an answer."""
    with_torch: bool = True
    """False compares with PyTorch's outputs stored in the bundle."""


def compare_bundle(
    bundle: Bundle, inputs: ComparisonInputs, *, provider: str
) -> tuple[VerificationReport, dict[str, list[np.ndarray]]]:
    """Return the report, and PyTorch's outputs by adapter, batch by batch; a failed comparison is not raised.

    Raises:
        ConfigError: a metric is asked for that does not go with the bundle; one path is given where the bundle has several adapters, or several where it has one.
        InputError: the bundle, its base or an adapter cannot be used.
        ProviderError: the provider is not available.
    """
    measure = AnswerMeasure.of(inputs.metric, inputs.max_new_tokens, task=bundle.task, data=bool(inputs.data))
    if bundle.task.outputs.kind == "text":
        return _compare_texts(bundle, inputs, measure, provider)
    return (_compare_branches if bundle.mode == "branches" else _compare_merged)(bundle, inputs, provider)


def _compare_texts(
    bundle: Bundle, inputs: ComparisonInputs, measure: AnswerMeasure | None, provider: str
) -> tuple[VerificationReport, dict[str, list[np.ndarray]]]:
    """Compare a language model."""
    check_columns(inputs.columns)
    paths: Mapping[str | None, str]
    sources: Mapping[str | None, str]
    if bundle.mode == "branches":
        paths = dict(_by_name(bundle, "adapters", inputs.adapters).items())
        sources = dict(_by_name(bundle, "data", inputs.data).items())
    else:
        _refuse_mappings(bundle, inputs)
        paths = {None: str(inputs.adapters)} if inputs.adapters else {}
        sources = {None: str(inputs.data)} if inputs.data else {}

    def torch_of(name: str | None) -> TorchDecoder:
        path = Path(paths[name]) if name in paths else None
        return TorchDecoder(
            load_recorded(bundle, inputs.base, path, name=name), f"the adapter '{name}'" if name else "the adapter"
        )

    report, expected = verify_decoder(
        bundle,
        torch_of if inputs.with_torch else None,
        {name: DecoderData(source, inputs.columns, measure) for name, source in sources.items()},
        provider=provider,
    )
    return report, {name: logits for name, logits in expected.items() if name is not None}


def _compare_merged(
    bundle: Bundle, inputs: ComparisonInputs, provider: str
) -> tuple[VerificationReport, dict[str, list[np.ndarray]]]:
    _refuse_mappings(bundle, inputs)
    adapter = Path(str(inputs.adapters)) if inputs.adapters else None
    evaluation = _evaluation(bundle, None, str(inputs.data), inputs.columns) if inputs.data else None
    pair = load_torch_pair(bundle, inputs.base, adapter) if inputs.with_torch else None
    return verify_bundle(bundle, bundle.preprocessor(), pair, evaluation=evaluation, provider=provider), {}


def _refuse_mappings(bundle: Bundle, inputs: ComparisonInputs) -> None:
    """Raise :class:`ConfigError` if several adapters are given for a merged bundle."""
    for what, given in (("adapter", inputs.adapters), ("data", inputs.data)):
        if isinstance(given, Mapping):
            raise ConfigError(f"{bundle.path} holds one adapter: give {what} as one path.")


def _compare_branches(
    bundle: Bundle, inputs: ComparisonInputs, provider: str
) -> tuple[VerificationReport, dict[str, list[np.ndarray]]]:
    paths, data = _by_name(bundle, "adapters", inputs.adapters), _by_name(bundle, "data", inputs.data)
    evaluations = {name: _evaluation(bundle, name, source, inputs.columns) for name, source in data.items()}

    def pair_of(name: str) -> TorchPair:
        return load_torch_pair(bundle, inputs.base, Path(paths[name]) if name in paths else None, name=name)

    return verify_branches(bundle, pair_of if inputs.with_torch else None, evaluations=evaluations, provider=provider)


def _evaluation(bundle: Bundle, adapter: str | None, source: str, columns: Columns) -> EvaluationData:
    """Read labeled data for an adapter of a bundle, or for what is merged into it."""
    entry = bundle.adapter(adapter) if adapter is not None else bundle.manifest
    model = MeasuredModel(
        task=bundle.task,
        labels=entry.labels,
        problem=entry.function_to_apply,
        form=bundle.input_form(adapter),
        no_answer=bundle.no_answer(adapter),
        threshold=entry.threshold,
    )
    return read_evaluation(source, columns, model)


def _by_name(bundle: Bundle, what: str, value: Any) -> dict[str, str]:
    """Return adapter → path from what the caller passed as ``what``; every adapter must be in ``bundle``."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{bundle.path} has branches for adapters: give {what} as a mapping from name to path; the names are "
            f"{some_of(bundle.adapters)}."
        )
    for name in value:
        bundle.adapter(name)
    return {name: str(path) for name, path in value.items()}
