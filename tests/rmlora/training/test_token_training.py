"""Training labels of words: which tokens are learned, the loss of a step, the figures, and whole runs."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from seqeval.metrics import f1_score

from rmlora.config import RMLoRAConfig
from rmlora.errors import ConfigError
from rmlora.package import load_package
from rmlora.storage import read_json
from rmlora.token_inputs import TokenInputs
from rmlora.training.run import train
from rmlora.training.settings import TrainSettings
from rmlora.training.tag_report import distrust_tags, report_tags, tag_metric
from rmlora.training.tagged_rows import TaggedRows, kept_of_scores, tag_loss
from rmlora.words import Sentence
from tests.helpers.taggers import SLOTS, make_tag_base, tag_rows, word_pieces, write_rows

TAGS = [["O", "B-a", "I-a", "O", "B-b"], ["B-a", "O"], ["O"]]
FOUND = [["O", "B-a", "O", "O", "B-b"], ["B-a", "I-b"], ["O"]]


def test_the_first_token_of_a_word_is_learned() -> None:
    sentences = [Sentence.of(["turn", "lamps", "off"]), Sentence.of(["kitchenette", "\u200b", "lamps", "on"])]
    rows = TaggedRows(sentences, [[0, 1, 2], [3, 4, 1, 2]], TokenInputs(), word_pieces(), 6)
    assert rows[0]["labels"] == [-100, 0, 1, -100, 2, -100]
    assert rows[1]["labels"] == [-100, 3, -100, -100, 1, -100]  # the second word vanishes, the last is cut off
    assert (rows.cut_words, rows.cut_texts, rows.wordless, rows.learned) == (1, 1, 1, 5)
    batch = rows.collate([rows[0], rows[1]])
    assert batch["labels"].shape == batch["input_ids"].shape == (2, 6)


def test_the_loss_of_a_step_is_a_mean_over_its_words() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 6, 3), torch.randint(0, 3, (4, 6))
    labels[:, 0] = labels[1, 2:] = -100
    whole = tag_loss(SimpleNamespace(logits=logits), labels)
    count = (labels != -100).sum()
    parts = [tag_loss(SimpleNamespace(logits=logits[i : i + 1]), labels[i : i + 1], count) for i in range(4)]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(whole, torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    kept = kept_of_scores(logits, labels)
    torch.testing.assert_close(kept[..., 1].sum() / count, whole)
    assert (kept[..., 0] == logits.argmax(-1)).all()


def test_figures_are_seqevals() -> None:
    report = report_tags(TAGS, FOUND, ["O", "B-a", "I-a", "B-b", "I-b"])
    assert report.of_entities and report.f1 == f1_score(TAGS, FOUND)
    assert report.per_class["a"] == {"examples": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert report.per_class["b"]["precision"] == 0.5 and report.found == {"a": 2, "b": 2}
    assert report.accuracy == 6 / 8


def test_bilou_counts_as_the_same_entities_in_iobes() -> None:
    iobes, bilou = [["S-a", "B-a", "I-a", "E-a", "O"]], [["U-a", "B-a", "I-a", "L-a", "O"]]
    wrong = [["O", "B-a", "I-a", "L-a", "O"]]
    assert report_tags(bilou, bilou, ["O", "U-a", "B-a", "I-a", "L-a"]).f1 == 1.0
    assert report_tags(bilou, wrong, ["O", "U-a", "B-a", "I-a", "L-a"]).recall == 0.5
    assert report_tags(iobes, iobes, ["O", "S-a", "B-a", "I-a", "E-a"]).f1 == 1.0


def test_tags_without_prefixes_count_word_by_word() -> None:
    tags = ["O", "noun", "verb"]
    report = report_tags([["noun", "verb", "O"]], [["noun", "noun", "O"]], tags)
    assert not report.of_entities and report.f1 == 0.5 and tag_metric(tags) == "word F1"
    assert distrust_tags(report, "test") == ["The label 'verb' is never predicted for the test data."]


@pytest.mark.parametrize(("found", "f1"), [("O", 1.0), ("B-a", 0.0)])
def test_data_without_entities(found: str, f1: float) -> None:
    report = report_tags([["O", "O"]], [["O", found]], ["O", "B-a"])
    assert report.f1 == f1 and distrust_tags(report, "test") == []


def test_an_adapter_that_finds_nothing_is_distrusted() -> None:
    report = report_tags([["B-a", "O"]], [["O", "O"]], ["O", "B-a"])
    assert "has learned nothing" in distrust_tags(report, "test")[0]


def settings(directory: Path, **changes: Any) -> TrainSettings:
    """Return a run on tiny data that is learned in a few seconds."""
    base = directory / "base"
    if not base.exists():
        make_tag_base(base)
    options: dict[str, Any] = {
        "train": str(write_rows(directory / "train.jsonl", tag_rows(80))),
        "test": str(write_rows(directory / "test.jsonl", tag_rows(20, seed=9))),
        "epochs": 12, "batch_size": 8, "learning_rate": 1e-2, "output": directory / "adapter",
    }  # fmt: skip
    return TrainSettings(**{"base": str(base), "task": "token-classification", **options, **changes})


def test_a_run_learns_the_entities(tmp_path: Path) -> None:
    result = train(settings(tmp_path))
    assert result.metrics["test"]["f1"] == 1.0, result.metrics
    assert list(result.metrics["test"]) == ["f1", "precision", "recall", "accuracy", "loss"]
    assert result.choice.startswith("Kept epoch") and "f1" in result.choice
    adapter = load_package(result.output)
    assert adapter.task == "token-classification"
    assert adapter.labels == ["O", "B-room", "I-room", "B-thing", "I-thing"]
    assert adapter.peft_config["task_type"] == "TOKEN_CLS"
    report = read_json(result.output / "evaluation.json", what="Evaluation")["test"]
    assert report["of_entities"] and set(report["per_class"]) == {"room", "thing"}


def test_all_linear_leaves_the_head_whole(tmp_path: Path) -> None:
    make_tag_base(tmp_path / "with-head", SLOTS)
    made = settings(
        tmp_path,
        base=str(tmp_path / "with-head"),
        epochs=1,
        rmlora=RMLoRAConfig(rank=2, active_rank=2, target_modules="all-linear"),
    )
    adapter = load_package(train(made).output)
    assert "classifier.weight" in adapter.modules_to_save and "classifier" not in adapter.modules


def test_accumulated_batches_take_the_same_step(tmp_path: Path) -> None:
    """Every step is the mean over its words, however many forward passes it takes."""
    rows = tag_rows(12)
    rows += [{"tokens": row["tokens"][-2:], "ner_tags": row["ner_tags"][-2:]} for row in tag_rows(4, seed=5)]
    data = str(write_rows(tmp_path / "rows.jsonl", rows))
    short = {"train": data, "validation": data, "test": None, "epochs": 2, "warmup_ratio": 0.0}
    factors = []
    for name, batch, accumulation in (("whole", 8, 1), ("parts", 2, 4)):
        made = settings(tmp_path, output=tmp_path / name, batch_size=batch, gradient_accumulation=accumulation, **short)
        adapter = load_package(train(made).output)
        factors.append(np.concatenate([module.lora_B.ravel() for module in adapter.modules.values()]))
    np.testing.assert_allclose(factors[0], factors[1], atol=2e-4)


def test_what_is_not_learned_is_said(tmp_path: Path) -> None:
    out = io.StringIO()
    plain = [
        {"tokens": ["turn", "lamps"], "tags": ["verb", "noun"]},
        {"tokens": ["lamps", "on"], "tags": ["noun", "verb"]},
    ]
    data = str(write_rows(tmp_path / "plain.jsonl", plain * 8))
    train(
        settings(tmp_path, train=data, validation=data, test=None, epochs=1, max_length=4),
        console=Console(file=out, width=1000),
    )
    assert "8 words in 8 texts of" in out.getvalue() and "lie beyond 4 tokens" in out.getvalue()
    assert "those of single words" in out.getvalue()


def test_settings_of_other_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="best_metric must be one of f1, accuracy, loss for token-classification"):
        settings(tmp_path, best_metric="macro_f1")
    with pytest.raises(ConfigError, match="--packing is for text-generation"):
        settings(tmp_path, packing=True)
    assert settings(tmp_path, labels=tuple(SLOTS)).token_limit == 256


def test_words_beyond_what_the_base_reads_are_named(tmp_path: Path) -> None:
    long = {"tokens": ["turn"] * 50, "ner_tags": ["O"] * 50}
    data = write_rows(tmp_path / "long.jsonl", [*tag_rows(12), long])
    shown = io.StringIO()
    train(settings(tmp_path, train=str(data), validation=str(data), epochs=1), console=Console(file=shown, width=200))
    assert "The base reads at most 40 tokens: --max-length 256 is lowered to that." in shown.getvalue()
    assert "12 words in 1 text of" in shown.getvalue() and "lie beyond 40 tokens" in shown.getvalue()
