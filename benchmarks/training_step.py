"""The cost of RM-LoRA per training step, over PEFT LoRA of the same rank.

Both contestants are a transformers ``Trainer`` on MiniLM with LoRA of rank 8 on all 36 projections; one has the RM-LoRA
callback. They run in separate processes pinned to the same cores, in alternating order, and each process reports the median
of its steps after a warm-up. The callback's own time is also measured from inside; noise affects that figure least.

    python -m benchmarks.training_step            # writes benchmarks/results/training_step.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.results import environment, write_result

METHODS = ("lora", "rmlora")
LENGTH, BATCH, RANK, ACTIVE = 64, 32, 8, 4
SEED = 0


def main() -> None:
    """Compare, print and write the result file; or, with ``--worker``, be one contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of processes (default %(default)s)")
    parser.add_argument("--steps", type=int, default=14, help="timed steps in each process (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before timing (default %(default)s)")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(run_worker(arguments.worker, arguments.steps, arguments.warmup)))
        return
    result = compare(arguments.rounds, arguments.steps, arguments.warmup)
    path = write_result("training_step", result)
    print(
        f"LoRA {result['lora']['step_ms']:.1f} ms, RM-LoRA {result['rmlora']['step_ms']:.1f} ms a step: "
        f"ratio {result['ratio']['median']:.3f} [{result['ratio']['min']:.3f}, {result['ratio']['max']:.3f}] over "
        f"{arguments.rounds} pairs; the callback itself {result['rmlora']['callback_ms']:.2f} ms "
        f"({100 * result['callback_share']:.2f} % of a LoRA step). Written to {path}."
    )


def compare(rounds: int, steps: int, warmup: int) -> dict[str, Any]:
    """Run each contestant ``rounds`` times, alternating, and return medians, spread and ratio."""
    runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for index in range(rounds):
        for method in METHODS if index % 2 == 0 else reversed(METHODS):
            command = [sys.executable, "-m", "benchmarks.training_step", "--worker", method]
            command += ["--steps", str(steps), "--warmup", str(warmup)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[method].append(json.loads(output.splitlines()[-1]))
            print(f"round {index + 1}/{rounds} {method}: {runs[method][-1]['step_ms']:.1f} ms", file=sys.stderr)
    ratios = [b["step_ms"] / a["step_ms"] for a, b in zip(runs["lora"], runs["rmlora"], strict=True)]
    lora_ms = statistics.median(run["step_ms"] for run in runs["lora"])
    callback_ms = statistics.median(run["callback_ms"] for run in runs["rmlora"])
    return {
        "environment": environment(),
        "settings": {
            "model": "MiniLM-L6, 36 projections",
            "batch": BATCH,
            "length": LENGTH,
            "rank": RANK,
            "active_rank": ACTIVE,
            "rounds": rounds,
            "steps": steps,
            "warmup": warmup,
            "seed": SEED,
        },
        "lora": {"step_ms": lora_ms, "runs": runs["lora"]},
        "rmlora": {
            "step_ms": statistics.median(run["step_ms"] for run in runs["rmlora"]),
            "callback_ms": callback_ms,
            "runs": runs["rmlora"],
        },
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "callback_share": callback_ms / lora_ms,
    }


def run_worker(method: str, steps: int, warmup: int) -> dict[str, float]:
    """Train ``warmup + steps`` steps and return the median time of a step and of its callback, in milliseconds."""
    import torch
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    from benchmarks.assets import minilm
    from rmlora.callback import RMLoRACallback
    from rmlora.config import RMLoRAConfig
    from rmlora.tasks import get_task
    from rmlora.torch_models import load_task_model, quiet_transformers

    set_seed(SEED)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config = RMLoRAConfig(
        rank=RANK,
        active_rank=ACTIVE,
        target_modules=("query", "key", "value", "dense"),
        exclude_modules=("pooler.dense",),
    )
    model = load_task_model(minilm(), get_task("text-classification"), ["no", "yes"]).model
    adapted = get_peft_model(model, config.to_peft(task_type="SEQ_CLS"))
    ends: list[float] = []
    spent: list[float] = []

    class StepClock(TrainerCallback):
        """Records when each step ends."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    class TimedRMLoRA(RMLoRACallback):
        """The callback, with its work in each step timed."""

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            super().on_pre_optimizer_step(*args, **kwargs)
            spent.append(time.perf_counter() - start)

    generator = torch.Generator().manual_seed(SEED)
    rows = BATCH * (steps + warmup)
    data = Dataset.from_dict(
        {
            "input_ids": torch.randint(1000, 20000, (rows, LENGTH), generator=generator).tolist(),
            "attention_mask": [[1] * LENGTH] * rows,
            "labels": torch.randint(0, 2, (rows,), generator=generator).tolist(),
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        settings = TrainingArguments(
            directory,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=1e-3,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=SEED,
        )
        callbacks: list[TrainerCallback] = [StepClock()]
        if method == "rmlora":
            callbacks.append(TimedRMLoRA(config))
        with quiet_transformers():
            Trainer(model=adapted, args=settings, train_dataset=data, callbacks=callbacks).train()
    durations = [after - before for before, after in itertools.pairwise(ends)][warmup:]
    return {
        "step_ms": 1e3 * statistics.median(durations),
        "callback_ms": 1e3 * statistics.median(spent[warmup:]) if spent else 0.0,
    }


if __name__ == "__main__":
    main()
