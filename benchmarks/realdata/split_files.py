"""Write the splits of a dataset as the files that training reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.realdata.datasets import INSTRUCTIONS, QUESTIONS, READERS, TAGGED
from benchmarks.realdata.example import Example
from benchmarks.realdata.splitting import groups_of, split
from rmlora.errors import InputError
from rmlora.storage import atomic_directory, write_json
from rmlora.training.tagged_cells import text_of_spans

__all__ = ["row_of", "write_parts", "write_splits"]

_RECIPE = "splits.json"
_SYSTEM = "Answer with the command as JSON."
"""What a language model is told before every prompt."""


def write_splits(
    name: str, target: Path, *, seed: int = 0, test: float = 0.1, validation: float = 0.1, limit: int | None = None
) -> Path:
    """Write ``train``, ``validation`` and ``test`` of a dataset under ``target`` and return it.

    Texts become ``<split>.jsonl`` with the columns text and label, and text_pair for pairs, or messages, or tokens and ner_tags, or question, context and
    answers; images become ``<split>/<label>/<number>.png``. A group is never divided; the shares are then of groups.

    Args:
        name: one of :data:`READERS`.
        target: directory to create; if an equal call has written it, it is kept.
        seed: decides which split an example is in.
        test: share of examples to test with.
        validation: share of examples to validate with.
        limit: largest number of training examples.

    Raises:
        InputError: ``target`` exists and holds something else, say another seed's splits.
    """
    recipe = {"name": name, "seed": seed, "test": test, "validation": validation, "limit": limit}
    if target.exists():
        if _recipe(target) != recipe:
            raise InputError(f"{target} exists and does not hold these splits of {name}: delete it or name another.")
        return target
    examples = READERS[name]()
    groups = groups_of(examples)
    order = np.random.default_rng(seed).permutation(len(groups))
    ends = np.cumsum([round(test * len(groups)), round(validation * len(groups))])
    divided = [list(chain.from_iterable(groups[i] for i in part)) for part in np.split(order, ends)]
    parts = dict(zip(("test", "validation", "train"), divided, strict=True))
    parts["train"] = parts["train"][:limit]
    with atomic_directory(target) as directory:
        write_json(directory / _RECIPE, recipe)
        for part, indices in parts.items():
            _write_part(directory, part, [examples[i] for i in indices], name)
    return target


def write_parts(
    examples: Sequence[Example], name: str, target: Path, *, train: int, validation: int, test: int, seed: int = 0
) -> Path:
    """Write parts of so many examples of the dataset ``name`` in the files of :func:`write_splits`; return ``target``.

    Raises:
        InputError: there are not enough examples.
    """
    target.mkdir()
    parts = split(examples, seed=seed, train=train, validation=validation, test=test)
    for part, indices in parts._asdict().items():
        _write_part(target, part, [examples[index] for index in indices], name)
    return target


def _write_part(directory: Path, part: str, examples: Sequence[Example], name: str) -> None:
    if isinstance(examples[0].input, np.ndarray):
        _write_images(directory / part, examples)
        return
    lines = [json.dumps(row_of(example, name), ensure_ascii=False) for example in examples]
    (directory / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _recipe(directory: Path) -> Any:
    """Return the arguments that :func:`write_splits` recorded in ``directory``, or None if it did not write there."""
    try:
        return json.loads((directory / _RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def row_of(example: Example, name: str) -> dict[str, Any]:
    """Return the columns of an example of the dataset ``name``; images have none."""
    if name in INSTRUCTIONS:
        turns = {"system": _SYSTEM, "user": example.input, "assistant": example.label}
        return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}
    if name in TAGGED:
        tagged = text_of_spans(example.input, json.loads(str(example.label)), where=name)
        words = [example.input[start:stop] for start, stop in tagged.sentence.words]
        return {"tokens": words, "ner_tags": list(tagged.tags)}
    if isinstance(example.input, str):
        return {"text": example.input, "label": example.label}
    if name in QUESTIONS:
        question, context = example.input
        starts, texts = zip(*json.loads(str(example.label)), strict=True) if example.label != "[]" else ((), ())
        return {"question": question, "context": context, "answers": {"text": [*texts], "answer_start": [*starts]}}
    text, text_pair = example.input
    return {"text": text, "text_pair": text_pair, "label": example.label}


def _write_images(directory: Path, examples: Sequence[Example]) -> None:
    from PIL import Image

    for number, example in enumerate(examples):
        folder = directory / str(example.label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(example.input).save(folder / f"{number:05}.png")
