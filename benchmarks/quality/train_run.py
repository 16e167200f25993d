"""One run of the study: train a contestant with the transformers Trainer, and measure it (torch, transformers, peft)."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from benchmarks.quality.methods import METHODS, Method
from benchmarks.quality.rank_correlation import rank_correlation
from benchmarks.quality.study import SIZES, VALIDATION, RunSpec, StudyTask, study_task
from benchmarks.realdata import DATASETS, Example, split

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import Trainer

    from rmlora.training.features import Examples

__all__ = ["Trained", "base_of", "evaluate", "examples_of", "fit", "labels_of", "train_run"]

_EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Trained:
    """A model after its run, and the data it is measured on."""

    model: PeftModel
    data: dict[str, Examples]
    graded: bool
    steps: int
    seconds: float

    def score(self, part: str) -> tuple[float, float]:
        """Return score and mean loss on ``validation`` or ``test``."""
        return evaluate(self.model, self.data[part], graded=self.graded)


def train_run(spec: RunSpec, models: Path) -> dict[str, Any]:
    """Carry out a run and return its figures.

    Args:
        spec: what to train.
        models: directory for checkpoints that are rebuilt from packages, shared by all runs.

    Returns:
        score (accuracy; of graded pairs, Spearman's rank correlation) and loss on validation and test data, the effective rank
        of the update, parameters trained, optimizer steps, seconds of training, and the device.
    """
    trained = fit(spec, models)
    validation, test = trained.score("validation"), trained.score("test")
    METHODS[spec.method].finish(trained.model)
    return {
        "validation_score": validation[0],
        "validation_loss": validation[1],
        "test_score": test[0],
        "test_loss": test[1],
        "effective_rank": _effective_rank(trained.model) if METHODS[spec.method].measures_spectrum else None,
        "trainable_parameters": sum(p.numel() for p in trained.model.parameters() if p.requires_grad),
        "steps": trained.steps,
        "seconds": round(trained.seconds, 2),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def fit(spec: RunSpec, models: Path) -> Trained:
    """Train the model of a run."""
    from transformers import set_seed

    task, method = study_task(spec.task), METHODS[spec.method]
    data = _splits(spec.task, spec.size, spec.seed, models)
    set_seed(spec.seed)
    schedule = SIZES[spec.size]
    steps = schedule.epochs * math.ceil(len(data["train"]) / schedule.batch)
    labels = 1 if task.graded else len(labels_of(spec.task))
    model, config = _adapted_model(task, method, labels, steps, models)
    with tempfile.TemporaryDirectory() as directory:
        trainer = _trainer(model, data["train"], spec, labels, directory)
        for callback in method.callbacks(model, config, spec.learning_rate):
            trainer.add_callback(callback)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return Trained(model, data, task.graded, trainer.state.global_step, seconds)


@lru_cache(maxsize=2)
def _examples(dataset: str) -> Sequence[Example]:
    return DATASETS[dataset]()


@lru_cache(maxsize=8)
def labels_of(task: str) -> list[str]:
    """Return the names of the labels in the order of the head's outputs."""
    return sorted({str(example.label) for example in _examples(study_task(task).dataset)})


@lru_cache(maxsize=4)
def _splits(name: str, size: int, seed: int, models: Path) -> dict[str, Examples]:
    """Return the prepared training, validation and test data of a task; small training sets are part of larger ones."""
    task, labels = study_task(name), labels_of(name)
    parts = examples_of(name, seed)
    parts = {**parts, "train": parts["train"][:size]}
    return {part: _prepared(task, examples, labels, models) for part, examples in parts.items()}


@lru_cache(maxsize=4)
def examples_of(name: str, seed: int) -> dict[str, list[Example]]:
    """Return the examples of a task that are left for training, those for validation and those for testing."""
    task = study_task(name)
    examples = _examples(task.dataset)
    parts = split(examples, seed=seed, validation=VALIDATION, test=task.test)
    return {part: [examples[i] for i in indices] for part, indices in parts._asdict().items()}


def _prepared(task: StudyTask, examples: Sequence[Example], labels: Sequence[str], models: Path) -> Examples:
    from transformers import AutoImageProcessor, AutoTokenizer

    from rmlora.text_pair import text_or_pair
    from rmlora.training.features import ImageExamples, TextExamples

    inputs = [text_or_pair(example.input) for example in examples]
    base = base_of(task, models)
    targets = [example.label if task.graded else labels.index(str(example.label)) for example in examples]
    if task.modality == "text":
        return TextExamples(inputs, targets, AutoTokenizer.from_pretrained(base, trust_remote_code=False), task.length)
    side = {"height": task.length, "width": task.length}
    processor = AutoImageProcessor.from_pretrained(base, size=side, trust_remote_code=False)
    return ImageExamples([Image.fromarray(pixels) for pixels in inputs], targets, processor)


def base_of(task: StudyTask, models: Path) -> Path:
    """Return the checkpoint directory of the task's base model."""
    from benchmarks.assets import dinov2_small, minilm

    return minilm() if task.modality == "text" else dinov2_small(models / "dinov2-small")


def _adapted_model(task: StudyTask, method: Method, labels: int, steps: int, models: Path) -> tuple[PeftModel, Any]:
    import dataclasses

    from rmlora.quiet import quiet_transformers
    from rmlora.tasks import get_task
    from rmlora.torch_models import load_task_model
    from rmlora.training.lora_layers import add_lora_layers

    kind = get_task("text-classification" if task.modality == "text" else "image-classification")
    config = dataclasses.replace(method.configure(steps), target_modules="all-linear")
    with quiet_transformers():
        loaded = load_task_model(
            base_of(task, models),
            kind,
            [str(index) for index in range(labels)],
            problem_type="regression" if task.graded else None,
        )
        return add_lora_layers(loaded, kind, config)


def _trainer(model: PeftModel, train: Examples, spec: RunSpec, labels: int, directory: str) -> Trainer:
    from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

    schedule, method = SIZES[spec.size], METHODS[spec.method]
    arguments = TrainingArguments(
        output_dir=directory,
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.06,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=spec.seed,
        bf16=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=_with_wrong_labels(train, spec, labels) if spec.label_noise else train,
        data_collator=train.collate,
        optimizers=(method.optimizer(model, spec.learning_rate), None),
    )
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    return trainer


def evaluate(model: PeftModel, examples: Examples, *, graded: bool) -> tuple[float, float]:
    """Return score and mean loss; texts of similar length share a batch."""
    device = next(model.parameters()).device
    model.eval()
    order = list(range(len(examples)))
    if hasattr(examples, "lengths"):
        lengths = examples.lengths
        order.sort(key=lambda index: lengths[index])
    logits, labels = [], []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        for start in range(0, len(order), _EVALUATION_BATCH):
            batch = examples.collate([dict(examples[i]) for i in order[start : start + _EVALUATION_BATCH]])
            labels.append(batch.pop("labels"))
            logits.append(model(**{key: value.to(device) for key, value in batch.items()}).logits.float().cpu())
    outputs, targets = torch.cat(logits), torch.cat(labels)
    if graded:
        loss = torch.nn.functional.mse_loss(outputs[:, 0], targets.float())
        return rank_correlation(outputs[:, 0].numpy(), targets.numpy()), float(loss)
    loss = torch.nn.functional.cross_entropy(outputs, targets)
    return float((outputs.argmax(-1) == targets).float().mean()), float(loss)


def _with_wrong_labels(examples: Examples, spec: RunSpec, labels: int) -> list[dict[str, Any]]:
    """Return the examples with a share of their labels replaced by other ones, the same for every method of a seed."""
    generator = np.random.default_rng([spec.seed, round(1000 * spec.label_noise)])
    rows = [dict(examples[index]) for index in range(len(examples))]
    for index in generator.permutation(len(rows))[: round(spec.label_noise * len(rows))]:
        rows[index]["labels"] = int((rows[index]["labels"] + generator.integers(1, labels)) % labels)
    return rows


def _effective_rank(model: PeftModel) -> float:
    """Return the mean effective rank of the updates; it does not depend on their scale."""
    from rmlora.adapter import LoraModule
    from rmlora.factors import find_factors
    from rmlora.spectrum import module_spectrum

    modules = [
        LoraModule(item.module, "linear", *(p.detach().float().cpu().numpy() for p in (item.A, item.B)), scale=1.0)
        for item in find_factors(model)
    ]
    return float(np.mean([module_spectrum(module).effective_rank for module in modules]))
