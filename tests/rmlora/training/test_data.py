"""Bad data is refused in one sentence, and the validation split keeps label shares and copies together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rmlora.tasks import get_task
from rmlora.training.data import Columns, load_splits, stratified
from tests.helpers.cli import fails


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "w1 w2", "label": "a"}\n{"text": "w3", "label": "a"}\n', "has only one label ('a')"),
        (
            '{"text": "", "label": "a"}\n{"text": "w3", "label": "b"}\n',
            "bad.jsonl has no 'text': fill it in or leave it out with --skip-empty",
        ),
        ('{"text": "w1", "label": null}\n{"text": "w3", "label": "b"}\n', "Line 1 of"),
        ('{"body": "w1", "label": "a"}\n', "has none of the columns text, sentence"),
        ('{"text": "w1", "lab": "a"}\n', "has none of the columns label, labels"),
        ("{not json\n", "cannot be read as a dataset"),
        ("", "is empty: there is nothing to train on"),
    ],
)
def test_bad_data_is_refused_in_one_sentence(base: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    fails(3, message, "train", "--base", base, "--train", path, "-o", tmp_path / "adapter")
    assert {item.name for item in tmp_path.iterdir()} == {"bad.jsonl"}


def test_validation_keeps_shares_and_never_splits_copies(tmp_path: Path) -> None:
    rows = [{"text": f"text {number // 2}", "label": str(number // 2 % 2)} for number in range(80)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    splits = load_splits(
        get_task("text-classification"), str(path), None, None, columns=Columns(), validation_fraction=0.2, seed=1
    )
    train, validation = splits.train, splits.validation
    assert not set(train[0]) & set(validation[0])
    assert len(validation[0]) == 16
    assert sum(validation[1]) == 8


def test_many_labels_are_split_without_comparing_each_row_with_each_label() -> None:
    compared = 0

    class Label(int):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int(self) == other

        __hash__ = int.__hash__

    rows = [Label(number % 500) for number in range(2000)]
    chosen = stratified([f"w{row}" for row in range(2000)], rows, 0.25, [], np.random.default_rng(0), "data.csv")
    assert len(chosen) == 500 and compared < 20 * len(rows)
