"""Verifying a bundle: PyTorch with the adapter applied, PyTorch merged, and ONNX Runtime, on the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy.bundle import REFERENCE_FILE, Bundle
from deploy.preprocess import Arrays, Preprocessor
from deploy.verify.cases import load_reference, make_cases, sample_inputs
from deploy.verify.compare import TOLERANCES, Comparison, compare
from rmlora.base import resolve_base
from rmlora.errors import InputError, ParityError, is_installed
from rmlora.training.data import Columns, LabelledData, load_split

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["EvaluationData", "TorchPair", "load_torch_pair", "raise_on_departure", "read_evaluation", "verify_bundle"]

_BATCH = 32


@dataclass(frozen=True)
class TorchPair:
    """PyTorch's two models of one adapter."""

    adapted: PeftModel
    """The base with PEFT's layers."""
    merged: Any
    """A second copy with the update merged into the weights."""


@dataclass(frozen=True)
class EvaluationData:
    """Labelled examples to measure the metric on."""

    source: str
    inputs: list[Any]
    labels: list[int]


def load_torch_pair(bundle: Bundle, base: str | None, adapter: Path | None) -> TorchPair:
    """Load the models a bundle was made from.

    Args:
        bundle: its manifest tells the sources.
        base: overrides the recorded base.
        adapter: overrides the recorded adapter.

    Raises:
        InputError: a recorded source is not there any more, or is another one.
    """
    from rmlora.models import load_adapted

    recorded = bundle.manifest["adapter"]
    path = adapter or Path(recorded["source"])
    if not path.is_dir():
        raise InputError(
            f"The adapter {path} of this bundle is not there any more: pass --adapter, or --reference-only."
        )
    directory = resolve_base(base or bundle.manifest["base"]["source"])
    adapted, loaded = load_adapted(directory, path, task=bundle.task)
    sha256 = loaded.metadata.get("tensors_sha256")
    if recorded.get("sha256") and sha256 and sha256 != recorded["sha256"]:
        raise InputError(
            f"{path} is not the adapter this bundle was made from (SHA-256 differs): pass the right --adapter."
        )
    merged, _ = load_adapted(directory, path, task=bundle.task)
    return TorchPair(adapted, merged.merge_and_unload())


def read_evaluation(bundle: Bundle, source: str, columns: Columns) -> EvaluationData:
    """Read labelled data for ``bundle``.

    Raises:
        InputError: it cannot be read, or has a label the bundle does not know.
    """
    from rmlora.tasks import get_task

    data: LabelledData = load_split(get_task(bundle.task), source, columns)
    index = {label: number for number, label in enumerate(bundle.labels)}
    unknown = sorted(set(data.labels) - set(index))
    if unknown:
        raise InputError(f"{source} has the label '{unknown[0]}', but the bundle's are {', '.join(index)}.")
    return EvaluationData(source, data.inputs, [index[label] for label in data.labels])


def verify_bundle(
    bundle: Bundle,
    preprocessor: Preprocessor,
    pair: TorchPair | None,
    *,
    evaluation: EvaluationData | None = None,
    provider: str = "cpu",
) -> dict[str, Any]:
    """Compare and return the report; a failed comparison is in it, not raised (see :func:`raise_on_departure`).

    Args:
        bundle: what to verify.
        preprocessor: of the bundle.
        pair: PyTorch's models, or None to compare with the outputs stored in the bundle.
        evaluation: labelled data; inputs are drawn from it and the metric is measured on all of it.
        provider: execution provider to run on.
    """
    tolerance = TOLERANCES[bundle.precision]
    session = bundle.session(provider)
    run = _Runner(session, preprocessor)
    report: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "provider": provider,
        "tolerance": asdict(tolerance),
    }
    if pair is None:
        cases, expected = load_reference(bundle.path / REFERENCE_FILE)
        report["against"] = "stored outputs of PyTorch and PEFT"
    else:
        cases = make_cases(preprocessor, sample_inputs(preprocessor, evaluation.inputs if evaluation else None))
        expected = [torch_logits(pair.adapted, case) for case in cases]
        report["against"] = "PyTorch and PEFT"
        report["pytorch_merged"] = asdict(compare(expected, [torch_logits(pair.merged, case) for case in cases]))
    result: Comparison = compare(expected, [run.logits(case) for case in cases])
    report["onnx"] = asdict(result)
    report["shapes"] = [list(next(iter(case.values())).shape) for case in cases]
    passed = result.within(tolerance)
    if not passed and pair is not None and bundle.manifest.get("layers"):
        from deploy.verify.departure import first_departure

        limit = max(tolerance.relative_error, 1e-3)
        layers = bundle.manifest["layers"]
        report["first_departure"] = first_departure(
            bundle.model_path, layers, pair.merged, cases[-1], tolerance=limit, provider=provider
        )
    if evaluation is not None:
        report["evaluation"] = _evaluate(evaluation, preprocessor, run, pair)
    report["passed"] = passed
    return report


def raise_on_departure(report: dict[str, Any], precision: str) -> None:
    """Raise :class:`ParityError` when the report says that the bundle departs from PyTorch."""
    if report["passed"]:
        return
    measured, limit = report["onnx"], report["tolerance"]
    layer = report.get("first_departure")
    if layer:
        where = f" The first layer that departs is '{layer['module']}' (by {layer['relative_error']:.1e})."
    elif report["against"].startswith("stored"):
        where = " Verify with PyTorch installed to learn which layer departs first."
    else:
        where = " No single layer could be named."
    raise ParityError(
        f"The {precision} graph differs from PyTorch by {measured['max_relative_error']:.1e} of the largest logit (allowed "
        f"{limit['relative_error']:.0e}) and agrees on {measured['argmax_agreement']:.1%} of the choices (at least "
        f"{limit['agreement']:.0%}).{where}"
    )


def torch_logits(model: Any, case: Arrays) -> np.ndarray:
    """Return a PyTorch model's logits for one batch."""
    import torch

    with torch.inference_mode():
        output = model(**{name: torch.from_numpy(np.array(array)) for name, array in case.items()})
    return np.asarray(output.logits.float().numpy())


class _Runner:
    """A session and the names it takes."""

    def __init__(self, session: Any, preprocessor: Preprocessor) -> None:
        self._session = session
        self._names = {item.name for item in session.get_inputs()}
        self.preprocessor = preprocessor

    def logits(self, case: Arrays) -> np.ndarray:
        """Return the graph's logits for one batch."""
        feeds = {name: array for name, array in case.items() if name in self._names}
        return np.asarray(self._session.run(None, feeds)[0])


def _evaluate(
    evaluation: EvaluationData, preprocessor: Preprocessor, run: _Runner, pair: TorchPair | None
) -> dict[str, Any]:
    labels = np.array(evaluation.labels)
    batches = [preprocessor(chunk) for chunk in _chunks(evaluation.inputs)]
    scores = {"onnx": _accuracy(labels, (run.logits(batch) for batch in batches))}
    if pair is not None:
        scores["pytorch"] = _accuracy(labels, (torch_logits(pair.adapted, batch) for batch in batches))
    return {"data": Path(evaluation.source).name, "examples": len(labels), "metric": "accuracy", **scores}


def _accuracy(labels: np.ndarray, logits: Iterable[np.ndarray]) -> float:
    return float((np.concatenate([part.argmax(-1) for part in logits]) == labels).mean())


def _chunks(inputs: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(inputs), _BATCH):
        yield inputs[start : start + _BATCH]


def torch_is_installed() -> bool:
    """Whether PyTorch and PEFT can be used here."""
    return all(is_installed(name) for name in ("torch", "peft"))
