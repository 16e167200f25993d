"""Worker: trains MiniLM a few steps. The job has ``method``, ``steps`` and ``warmup``."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from benchmarks.assets import minilm
from benchmarks.worker import read_job, report, versions
from rmlora.callback import RMLoRACallback
from rmlora.config import RMLoRAConfig
from rmlora.quiet import quiet_transformers
from rmlora.tasks import get_task
from rmlora.torch_models import load_task_model

LENGTH, BATCH, RANK, ACTIVE = 64, 32, 8, 4
SEED = 0
CONFIG = RMLoRAConfig(
    rank=RANK,
    active_rank=ACTIVE,
    target_modules=("query", "key", "value", "dense"),
    exclude_modules=("pooler.dense",),
)


def main() -> None:
    """Train ``warmup + steps`` steps and report the median time of a step and of RM-LoRA's callback, in milliseconds."""
    job = read_job()
    torch.set_num_threads(job["threads"])
    set_seed(SEED)
    count = job["warmup"] + job["steps"]
    clock, callbacks = StepClock(), []
    if job["method"] == "rmlora":
        callbacks.append(TimedRMLoRA(CONFIG))
    with tempfile.TemporaryDirectory() as directory, quiet_transformers():
        model = adapted(job["method"], count)
        if job["method"] == "adalora":
            callbacks.append(AllocateBudget(model))
        settings = TrainingArguments(
            directory, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=1e-3, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=not torch.cuda.is_available(), seed=SEED,
        )  # fmt: skip
        Trainer(model=model, args=settings, train_dataset=random_data(count), callbacks=[clock, *callbacks]).train()
    durations = [after - before for before, after in itertools.pairwise(clock.ends)][job["warmup"] :]
    more = {"callback_ms": 1e3 * statistics.median(TimedRMLoRA.spent[job["warmup"] :])} if TimedRMLoRA.spent else {}
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    report(
        {"step": 1e3 * statistics.median(durations)},
        trained_parameters=trained,
        versions=versions("torch", "transformers", "peft"),
        **more,
    )


def adapted(method: str, steps: int) -> Any:
    """Return the model with what ``method`` trains; ``head`` trains the classifier alone."""
    model: Any = load_task_model(minilm(), get_task("text-classification"), ["no", "yes"]).model
    if method == "full":
        return model
    if method == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("classifier")
        return model
    config: Any = CONFIG.to_peft(task_type="SEQ_CLS")
    if method == "dora":
        config = LoraConfig(**{**shared(config), "use_dora": True, "r": RANK})
    if method == "adalora":
        # AdaLoRA starts at half as many directions again as it keeps, as in its paper.
        config = AdaLoraConfig(
            **shared(config), init_r=3 * RANK // 2, target_r=RANK, tinit=1, tfinal=1, deltaT=1, total_step=max(steps, 4)
        )
    return get_peft_model(model, config)


def shared(config: LoraConfig) -> dict[str, Any]:
    """Return the settings that all of PEFT's methods have."""
    names = ("target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "task_type", "modules_to_save", "bias")
    return {name: getattr(config, name) for name in names}


def random_data(steps: int) -> Dataset:
    """Return rows of random tokens without padding."""
    generator = torch.Generator().manual_seed(SEED)
    rows = BATCH * steps
    return Dataset.from_dict(
        {
            "input_ids": torch.randint(1000, 20000, (rows, LENGTH), generator=generator).tolist(),
            "attention_mask": [[1] * LENGTH] * rows,
            "labels": torch.randint(0, 2, (rows,), generator=generator).tolist(),
        }
    )


class StepClock(TrainerCallback):
    """Records when each step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


class TimedRMLoRA(RMLoRACallback):
    """RM-LoRA's callback, with its work in each step timed: noise affects that figure least."""

    spent: list[float] = []  # noqa: RUF012 - one callback in this process

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        super().on_pre_optimizer_step(*args, **kwargs)
        self.spent.append(time.perf_counter() - start)


class AllocateBudget(TrainerCallback):
    """Lets AdaLoRA choose its directions after each step, which PEFT leaves to the training loop."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def on_optimizer_step(self, args: Any, state: Any, *more: Any, **kwargs: Any) -> None:
        self.model.base_model.update_and_allocate(state.global_step)


if __name__ == "__main__":
    main()
