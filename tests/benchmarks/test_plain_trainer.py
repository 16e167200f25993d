"""The comparison with a plain script: what is compared, the script's rows and metrics, and that it stands alone."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import plain_script
from benchmarks.plain_script import ENTITIES, PAIR_CLASSES, SIMILARITY
from benchmarks.plain_trainer import LORA, METHODS, PLAIN, RMLORA, band, finished_runs, summarize
from rmlora.errors import InputError


def run(method: str, seed: int, pearson: float) -> dict[str, object]:
    return {"task": "similarity", "method": method, "seed": seed, "test": {"pearson": pearson}}


def test_differences_are_paired_by_seed() -> None:
    plain = {0: 0.70, 1: 0.80, 2: 0.75}
    runs = [run(PLAIN, seed, value) for seed, value in plain.items()]
    runs += [run(LORA, seed, plain[seed] + gain) for seed, gain in ((2, 0.03), (0, 0.01), (1, 0.02))]
    runs += [run(RMLORA, seed, 0.9) for seed in plain]
    rows = {row["method"]: row for row in summarize(runs)}
    assert rows[PLAIN]["mean"] == pytest.approx(75)
    assert rows[PLAIN]["std"] == pytest.approx(5)
    difference = rows[LORA]["minus_plain"]
    assert difference["values"] == pytest.approx([1, 2, 3])
    assert difference["half_width_95"] == pytest.approx(4.303 / 3**0.5)
    assert difference["verdict"] == "tie"


def test_a_single_seed_has_no_interval() -> None:
    rows = summarize([run(method, 0, 0.5) for method in METHODS])
    lora = next(row for row in rows if row["method"] == LORA)
    assert lora["std"] is lora["minus_plain"]["half_width_95"] is lora["minus_plain"]["verdict"] is None


def test_only_runs_of_the_same_settings_are_kept(tmp_path: Path) -> None:
    report = {"rows": {"train": 4}, "settings": {"x": 1}, "environment": {"packages": {"torch": "2"}}}
    file = tmp_path / "plain_trainer.json"
    assert finished_runs(file, report) == []
    runs = [run(PLAIN, 0, 0.5)]
    file.write_text(json.dumps({**report, "runs": runs}))
    assert finished_runs(file, report) == runs
    for other in ({"rows": {"train": 5}}, {"environment": {"packages": {"torch": "3"}}}):
        with pytest.raises(InputError, match="leave --resume out"):
            finished_runs(file, {**report, **other})


def test_grades_become_classes() -> None:
    assert [band(grade) for grade in (0, 1.9, 2, 3.9, 4, 5)] == ["different"] * 2 + ["related"] * 2 + ["same"] * 2


def test_the_script_imports_nothing_of_this_project() -> None:
    tree = ast.parse(Path(plain_script.__file__).read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert not {name for name in modules if name.startswith(("rmlora", "benchmarks"))}


class Letters(dict[str, list[int]]):
    """Words as a tokenizer encodes them for which every letter is a token, between two special ones."""

    def __init__(self, words: list[str], **options: object) -> None:
        super().__init__(input_ids=[0] * (len("".join(words)) + 2))
        self._words = words

    def word_ids(self) -> list[int | None]:
        return [None, *(number for number, word in enumerate(self._words) for _ in word), None]


def test_only_the_first_token_of_a_word_has_its_tag() -> None:
    row = {"tokens": ["ab", "c"], "ner_tags": ["B-x", "O"]}
    labels = ENTITIES.label_names({"train": [row]})
    assert labels == ["B-x", "O"]
    assert ENTITIES.encode(Letters, row, labels, 9)["labels"] == [-100, 0, -100, 1, -100]


def test_metrics_of_the_script() -> None:
    def found(predictions: object, labels: object) -> SimpleNamespace:
        return SimpleNamespace(predictions=np.asarray(predictions), label_ids=np.asarray(labels))

    assert SIMILARITY.score(found([[1], [2], [3]], [2, 4, 6]), []) == pytest.approx({"pearson": 1, "spearman": 1})
    assert PAIR_CLASSES.score(found([[1, 0], [1, 0]], [0, 1]), []) == pytest.approx(
        {"accuracy": 1 / 2, "macro_f1": 1 / 3}
    )
    tags = ["B-x", "I-x", "O"]
    scores = ENTITIES.score(found([np.eye(3)[[2, 0, 2, 0, 2]]], [[-100, 0, 1, 0, -100]]), tags)
    assert scores == pytest.approx({"f1": 1 / 2, "accuracy": 2 / 3})
