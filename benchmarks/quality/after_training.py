"""What is left of a trained adapter after compression and after quantization of the merged model, by the toolkit's own commands.

Does a higher intrinsic dimension pay once training is over? For RM-LoRA and plain LoRA of the same rank, trained alike:
``compress`` to fewer directions, and ``export`` in lower precisions, each measured on the whole test set.

    python -m benchmarks.quality.after_training            # writes benchmarks/results/quality_after.json
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.quality.campaign import chosen_learning_rate
from benchmarks.quality.plan import ROBUSTNESS_TASKS
from benchmarks.quality.store import RunStore
from benchmarks.quality.study import LEARNING_RATES, SEEDS, RunSpec
from benchmarks.realdata import Example
from benchmarks.results import RESULTS, environment
from rmlora.errors import InputError
from rmlora.storage import write_json

METHODS = ("lora", "rmlora")
RANKS = (4, 2, 1)
PRECISIONS = ("fp32", "int8", "int4")
SIZE = 1000


def main() -> None:
    """Train, compress, export and write the result file; finished runs are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=Path, default=Path("build/models"), help="rebuilt checkpoints (default %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds, from 0 (default %(default)s)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    study = RunStore(RESULTS / "quality.jsonl")
    store = RunStore(RESULTS / "quality_after.jsonl")
    specs = [
        RunSpec(task, SIZE, method, _rate(study, task, method), seed)
        for seed in SEEDS[: options.seeds]
        for task in ROBUSTNESS_TASKS
        for method in METHODS
    ]
    for spec in track([spec for spec in specs if spec not in store], "after training", console=Console()):
        store.add(spec, measure(spec, options.models))
    write_json(RESULTS / "quality_after.json", environment())


def measure(spec: RunSpec, models: Path) -> dict[str, Any]:
    """Train, and return the test score of the adapter, of its compressions and of its exports.

    Returns:
        ``ranks``: directions → score and bytes of the adapter file; ``precisions``: precision → score and bytes of the graph.
    """
    from benchmarks.quality.study import study_task
    from benchmarks.quality.train_run import base_of, examples_of, fit, labels_of
    from rmlora.package import load_package, save_package
    from rmlora_converters.compress import compress_adapter

    trained, labels = fit(spec, models), labels_of(spec.task)
    base = base_of(study_task(spec.task), models)
    with tempfile.TemporaryDirectory() as work:
        full = Path(work) / "full"
        trained.model.save_pretrained(str(full))
        adapter = load_package(full)
        ranks = {"8": {"score": trained.score("test")[0], "bytes": _factor_bytes(adapter)}}
        for rank in RANKS:
            smaller, _ = compress_adapter(adapter, rank=rank, refactor=True)
            save_package(smaller, Path(work) / f"rank{rank}")
            ranks[str(rank)] = {
                "score": _score(base, Path(work) / f"rank{rank}", labels, trained.data["test"]),
                "bytes": _factor_bytes(smaller),
            }
        tested = examples_of(spec.task, spec.seed)["test"]
        precisions = {p: _exported(base, full, Path(work) / p, p, labels, tested) for p in PRECISIONS}
    return {"ranks": ranks, "precisions": precisions}


def _rate(study: RunStore, task: str, method: str) -> float:
    """Return the rate that the study chose for the method."""
    rate = chosen_learning_rate(study, task, SIZE, method, SEEDS[0], LEARNING_RATES)
    if rate is None:
        raise InputError(
            f"The study has not chosen a rate for {method} on {task} yet: run  python -m benchmarks.quality  first."
        )
    return rate


def _factor_bytes(adapter: Any) -> int:
    """Return the bytes of the factors; heads are the same for every rank."""
    return sum(module.lora_A.nbytes + module.lora_B.nbytes for module in adapter.modules.values())


def _score(base: Path, package: Path, labels: Sequence[str], examples: Any) -> float:
    from benchmarks.quality.train_run import evaluate
    from rmlora.quiet import quiet_transformers
    from rmlora.torch_models import load_adapted

    with quiet_transformers():
        model, _ = load_adapted(base, package, task="text-classification", labels=labels)
    return evaluate(model, examples, graded=False)[0]


def _exported(
    base: Path, package: Path, output: Path, precision: str, labels: Sequence[str], tested: Sequence[Example]
) -> dict[str, Any]:
    """Return score and bytes of the merged model in a precision, computed by ONNX Runtime."""
    from rmlora_deploy import export, load

    bundle = export(
        base,
        package,
        output,
        mode="merged",
        precision=precision,
        task="text-classification",
        labels=tuple(labels),  # type: ignore[arg-type]
    )
    answers = load(output).predict([example.input for example in tested])
    size = sum(file.stat().st_size for file in bundle.path.glob("*.onnx*"))
    shutil.rmtree(output)
    right = sum(answer.label == str(example.label) for answer, example in zip(answers, tested, strict=True))
    return {"score": right / len(tested), "bytes": size}


if __name__ == "__main__":
    main()
