"""Training of vectors: losses and figures are those of sentence-transformers, and whole runs on tiny data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from transformers import AutoModel, CLIPTextConfig, CLIPTextModel

from rmlora.callback import RMLoRACallback
from rmlora.config import RMLoRAConfig
from rmlora.errors import ConfigError, InputError
from rmlora.package import load_package
from rmlora.pooling import Pooling, read_pooling
from rmlora.tasks import get_task
from rmlora.training.embedding_evaluators import retrieval_figures, similarity_figures, triplet_figures
from rmlora.training.embedding_problem import EMBEDDING_PROBLEMS
from rmlora.training.embedding_rows import EmbeddingRows, VectorLoss
from rmlora.training.run import train
from rmlora.training.settings import TrainSettings
from tests.helpers.cli import fails, run, tokenizer
from tests.helpers.encoders import peft_vectors, write_modules
from tests.helpers.similar_texts import pairs, scored_pairs, triplets, write_lines

TASK = get_task("feature-extraction")


def vectors(rows: int, columns: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns, 6)).astype(np.float32)


def test_figures_are_those_of_the_evaluators() -> None:
    found, scores = vectors(9), np.arange(9.0)
    cosines = (found[:, 0] * found[:, 1]).sum(1) / np.linalg.norm(found, axis=2).prod(1)
    assert similarity_figures(found, scores)["spearman"] == pytest.approx(spearmanr(cosines, scores).statistic)
    assert similarity_figures(np.ones_like(found), scores) == {"spearman": 0.0, "pearson": 0.0}
    right = np.stack([np.eye(4), np.eye(4)], 1)
    numbers = np.array([[row, row] for row in range(4)])
    assert retrieval_figures(right, numbers) == {"ndcg_at_10": 1.0, "mrr_at_10": 1.0, "accuracy_at_1": 1.0}
    moved = np.stack([np.eye(4), np.eye(4)[[1, 0, 2, 3]]], 1)
    assert retrieval_figures(moved, numbers)["accuracy_at_1"] == 0.5
    assert triplet_figures(np.stack([np.eye(4), np.eye(4), -np.eye(4)], 1)) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("kind", "rows", "reference"),
    [
        ("scored pairs", [(("w1 w2", "w3"), 1.0), (("w4", "w2 w5 w1"), 3.0), (("w9", "w7"), 2.0)], losses.CoSENTLoss),
        ("triplets", [(("w1 w2", "w3", "w4 w5"), (0, 0)), (("w4", "w2", "w6"), (1, 1))], losses.MultipleNegativesRankingLoss),
    ],
)  # fmt: skip
def test_the_loss_is_that_of_sentence_transformers(base: Path, kind: Any, rows: list[Any], reference: Any) -> None:
    texts, targets = [row for row, _ in rows], [target for _, target in rows]
    examples = EmbeddingRows(texts, targets, TASK.inputs, tokenizer(), 16)
    batch = examples.collate([examples[number] for number in range(len(rows))])
    model = AutoModel.from_pretrained(base).eval()
    got = VectorLoss(EMBEDDING_PROBLEMS[kind].loss(), TASK.outputs, Pooling())(model, batch)
    encoder = SentenceTransformer(str(base), device="cpu").eval()
    columns = [encoder.preprocess(list(column)) for column in zip(*texts, strict=True)]
    torch.testing.assert_close(got, reference(encoder)(columns, batch["labels"]))
    assert examples.longest == [max(len(text.split()) for text in row) for row in texts].index(max(examples.lengths))


def test_scores_that_are_alike_in_a_batch_move_nothing() -> None:
    found = torch.from_numpy(vectors(4)).transpose(0, 1).requires_grad_()
    loss = VectorLoss(EMBEDDING_PROBLEMS["scored pairs"].loss(), TASK.outputs, Pooling())
    loss.of_vectors(found, torch.full((4,), 2.0)).backward()
    assert found.grad is not None and (found.grad == 0).all()


def settings(base: Path, directory: Path, rows: list[dict[str, Any]], **changes: Any) -> TrainSettings:
    options: dict[str, Any] = {
        "train": str(write_lines(directory / "train.jsonl", rows)), "output": directory / "adapter", "epochs": 3, "batch_size": 16,
        "learning_rate": 2e-2, "rmlora": RMLoRAConfig(rank=4, active_rank=4, alpha=8), "validation_fraction": 0.25,
    }  # fmt: skip
    return TrainSettings(**{"base": str(base), "task": "feature-extraction", **options, **changes})


def test_a_run_on_scored_pairs(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    inner = RMLoRACallback.on_pre_optimizer_step
    monkeypatch.setattr(
        RMLoRACallback,
        "on_pre_optimizer_step",
        lambda self, args, state, *more, **others: (
            steps.append(state.global_step),
            inner(self, args, state, *more, **others),
        )[1],
    )
    masked = RMLoRAConfig(rank=8, active_rank=4, alpha=16, orth_weight=0.01)
    test = str(write_lines(tmp_path / "test.jsonl", scored_pairs(40, seed=5)))
    result = train(
        settings(base, tmp_path, scored_pairs(96), test=test, rmlora=masked, pooling="mean", normalize=False, epochs=8)
    )
    assert list(result.metrics["test"]) == ["spearman", "pearson", "loss"]
    assert result.metrics["test"]["spearman"] > result.details["test"]["base"]["spearman"] + 0.1, result
    assert "best Spearman correlation of 8 evaluations" in result.choice and len(steps) == result.steps

    adapter = load_package(result.output)
    assert adapter.peft_config["task_type"] == "FEATURE_EXTRACTION" and adapter.task == "feature-extraction"
    assert adapter.pooling == read_pooling(result.output) == Pooling("mean", normalize=False)
    assert not adapter.modules_to_save and not any("pooler" in path for path in adapter.modules)
    texts = ["w1 w5 w3", "w2"]
    expected = peft_vectors(base, result.output, texts, normalize=False)
    got = SentenceTransformer(str(result.output), device="cpu").encode(texts)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    page = (result.output / "README.md").read_text()
    assert "16 dimensions, mean, not normalized" in page and "SentenceTransformer(" in page
    assert "| Spearman correlation |" in page and "scored pairs" in page
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), result.output)
    assert type(model).__name__ == "PeftModelForFeatureExtraction"


def test_pairs_by_the_command_line(base: Path, tmp_path: Path) -> None:
    rows = pairs(60)
    words = ["train", "--task", "feature-extraction", "--base", base, "-o", tmp_path / "adapter", "--epochs", "2"]
    words += [
        "--overwrite",
        "--no-resume",
        "--train",
        write_lines(tmp_path / "pairs.jsonl", rows),
        "--batch-size",
        "16",
        "--json",
        "--rank",
        "2",
    ]
    done = run(*words, "--learning-rate", "1e-2", "--best-metric", "mrr_at_10", "--gradient-accumulation", "2")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["metrics"]["validation"]) == ["ndcg_at_10", "mrr_at_10", "accuracy_at_1", "loss"]
    assert found["best_metric"] == "mrr_at_10" and "share a text" in done.stderr
    fails(
        2,
        "best_metric must be one of ndcg_at_10, mrr_at_10, accuracy_at_1, loss for pairs",
        *words,
        "--best-metric",
        "spearman",
    )
    fails(2, "With --batch-size 1 pairs teach nothing", *words, "--batch-size", "1")
    fails(2, "--class-weights is for", *words, "--class-weights", "balanced")
    fails(2, "--pooling is for feature-extraction, image-feature-extraction, but the task is text-classification", *[
        word for word in words if word not in ("--task", "feature-extraction")], "--pooling", "cls")  # fmt: skip


def test_seeds_of_triplets_with_patience(base: Path, tmp_path: Path) -> None:
    made = settings(base, tmp_path, triplets(64), seeds=2, patience=1, epochs=2)
    result = train(made)
    assert set(result.seeds["validation"]) == {"accuracy", "loss"} and result.best_metric == "accuracy"


def test_the_pooling_of_the_base_is_kept(base: Path, tmp_path: Path) -> None:
    own = write_modules(Path(shutil.copytree(base, tmp_path / "base")), {"pooling_mode": "cls"})
    result = train(settings(own, tmp_path, triplets(32), epochs=1))
    assert load_package(result.output).pooling == Pooling("cls", normalize=False)


def test_what_cannot_be_trained_is_refused_first(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [*scored_pairs(1), *scored_pairs(1, seed=3)]
    with pytest.raises(InputError, match=r"All scores of the train data \(1 row of .* add rows, or give --validation"):
        train(settings(base, tmp_path, two, validation_fraction=0.5))
    with pytest.raises(
        InputError, match=r"The validation data \(1 row of .*: add rows, raise --validation-fraction, or give --val"
    ):
        train(settings(base, tmp_path, pairs(4)))
    constant = str(write_lines(tmp_path / "constant.jsonl", [{**row, "score": 3} for row in scored_pairs(4)]))
    with pytest.raises(InputError, match=r"All scores of the validation data \(4 rows .*, or give other data"):
        train(settings(base, tmp_path, scored_pairs(8), validation=constant))
    with pytest.raises(
        ConfigError, match="No output of feature-extraction depends on 'pooler'.*leave it out of --modules-to-save"
    ):
        train(settings(base, tmp_path, pairs(20), rmlora=RMLoRAConfig(modules_to_save=("pooler",))))
    with pytest.raises(ConfigError, match="'pooler.dense' matches no module of this model that its outputs depend on"):
        train(settings(base, tmp_path, pairs(20), rmlora=RMLoRAConfig(target_modules=("pooler.dense",))))
    with pytest.raises(
        ConfigError,
        match="--image-size is for image-classification, image-feature-extraction, but the task is feature-extraction",
    ):
        settings(base, tmp_path, pairs(8), image_size=32)
    with pytest.raises(ConfigError, match="pooling must be one of mean, cls, last for feature-extraction"):
        settings(base, tmp_path, pairs(8), pooling="max")
    left = tokenizer()
    left.padding_side = "left"
    monkeypatch.setattr(type(TASK.inputs), "load_processor", lambda *_, **__: left)
    with pytest.raises(ConfigError, match="Pooling by the first token"):
        train(settings(base, tmp_path, pairs(20), pooling="cls"))


def test_a_base_that_peft_cannot_call_is_refused_first(tmp_path: Path) -> None:
    clip = CLIPTextConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, pad_token_id=1,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    CLIPTextModel(clip).save_pretrained(tmp_path / "clip")
    tokenizer().save_pretrained(tmp_path / "clip")
    with pytest.raises(
        ConfigError, match="CLIPTextModel does not take what PEFT's models for feature-extraction pass on"
    ):
        train(settings(tmp_path / "clip", tmp_path, pairs(20)))
