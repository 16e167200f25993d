"""A training script as users write it with PEFT and transformers alone: it imports nothing of this project.

The loss is the model's own, rows are padded by transformers' collators, and the metrics are SciPy's, scikit-learn's and
seqeval's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import Trainer

__all__ = ["ANSWERS", "ENTITIES", "PAIR_CLASSES", "SIMILARITY", "PlainTask", "Recipe", "read_rows", "train_plainly"]

_IGNORED = -100
"""Label of a token that the loss leaves out, in transformers."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What is trained in one task, and how."""

    max_length: int
    """Tokens after which an input is cut."""
    learning_rate: float = 1e-3
    """Its peak; it then falls linearly to 0."""
    warmup_ratio: float = 0.06
    epochs: float = 3
    batch_size: int = 16
    rank: int = 8
    alpha: float = 16.0


@dataclass(frozen=True)
class PlainTask:
    """What differs between the scripts for different tasks."""

    auto_class: str
    collator: str
    """Classes of transformers: the model's, and the one that pads batches."""
    peft_type: str
    metrics: tuple[str, ...]
    """Names of what ``score`` returns; the first one chooses the checkpoint."""
    label_names: Callable[[Mapping[str, list[Row]]], list[str]]
    """Returns the names of the head's outputs in their order, from all parts."""
    encode: Callable[[Any, Row, list[str], int], Row]
    """Makes the model's inputs, with ``labels``, of tokenizer, row, label names and most tokens."""
    score: Callable[[Any, list[str]], dict[str, float]]
    """Makes metrics of the trainer's prediction and the label names."""
    problem_type: str | None = None
    head: str = "classifier"
    """Module that is new, and trained in full."""


def train_plainly(task: PlainTask, data: Path, base: Path, work: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """Train, restore the checkpoint that is best on the validation rows, and measure the test rows.

    Args:
        task: one of this module's.
        data: directory of ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``.
        base: checkpoint directory.
        work: directory for checkpoints.
        recipe: what is trained, and how.
        seed: of head, factors, order of the data and dropout.

    Returns:
        ``test``, the metrics; ``trainable_parameters``; ``steps``.
    """
    from transformers import AutoTokenizer, set_seed

    rows = read_rows(data)
    labels = task.label_names(rows)
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoded = {
        part: [task.encode(tokenizer, row, labels, recipe.max_length) for row in some] for part, some in rows.items()
    }
    set_seed(seed)
    trainer = _trainer(task, _adapted_model(task, base, labels, recipe), tokenizer, encoded, labels, work, recipe, seed)
    trainer.train()
    measured = trainer.predict(encoded["test"]).metrics
    return {
        "test": {name: float(measured[f"test_{name}"]) for name in task.metrics},
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "steps": trainer.state.global_step,
    }


def read_rows(data: Path) -> dict[str, list[Row]]:
    """Return the rows of each part."""
    return {part: _read(data / f"{part}.jsonl") for part in ("train", "validation", "test")}


def _read(file: Path) -> list[Row]:
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _adapted_model(task: PlainTask, base: Path, labels: Sequence[str], recipe: Recipe) -> Any:
    """Return the base with a new head and LoRA on all other linear modules."""
    import transformers
    from peft import LoraConfig, get_peft_model

    options = {} if task.problem_type is None else {"problem_type": task.problem_type}
    model = getattr(transformers, task.auto_class).from_pretrained(base, num_labels=len(labels), **options)
    config = LoraConfig(
        task_type=task.peft_type,
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules="all-linear",
        exclude_modules=[task.head],
        modules_to_save=[task.head],
    )
    return get_peft_model(model, config)


def _trainer(
    task: PlainTask,
    model: Any,
    tokenizer: Any,
    encoded: Mapping[str, list[Row]],
    labels: list[str],
    work: Path,
    recipe: Recipe,
    seed: int,
) -> Trainer:
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=str(work),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_ratio,  # transformers 5 reads a fraction as a ratio
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=task.metrics[0],
        seed=seed,
        report_to=[],
        disable_tqdm=True,
    )
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        data_collator=getattr(transformers, task.collator)(tokenizer),
        compute_metrics=lambda found: task.score(found, labels),
    )


def _encode_pair(tokenizer: Any, row: Row, limit: int) -> Row:
    return dict(tokenizer(row["text"], row["text_pair"], truncation=True, max_length=limit))


def _encode_graded(tokenizer: Any, row: Row, labels: list[str], limit: int) -> Row:
    return {**_encode_pair(tokenizer, row, limit), "labels": float(row["label"])}


def _encode_classified(tokenizer: Any, row: Row, labels: list[str], limit: int) -> Row:
    return {**_encode_pair(tokenizer, row, limit), "labels": labels.index(row["label"])}


def _encode_words(tokenizer: Any, row: Row, labels: list[str], limit: int) -> Row:
    """Return the tokens of a row's words; only the first token of each word has a label."""
    encoded = tokenizer(row["tokens"], is_split_into_words=True, truncation=True, max_length=limit)
    words = encoded.word_ids()
    first = [word is not None and word != previous for previous, word in zip([None, *words], words, strict=False)]
    tags = [
        labels.index(row["ner_tags"][word]) if chosen else _IGNORED for word, chosen in zip(words, first, strict=True)
    ]
    return {**encoded, "labels": tags}


def _encode_question(tokenizer: Any, row: Row, labels: list[str], limit: int) -> Row:
    """Return the tokens of question and context, and those with which the answer begins and ends; the first if there is none."""
    encoded = tokenizer(
        row["question"], row["context"], truncation="only_second", max_length=limit, return_offsets_mapping=True
    )
    offsets, sources = encoded.pop("offset_mapping"), encoded.sequence_ids()
    found = [0, 0]
    if row["answers"]["text"]:
        start = row["answers"]["answer_start"][0]
        end = start + len(row["answers"]["text"][0])
        inside = [i for i, (a, b) in enumerate(offsets) if sources[i] == 1 and a < end and b > start]
        found = [inside[0], inside[-1]] if inside else found
    return {**encoded, "start_positions": found[0], "end_positions": found[1]}


def _score_answers(found: Any, labels: list[str]) -> dict[str, float]:
    """Return the share of answers whose tokens are all right; the likeliest span of up to 30 tokens is the answer."""
    right = []
    for starts, ends, start, end in zip(*found.predictions, *found.label_ids, strict=True):
        spans = np.add.outer(starts, ends)
        allowed = np.tri(len(starts), k=29, dtype=bool) & ~np.tri(len(starts), k=-1, dtype=bool)
        allowed[0, 1:] = False  # the first token stands for no answer, and begins none
        best = np.where(allowed, spans, -np.inf).argmax()
        right.append(best == start * len(starts) + end)
    return {"exact_match": float(np.mean(right))}


def _score_grades(found: Any, labels: list[str]) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr

    sides = found.predictions[:, 0], found.label_ids
    return {"pearson": pearsonr(*sides).statistic, "spearman": spearmanr(*sides).statistic}


def _score_classes(found: Any, labels: list[str]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    sides = found.label_ids, found.predictions.argmax(-1)
    return {"accuracy": accuracy_score(*sides), "macro_f1": f1_score(*sides, average="macro")}


def _score_entities(found: Any, labels: list[str]) -> dict[str, float]:
    from seqeval.metrics import accuracy_score, f1_score

    sides: tuple[list[list[str]], list[list[str]]] = [], []
    for numbers, scores in zip(found.label_ids, found.predictions, strict=True):
        learned = numbers != _IGNORED
        for side, chosen in zip(sides, (numbers, scores.argmax(-1)), strict=True):
            side.append([labels[int(number)] for number in np.asarray(chosen)[learned]])
    return {"f1": f1_score(*sides), "accuracy": accuracy_score(*sides)}


def _classes_in(parts: Mapping[str, list[Row]]) -> list[str]:
    return sorted({row["label"] for rows in parts.values() for row in rows})


def _tags_in(parts: Mapping[str, list[Row]]) -> list[str]:
    return sorted({tag for rows in parts.values() for row in rows for tag in row["ner_tags"]})


SIMILARITY = PlainTask(
    "AutoModelForSequenceClassification", "DataCollatorWithPadding", "SEQ_CLS", ("pearson", "spearman"),
    lambda parts: ["label"], _encode_graded, _score_grades, problem_type="regression",
)  # fmt: skip
"""A number for a pair of texts."""
PAIR_CLASSES = PlainTask(
    "AutoModelForSequenceClassification", "DataCollatorWithPadding", "SEQ_CLS", ("accuracy", "macro_f1"),
    _classes_in, _encode_classified, _score_classes,
)  # fmt: skip
"""A label for a pair of texts."""
ANSWERS = PlainTask(
    "AutoModelForQuestionAnswering", "DataCollatorWithPadding", "QUESTION_ANS", ("exact_match",),
    lambda parts: ["start", "end"], _encode_question, _score_answers, head="qa_outputs",
)  # fmt: skip
"""The answer to a question in its context."""
ENTITIES = PlainTask(
    "AutoModelForTokenClassification", "DataCollatorForTokenClassification", "TOKEN_CLS", ("f1", "accuracy"),
    _tags_in, _encode_words, _score_entities,
)  # fmt: skip
"""A tag for every word."""
