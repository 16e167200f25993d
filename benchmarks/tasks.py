"""Every task on real data, from training to bundles: the metric in PyTorch and of each bundle, on the same test rows.

Texts are trained on MiniLM-L6, images on DINOv2-small. Two adapters are trained for every task, with two seeds, the second one
briefly; the first is exported merged, and both with branches, in fp32 and in int8. The metrics are those that ``export`` measures
on the test rows and writes into the bundle; rows that use the adapters in turn are compared with PyTorch, adapter by adapter.

    python -m benchmarks.tasks           # benchmarks/results/tasks.json, about 40 minutes of one core
    python -m benchmarks.tasks --resume  # goes on after an interruption
    python -m benchmarks.tasks --quick   # build/tasks-quick/tasks.json: few rows, one epoch
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.assets import dinov2_small, minilm
from benchmarks.plain_trainer import banded_pairs, short_pairs
from benchmarks.realdata import DATASETS, QUESTIONS, TAGGED, Example, write_parts
from benchmarks.results import RESULTS, environment, write_result
from rmlora.errors import ParityError
from rmlora.quiet import quiet_transformers
from rmlora_deploy import export, train

__all__ = ["CASES", "FORMS", "Case", "slots_of"]

_QUICK_RESULTS = Path("build") / "tasks-quick"
_DINOV2 = Path("build") / "models" / "dinov2-small"

FORMS: Mapping[str, Mapping[str, Any]] = {
    "merged, fp32": {},
    "branches, fp32": {"branches": True},
    "merged, int8": {"precision": "int8"},
    "branches, int8": {"branches": True, "precision": "int8"},
}
"""Name → what is exported."""


@dataclass(frozen=True)
class Case:
    """One task with its data."""

    task: str
    dataset: str
    read: Callable[[], list[Example]]
    base: Callable[[], Path] = minilm
    rows: Mapping[str, int] = field(default_factory=lambda: {"train": 600, "validation": 150, "test": 500})
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the training."""

    @property
    def several(self) -> bool:
        """True if a row may have several labels; few training rows may lack some of them."""
        return self.settings.get("problem_type") == "multi_label_classification"


def slots_of() -> list[Example]:
    """Return sentences to a home, labeled by the kinds of things that they name: ``area|name``."""
    kinds = {example: {kind for _, _, kind in json.loads(str(example.label))} for example in TAGGED["slots"]()}
    return [example._replace(label="|".join(sorted(found))) for example, found in kinds.items() if found]


def _dinov2() -> Path:
    return dinov2_small(_DINOV2)


_IMAGES: dict[str, Any] = {
    "base": _dinov2,
    "settings": {"image_size": 98, "epochs": 3, "batch_size": 16},
}
CASES: Mapping[str, Case] = {
    "one label of a text": Case("text-classification", "trec", DATASETS["trec"], settings={"max_length": 32}),
    "several labels of a text": Case(
        "text-classification",
        "kinds of slots",
        slots_of,
        settings={
            "max_length": 48,
            "problem_type": "multi_label_classification",
            "threshold": "best",
            "epochs": 8,
            "batch_size": 16,
        },
    ),
    "one label of a pair": Case("text-classification", "stsb", banded_pairs, settings={"max_length": 48}),
    "a number for a pair": Case(
        "text-classification", "stsb", short_pairs, settings={"max_length": 48, "problem_type": "regression"}
    ),
    "entities": Case("token-classification", "slots", TAGGED["slots"], settings={"max_length": 48, "batch_size": 16}),
    "answers": Case(
        "question-answering",
        "questions",
        QUESTIONS["questions"],
        rows={"train": 600, "validation": 150, "test": 2000},  # with 500, chance moves this metric by more than a point
        settings={"max_length": 256, "epochs": 6, "batch_size": 16},
    ),
    "vectors of texts": Case("feature-extraction", "stsb", short_pairs, settings={"max_length": 48, "pooling": "cls"}),
    "one label of an image": Case("image-classification", "mnist", DATASETS["mnist"], **_IMAGES),
    "vectors of images": Case("image-feature-extraction", "animals", DATASETS["animals"], **_IMAGES),
}
"""What the table calls it → the task."""


def main() -> None:
    """Run every case; write the file whenever one is finished, and print its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"few rows, one epoch; writes to {_QUICK_RESULTS}")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default %(default)s); set OMP_NUM_THREADS too")
    parser.add_argument("--resume", action="store_true", help="keep the rows that an interrupted command wrote")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one, again; repeatable")
    options = parser.parse_args()
    target = _QUICK_RESULTS if options.quick else RESULTS
    file = target / "tasks.json"
    keep = options.resume or options.case
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if keep and file.exists() else {}
    left = options.case or [name for name in CASES if name not in rows]
    if any(CASES[name].base is _dinov2 for name in left):
        _dinov2()  # once, before processes would write it at the same time
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        running = {pool.submit(_run, name, options.quick): name for name in left}
        for done in as_completed(running):
            rows[running[done]] = done.result()
            print(json.dumps({running[done]: done.result()}), flush=True)
            ordered = {name: rows[name] for name in CASES if name in rows}
            write_result("tasks", {"environment": environment(), "rows": ordered}, target)


def _run(name: str, quick: bool) -> dict[str, Any]:
    """Train and export one case; return its row."""
    case = CASES[name]
    rows = {"train": 48, "validation": 40, "test": 40} if quick else dict(case.rows)
    settings = {**case.settings, **({"epochs": 1} if quick else {})}
    examples = case.read()
    if case.several:
        settings["labels"] = sorted({label for example in examples for label in str(example.label).split("|")})
    with tempfile.TemporaryDirectory() as directory, quiet_transformers():
        work = Path(directory)
        data = write_parts(examples, case.dataset, work / "data", **rows)
        suffix = ".jsonl" if (data / "test.jsonl").exists() else ""
        files = {part: str(data / f"{part}{suffix}") for part in rows}
        for number, epochs in (("0", settings.get("epochs", 3)), ("1", 1)):
            train(
                case.base(), files["train"], work / number, task=case.task, seed=int(number), validation=files["validation"],
                **{**settings, "epochs": epochs},
            )  # fmt: skip
        found = {form: _export(case, work, files, **options) for form, options in FORMS.items()}
    first = next(iter(found.values()))
    return {
        "task": case.task, "data": case.dataset, "rows": rows, "settings": settings, "metric": first["metric"],
        "pytorch": first["pytorch"], "bundles": found,
    }  # fmt: skip


def _export(
    case: Case, work: Path, files: Mapping[str, str], *, branches: bool = False, precision: str = "fp32"
) -> dict[str, Any]:
    """Export a bundle and return what it records; int8 of a merged adapter is calibrated on the validation rows."""
    output = work / f"bundle-{branches}-{precision}"
    calibrated = {"calibration": files["validation"]} if precision == "int8" and not branches else {}
    adapters: Any = {"first": work / "0", "second": work / "1"} if branches else {"first": work / "0"}
    try:
        bundle = export(
            case.base(), adapters, output, mode="branches" if branches else "merged", precision=precision,  # type: ignore[arg-type]
            data={"first": files["test"]}, **calibrated,
        )  # fmt: skip
    except ParityError as error:
        return {"refused": str(error)}
    report = bundle.manifest.verification
    assert report is not None
    row = (report.adapters or {})["first"] if branches else report
    assert row.evaluation is not None and row.onnx is not None
    return {
        "metric": row.evaluation.metric,
        "pytorch": row.evaluation.pytorch,
        "onnx": row.evaluation.onnx,
        "largest_error": row.onnx.max_relative_error,
        "mixed_error": report.mixed.max_relative_error if report.mixed is not None else None,
    }


if __name__ == "__main__":
    main()
