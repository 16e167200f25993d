"""What an export settles before it makes a graph, and how it completes a bundle: the steps that both modes share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from rmlora.adapter import Adapter
from rmlora.adapter_task import complete_labels, task_of
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, InputError
from rmlora.inputs import Arrays
from rmlora.pooling import Pooling
from rmlora.tasks import Task
from rmlora.text_pair import InputForm
from rmlora.training.data import load_inputs
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.choose_pooling import choose_pooling
from rmlora_deploy.bundles.describe import describe_base, describe_files, describe_model, describe_tools
from rmlora_deploy.bundles.manifest import AdapterSource, PoolingEntry
from rmlora_deploy.bundles.preprocess import Preprocessor
from rmlora_deploy.bundles.processor import common_processor, max_length
from rmlora_deploy.bundles.sources import record_adapter_directory, record_base_directory
from rmlora_deploy.exporter.calibration import CalibrationData
from rmlora_deploy.exporter.export_settings import ExportSettings
from rmlora_deploy.inspection.bundle_card import write_card
from rmlora_deploy.verification.evaluation import EvaluationData, read_evaluation
from rmlora_deploy.verification.evaluation_data import MeasuredModel
from rmlora_deploy.verification.sample_batches import sample_inputs

__all__ = ["ExportPlan", "common_task", "complete_bundle", "make_plan"]


@dataclass(frozen=True)
class ExportPlan:
    """The settings of an export and what follows from them before a graph is made."""

    settings: ExportSettings
    checkpoint: Checkpoint
    """The base."""
    adapters: Mapping[str, Adapter]
    """Name → adapter, with label names and kind of answer filled in."""
    task: Task
    processor: Any
    """Tokenizer or image processor."""
    max_length: int | None
    """Tokens that texts are cut to; None for images."""
    pooling_entry: PoolingEntry | None
    """How the graph pools and where that choice came from; None for tasks that do not pool."""
    evaluations: Mapping[str, EvaluationData]
    """Adapter → labeled data to measure the metric on."""
    on_progress: Callable[[str], None]
    calibration_inputs: list[Any] = field(default_factory=list)
    """Inputs that int8 is calibrated on; empty if there are none."""

    @property
    def input_forms(self) -> set[InputForm | None]:
        """What the adapters were trained on."""
        return {adapter.input_form for adapter in self.adapters.values()}

    @property
    def base(self) -> Path:
        """Directory of the base."""
        return self.checkpoint.path

    @property
    def pooling(self) -> Pooling | None:
        """How a text's token vectors become one; None for tasks that do not pool."""
        return self.pooling_entry.pooling if self.pooling_entry is not None else None

    def preprocessor(self, input_names: Iterable[str]) -> Preprocessor:
        """Return the processor, set up for a graph with these inputs."""
        return Preprocessor(self.task, self.processor, self.max_length, tuple(input_names))

    def calibration(self, model: ir.Model) -> CalibrationData | None:
        """Return what to calibrate the graph ``model`` on; None if the user gave no data.

        Raises:
            InputError: an input cannot be used.
        """
        if not self.calibration_inputs:
            return None
        source = self.settings.calibration or next(iter(self.settings.data.values()))
        self.on_progress(f"calibrating on {Path(source).name}")
        preprocessor = self.preprocessor(value.name or "" for value in model.graph.inputs)
        try:
            return CalibrationData.of(source, preprocessor, self.calibration_inputs, self.task.outputs)
        except InputError as error:
            raise InputError(f"Calibrating on {source}: {error}") from None

    def samples(self, model: ir.Model) -> list[Arrays]:
        """Return built-in inputs for the graph ``model``, one by one, so without padding."""
        names = (value.name or "" for value in model.graph.inputs if value.name not in model.graph.initializers)
        preprocessor = self.preprocessor(names)
        return [preprocessor([value]) for value in sample_inputs(preprocessor, None, self.input_forms)]

    def manifest_fields(
        self, directory: Path, modules: Iterable[str], labels: Sequence[str], problem: str | None
    ) -> dict[str, Any]:
        """Return the manifest's fields that both modes fill in the same way.

        Args:
            directory: holds the graph and all other files already.
            modules: paths of the adapted modules.
            labels: of the graph's own head; empty if there is none.
            problem: problem type of that head.
        """
        scoring = self.task.outputs.scoring(problem, labels)
        return {
            **describe_tools(),
            "mode": self.settings.mode,
            "task": self.task.name,
            "pooling": self.pooling_entry,
            "max_length": self.max_length,
            "base": describe_base(self.settings.base, self.settings.revision, self.checkpoint, modules),
            "model": describe_model(directory),
            "files": describe_files(directory),
            "verification": None,
            "labels": list(labels),
            "function_to_apply": scoring.function if scoring is not None and labels else None,
        }


def make_plan(
    settings: ExportSettings,
    checkpoint: Checkpoint,
    adapters: Mapping[str, Adapter],
    on_progress: Callable[[str], None],
) -> ExportPlan:
    """Settle task, evaluation data, processor, text length and pooling of an export.

    Args:
        settings: of the export.
        checkpoint: the base.
        adapters: name → adapter, at least one.
        on_progress: called with a line before every step.

    Raises:
        ConfigError: settings that do not go together, or an adapter that does not record its task.
        AdapterError: the adapters are for different tasks, or were trained with different processors or poolings.
        CheckpointError: the base's configuration cannot be used.
        InputError: the evaluation data cannot be used.
    """
    task = common_task(settings, adapters)
    adapters = {
        name: complete_labels(adapter, task, checkpoint.config, settings.labels) for name, adapter in adapters.items()
    }
    evaluations = {
        name: read_evaluation(
            data,
            settings.columns,
            MeasuredModel(
                task=task,
                labels=adapters[name].labels or [],
                problem=adapters[name].problem_type,
                form=task.inputs.form or adapters[name].input_form,
                no_answer=adapters[name].no_answer,
                threshold=adapters[name].threshold,
            ),
        )
        for name, data in settings.data.items()
    }
    processor = common_processor(
        checkpoint.path, list(adapters.values()), task, trust_remote_code=settings.trust_remote_code
    )
    length = max_length(list(adapters.values()), processor, task, checkpoint.path)
    pooling = choose_pooling(
        task,
        checkpoint.path,
        adapters,
        processor,
        mode=settings.pooling,
        normalize=settings.normalize,
        trust_remote_code=settings.trust_remote_code,
    )
    return ExportPlan(
        settings, checkpoint, adapters, task, processor, length, pooling, evaluations, on_progress,
        _calibration_inputs(settings, task, adapters, evaluations),
    )  # fmt: skip


def _calibration_inputs(
    settings: ExportSettings, task: Task, adapters: Mapping[str, Adapter], evaluations: Mapping[str, EvaluationData]
) -> list[Any]:
    """Return the inputs that a merged int8 graph is calibrated on: those of ``--calibration``, else of ``--data``."""
    if settings.precision != "int8" or settings.mode != "merged":
        return []
    if settings.calibration is not None:
        (adapter,) = adapters.values()
        return load_inputs(task, settings.calibration, settings.columns, form=task.inputs.form or adapter.input_form)
    return [row for data in evaluations.values() for row in data.inputs]


def complete_bundle(bundle: Bundle, plan: ExportPlan, adapters: Mapping[str, AdapterSource], started: float) -> None:
    """Write the manifest and the card, and record where base and adapters are on this machine.

    Args:
        bundle: with every other file in place.
        plan: of the export.
        adapters: name → manifest entry.
        started: ``time.monotonic()`` when the export started.
    """
    bundle.manifest.seconds = round(time.monotonic() - started, 1)
    bundle.save_manifest()
    write_card(bundle, name=plan.settings.output.resolve().name)
    record_base_directory(bundle.manifest, plan.base)
    for name, entry in adapters.items():
        record_adapter_directory(bundle.manifest, entry, plan.settings.adapters[name])


def common_task(settings: ExportSettings, adapters: Mapping[str, Adapter]) -> Task:
    """Return the task of all adapters.

    Raises:
        ConfigError: an adapter does not record its task.
        AdapterError: the adapters are for different tasks.
    """
    (first, task), *others = ((name, task_of(adapter, settings.task)) for name, adapter in adapters.items())
    for name, other in others:
        if other != task:
            raise AdapterError(
                f"'{first}' is for {task.name} and '{name}' for {other.name}: export them into separate bundles."
            )
    return task
