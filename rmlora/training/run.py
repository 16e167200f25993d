"""One training run: data and base in, a finished adapter package out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rmlora.answered_text import AnsweredText
from rmlora.base import resolve_base
from rmlora.checkpoint import Checkpoint
from rmlora.config import RMLoRAConfig
from rmlora.errors import CheckpointError, ConfigError, Interrupted, RMLoRAError, require
from rmlora.generated_text import GeneratedText
from rmlora.image_vector import ImageVector
from rmlora.outputs import ClassScores, Outputs, SentenceVector
from rmlora.progress_display import ProgressDisplay
from rmlora.span_scores import SpanScores
from rmlora.storage import check_makeable, refuse_existing
from rmlora.stored_weights import quantization_method
from rmlora.tasks import get_task
from rmlora.token_labels import TokenLabels
from rmlora.torch_models import load_task_model
from rmlora.training.answer_training import AnswerTraining
from rmlora.training.arguments import check_precision, training_arguments
from rmlora.training.classifier_training import ClassifierTraining
from rmlora.training.embedding_training import EmbeddingTraining
from rmlora.training.first_process import is_first_process
from rmlora.training.fit import fit
from rmlora.training.image_vector_training import ImageVectorTraining
from rmlora.training.known_tokens import check_tokens
from rmlora.training.language_training import LanguageTraining
from rmlora.training.lora_layers import add_lora_layers
from rmlora.training.question_training import QuestionTraining
from rmlora.training.rehearsal import rehearse_forward, rehearse_package
from rmlora.training.result import TrainResult, summarize
from rmlora.training.resume import (
    check_run_base,
    claim_run,
    how_to_continue,
    last_complete_checkpoint,
    mark_finished,
    run_is_finished,
)
from rmlora.training.settings import TrainSettings
from rmlora.training.task_training import TaskTraining
from rmlora.training.token_training import TokenTraining
from rmlora.training.trained_package import write_trained_package

if TYPE_CHECKING:
    from peft import PeftModel

    from rmlora.training.features import Examples

__all__ = ["TrainResult", "train"]


def train(
    settings: TrainSettings, *, console: Console | None = None, resume: bool = True, overwrite: bool = False
) -> TrainResult:
    """Train an adapter and write its package to ``settings.output``.

    A killed run continues from its last complete checkpoint when it is started again with the same settings, data and base,
    and ends with the same tensors as an uninterrupted one. Works under torchrun and accelerate.

    Args:
        settings: the run.
        console: where the main process shows progress; None shows nothing.
        resume: continue an interrupted run; False starts over.
        overwrite: replace an existing package.

    Raises:
        ConfigError: settings that do not fit the model or the interrupted run.
        InputError: unusable data or base.
        Interrupted: by Ctrl-C; the message says how to continue.
        TrainingError: the run diverged, or RM-LoRA had no effect.
        OutputError: the package cannot be written.
        DependencyError: a package of the extra ``train`` is not installed.
    """
    console = console or Console(quiet=True)
    _refuse_run_in_output(settings)
    try:
        if settings.seeds > 1:
            from rmlora.training.seeds import train_seeds

            def one(run: TrainSettings) -> TrainResult:
                return _train(run, console, resume=resume, overwrite=True, replace_run=overwrite)

            return train_seeds(settings, one, console=console, overwrite=overwrite)
        return _train(settings, console, resume=resume, overwrite=overwrite, replace_run=overwrite)
    except KeyboardInterrupt:
        raise Interrupted(how_to_continue(settings.checkpoints)) from None


@dataclass(frozen=True)
class _Prepared:
    """What a run trains, and on what."""

    training: TaskTraining
    base: Path
    model: PeftModel
    config: RMLoRAConfig
    processor: Any
    examples: dict[str, Examples]


def _train(
    settings: TrainSettings, console: Console, *, resume: bool, overwrite: bool, replace_run: bool
) -> TrainResult:
    """Train one adapter; ``replace_run`` lets it replace the checkpoints of a finished run with other settings."""
    for module in ("torch", "transformers", "peft", "accelerate", "matplotlib", "scipy", "sklearn"):
        require(module, "train")
    from rmlora.training.run_parts import RunParts

    started = time.monotonic()
    check_makeable(settings.output, replaced=True)
    check_makeable(settings.checkpoints)
    refuse_existing(settings.output, overwrite=overwrite)
    check_precision(settings)
    _refuse_sharding()
    if not is_first_process():
        console = Console(quiet=True)
    with ProgressDisplay(console, "preparing data and base"):
        run = _prepare(settings, console)
    settings = run.training.settings

    arguments = training_arguments(settings)
    processes = arguments.distributed_state
    main_process: bool = processes.is_main_process
    checkpoint = _find_checkpoint(settings, processes, resume=resume, overwrite=replace_run)
    if checkpoint is not None:
        console.print(_continuing(checkpoint), markup=False, soft_wrap=True)
    base_record = _rehearse(run, settings, fresh=checkpoint is None) if main_process else {}
    processes.wait_for_everyone()

    parts = RunParts(settings.checkpoints, started)
    fitted = fit(
        settings, arguments, run.config, run.model, run.examples, run.training, processor=run.processor, checkpoint=checkpoint,
        console=console, callbacks=[parts],
    )  # fmt: skip
    result = summarize(
        fitted, settings, {name: rows.count for name, rows in run.examples.items()}, trainable=_trainable(run.model),
        seconds=parts.seconds, parts=parts.count, main_process=main_process,
    )  # fmt: skip
    if main_process:
        write_trained_package(
            result, settings, run.config, run.model, run.training.task, run.training.metadata(run.model),
            base_record=base_record, base=run.base, log_history=fitted.log_history, processor=run.processor, overwrite=overwrite,
            write_files=partial(run.training.write_files, processor=run.processor),
        )  # fmt: skip
        parts.record()
        mark_finished(settings.checkpoints, result.steps)
    processes.wait_for_everyone()
    return result


def _refuse_run_in_output(settings: TrainSettings) -> None:
    """Raise :class:`ConfigError` if the checkpoints would be where the finished package is put, in place of all that is there."""
    output, run_dir = (os.path.realpath(path) for path in (settings.output, settings.checkpoints))  # never raises
    if Path(run_dir).is_relative_to(output):
        raise ConfigError(
            f"--run-dir {settings.checkpoints} lies in --output {settings.output}, which the finished package replaces as a whole: "
            "choose a directory outside it."
        )


def _refuse_sharding() -> None:
    """Raise :class:`ConfigError` if accelerate's launcher is to shard the model."""
    for name, variable in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(
                f"accelerate is set up for {name}, but this command writes its package from whole parameters: use data parallelism "
                "(torchrun, or accelerate with multi_gpu), or FSDP2 with a program of your own (docs/training.md)."
            )


def _prepare(settings: TrainSettings, console: Console) -> _Prepared:
    """Load data and base, add the LoRA layers, and try the longest row."""
    from transformers import set_seed

    task = get_task(settings.task)
    training = _TRAININGS[type(task.outputs)](settings, task)
    base = resolve_base(settings.base, revision=settings.revision)
    _refuse_quantized(base)
    read = training.load()
    processor = task.inputs.load_processor(base, trust_remote_code=settings.trust_remote_code)
    task.inputs.resize(processor, settings.image_size)
    data = training.check_data(read, processor)
    _show_notes(console, data.notes)
    set_seed(settings.seed)
    loaded = load_task_model(
        base,
        task,
        data.labels,
        problem_type=data.problem_type,
        trust_remote_code=settings.trust_remote_code,
        **training.load_options(),
    )
    training.check_model(loaded, base)
    if shortened := training.fit_length(loaded.model, processor):
        _show_notes(console, shortened)
        known, data = data.notes, training.check_data(read, processor)  # rows that were made before may be longer
        _show_notes(console, [note for note in data.notes if note not in known])
    model, config = add_lora_layers(loaded, task, settings.rmlora)
    examples = training.examples(data, processor)
    check_tokens(model, examples, processor, settings.base)
    rehearse_forward(model, task, examples)
    return _Prepared(training, base, model, config, processor, examples)


def _show_notes(console: Console, notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"Note: {note}", markup=False, soft_wrap=True)


def _refuse_quantized(base: Path) -> None:
    """Raise :class:`CheckpointError` if the weights of ``base`` are stored quantized."""
    if (method := quantization_method(Checkpoint(base).config)) is not None:
        raise CheckpointError(
            f"The base at {base} is quantized with {method}, so an adapter of it could not be merged, and it is not trained: give "
            "the unquantized base that it was made from; --load-in-4bit then rounds a language model while training."
        )


_TRAININGS: dict[type[Outputs], type[TaskTraining]] = {
    ClassScores: ClassifierTraining,
    GeneratedText: LanguageTraining,
    AnsweredText: AnswerTraining,
    TokenLabels: TokenTraining,
    SpanScores: QuestionTraining,
    SentenceVector: EmbeddingTraining,
    ImageVector: ImageVectorTraining,
}
"""Kind of a task's outputs → how it is trained."""


def _trainable(model: PeftModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _rehearse(run: _Prepared, settings: TrainSettings, *, fresh: bool) -> dict[str, Any]:
    """Rehearse writing the package, and check the base; a run that could not end leaves no directory behind."""
    try:
        record = rehearse_package(
            run.model, run.training.task, base=run.base, base_name=settings.base, processor=run.processor,
            scratch=settings.checkpoints / "rehearsal",
        )  # fmt: skip
        check_run_base(settings.checkpoints, record["base_fingerprint"])
        return record
    except RMLoRAError:
        if fresh:
            shutil.rmtree(settings.checkpoints, ignore_errors=True)
        raise


def _continuing(checkpoint: Path) -> str:
    if run_is_finished(checkpoint.parent):
        return (
            f"The run in {checkpoint.parent} had finished with these settings and data: its adapter is written again. To train "
            "anew, pass --no-resume."
        )
    return f"Continuing the interrupted run at {checkpoint.name.replace('-', ' ')}."


def _find_checkpoint(settings: TrainSettings, processes: Any, *, resume: bool, overwrite: bool) -> Path | None:
    """Return the checkpoint to continue from; the main process prepares the run's directory before the others look."""
    checkpoint = None
    if processes.is_main_process:
        # each process reads its own share of a step's examples
        identity = {
            **settings.identity(),
            "data": settings.data_digests(),
            "number_of_processes": int(processes.num_processes),
        }
        checkpoint = claim_run(settings.checkpoints, identity, resume=resume, overwrite=overwrite)
    processes.wait_for_everyone()
    return checkpoint if processes.is_main_process else last_complete_checkpoint(settings.checkpoints)
