"""Pairs of texts from training to answers: recorded, verified, answered as PyTorch does, and never taken for single texts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmlora.errors import InputError
from rmlora_deploy import load
from rmlora_deploy.bench.bench_inputs import random_inputs
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.inference import Classifier
from rmlora_deploy.inspection.model_card import model_card
from tests.helpers.cli import Finished, fails, run, run_process, text_data
from tests.helpers.pairs import pair_base, pair_data

PAIRS = [("w9 w8", "w0 w7"), ("w9 w8 w5 w6 w7 w20 w21", "w1"), ("w4", "w1 w30 w31 w32")]


@dataclass(frozen=True)
class Made:
    """What the tests share."""

    directory: Path
    trained: Finished
    """Of the pair adapter."""

    def __truediv__(self, name: str) -> Path:
        return self.directory / name


def train(directory: Path, data: Path, name: str) -> Finished:
    done = run(
        "train", "--base", directory / "base", "--train", data, "--epochs", "1", "--batch-size", "8", "--rank", "2",
        "--max-length", "24", "-o", directory / name,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("pairs")
    base = pair_base(directory / "base")
    trained = train(directory, pair_data(directory / "pairs.jsonl"), "nli")
    train(directory, text_data(directory / "texts.jsonl"), "colors")
    test = pair_data(directory / "test.jsonl", rows=16, seed=1)
    done = run("export", base, "-a", directory / "nli", "--data", test, "-o", directory / "merged")
    assert done.code == 0, done.stderr
    flags = ["-a", f"nli={directory / 'nli'}", "-a", f"colors={directory / 'colors'}"]
    done = run("export", base, "--mode", "branches", *flags, "--data", f"nli={test}", "-o", directory / "both")
    assert done.code == 0, done.stderr
    return Made(directory, trained)


@pytest.fixture(scope="module")
def expected(made: Made) -> np.ndarray:
    """PEFT's probabilities for :data:`PAIRS`, each alone."""
    model = AutoModelForSequenceClassification.from_pretrained(made / "base", num_labels=2)
    adapted = PeftModel.from_pretrained(model, made / "nli").eval()
    tokens = AutoTokenizer.from_pretrained(made / "base")
    with torch.inference_mode():
        return np.stack([adapted(**tokens(*pair, return_tensors="pt")).logits[0].softmax(-1).numpy() for pair in PAIRS])


def probabilities(opened: Classifier, adapters: object = None) -> np.ndarray:
    found = opened.predict(PAIRS, adapters)  # type: ignore[arg-type]
    return np.array([[dict(one.ranking)[label] for label in ("no", "yes")] for one in found])


def test_training_says_and_records_that_rows_are_pairs(made: Made) -> None:
    assert "pairs of 'premise' and 'hypothesis'" in made.trained.stdout + made.trained.stderr
    recorded = {name: json.loads((made / name / "rmlora.json").read_text())["input_form"] for name in ("nli", "colors")}
    assert recorded == {"nli": "pair", "colors": "text"}
    assert "pairs of texts" in run("inspect", made / "nli").stdout


def test_answers_are_those_of_pytorch(made: Made, expected: np.ndarray) -> None:
    merged, both = load(made / "merged"), load(made / "both")
    assert isinstance(merged, Classifier) and isinstance(both, Classifier)
    np.testing.assert_allclose(probabilities(merged), expected, atol=1e-5)
    np.testing.assert_allclose(probabilities(both, "nli"), expected, atol=1e-5)
    swapped = [one.ranking for one in merged.predict([(second, first) for first, second in PAIRS])]
    assert swapped != [one.ranking for one in merged.predict(PAIRS)]


def test_pairs_and_texts_share_a_batch(made: Made) -> None:
    both = load(made / "both")
    assert isinstance(both, Classifier)
    mixed = both.predict(["w1 w5", PAIRS[0], "w2", PAIRS[1]], ["colors", "nli", "colors", "nli"])
    alone = [*both.predict(["w1 w5"], "colors"), *both.predict([PAIRS[0]], "nli"), *both.predict(["w2"], "colors")]
    for one, other in zip(mixed, alone, strict=False):
        assert one.label == other.label
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_verification_and_bench_read_pairs(made: Made) -> None:
    merged, both = Bundle.open(made / "merged"), Bundle.open(made / "both")
    assert (merged.input_form(), both.input_form("nli"), both.input_form("colors")) == ("pair", "pair", "text")
    for bundle, pairs in ((merged, 16), (both, 8)):
        batches, _ = load_reference(bundle.path / REFERENCE_FILE)
        assert sum(int(batch["token_type_ids"].max(1).sum()) for batch in batches) == pairs
        assert bundle.manifest.verification is not None and bundle.manifest.verification.passed
        assert random_inputs(bundle, 2, 8, 0)["token_type_ids"].tolist() == [[0] * 4 + [1] * 4] * 2
    evaluation = merged.manifest.verification and merged.manifest.verification.evaluation
    assert evaluation is not None and evaluation.onnx == evaluation.pytorch
    assert evaluation.examples == 16
    done = run("verify", made / "both", "--data", f"nli={made / 'test.jsonl'}", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["adapters"]["nli"]["evaluation"]["onnx"] == evaluation.onnx
    fails(
        3, "holds single texts where the adapter takes pairs", "verify", made / "merged", "--data", made / "texts.jsonl"
    )


def test_the_page_about_a_bundle_shows_how_pairs_are_given(made: Made) -> None:
    page = model_card(Bundle.open(made / "merged"), {}, {})
    assert 'rmlora-deploy predict merged --pair "A text" "Another text"' in page
    assert '.predict([("A text", "Another text")])' in page
    assert "pairs of texts with nli; single texts with colors" not in page
    assert "single texts with colors; pairs of texts with nli" in run("inspect", made / "both").stdout.replace(
        "\n", " "
    )


def answers(*words: str | Path) -> list[object]:
    done = run("predict", *words, "--json", "--top", "2")
    assert done.code == 0, done.stderr
    rows = json.loads(done.stdout)
    return [
        (row["input"], {one["label"]: round(one["probability"], 5) for one in row["answers"]["merged"]}) for row in rows
    ]


def test_the_command_line_takes_pairs(made: Made, tmp_path: Path, expected: np.ndarray) -> None:
    flags = [word for first, second in PAIRS for word in ("--pair", first, second)]
    found = answers(made / "merged", *flags)
    want = [
        (list(pair), {"no": round(float(no), 5), "yes": round(float(yes), 5)})
        for pair, (no, yes) in zip(PAIRS, expected, strict=True)
    ]
    assert [row[0] for row in found] == [row[0] for row in want]  # type: ignore[index]
    lines, table = tmp_path / "pairs.txt", tmp_path / "pairs.csv"
    lines.write_text("".join(f"{first}\t{second}\n" for first, second in PAIRS))
    table.write_text("left,right\n" + "".join(f"{first},{second}\n" for first, second in PAIRS))
    assert answers(made / "merged", "--file", lines) == found
    assert answers(made / "merged", "--file", table, "--text-column", "left", "--pair-column", "right") == found
    shown = run("predict", made / "merged", *flags[:3]).stdout
    assert "w9 w8" in shown and "w0 w7" in shown


def test_the_other_form_is_refused_with_what_to_do(made: Made, tmp_path: Path) -> None:
    said = (
        "'merged' was trained on pairs of texts, and input 1 is a single text: give two texts (--pair gives two texts"
    )
    fails(3, said, "predict", made / "merged", "w1")
    fails(
        3, "'colors' was trained on single texts, and input 1 is a pair", "predict", made / "both", "--pair", "w1", "w2"
    )
    assert run("predict", made / "both", "-a", "nli", "--pair", "w1", "w2").code == 0
    with pytest.raises(InputError, match="'nli' was trained on pairs of texts, and input 2 is a single text"):
        Classifier.open(made / "both").predict(["w1", "w1"], ["colors", "nli"])
    lines = tmp_path / "lines.txt"
    lines.write_text("w1 w2\n")
    fails(3, "Line 1 of", "predict", made / "merged", "--file", lines)
    (tmp_path / "t.csv").write_text("premise,hypothesis\nw1,w2\nw3,\n")
    fails(3, "Line 3 of", "predict", made / "merged", "--file", tmp_path / "t.csv")
    fails(
        3,
        "name its two columns with --text-column and --pair-column",
        "predict",
        made / "merged",
        "--file",
        made / "texts.jsonl",
    )


@pytest.mark.e2e
def test_pairs_are_answered_without_torch_and_transformers(made: Made) -> None:
    words = ("predict", made / "merged", "--pair", *PAIRS[0], "--json")
    bare = run_process(*words, without=("torch", "transformers", "peft"))
    assert bare.code == 0, bare.stderr
    assert json.loads(bare.stdout) == json.loads(run(*words).stdout)
