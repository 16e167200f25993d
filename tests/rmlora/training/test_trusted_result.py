"""A run ends with the surest of its best checkpoints, says so, and warns of an adapter that has learned nothing."""

from __future__ import annotations

import json
import math
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForSequenceClassification, SwinConfig, SwinForImageClassification

from rmlora.package import load_package
from rmlora.training.result import TrainResult
from rmlora.training.trained_package import EVALUATION_FILE, PLOT_FILE, _write_evaluation
from rmlora.training.training_plot import plot_training
from tests.helpers.cli import environment, run, tokenizer
from tests.helpers.models import build, save_base
from tests.rmlora.training.short_run import words_for


def test_of_equally_good_epochs_the_one_with_the_lowest_loss_is_kept(base: Path, data: Path, tmp_path: Path) -> None:
    words = words_for(base, data, tmp_path / "adapter", "--test", data, "--epochs", "6", "--learning-rate", "2e-2")
    done = run(*words)
    assert done.code == 0, done.stderr
    content = json.loads((tmp_path / "adapter" / "evaluation.json").read_text())
    best = max(row["accuracy"] for row in content["history"])
    equal = [row for row in content["history"] if row["accuracy"] == best]
    assert len(equal) > 1, "this run shows nothing: it has no tie"
    surest = min(equal, key=lambda row: row["loss"])
    assert surest["step"] != equal[0]["step"]
    metrics = load_package(tmp_path / "adapter").metadata["metrics"]
    assert metrics["best_checkpoint_step"] == surest["step"]
    assert metrics["validation"]["loss"] == pytest.approx(surest["loss"], abs=1e-5)
    assert f"Kept epoch {surest['epoch']:.3g} (step {surest['step']}): best accuracy" in done.stdout
    assert content["kept"] in done.stdout.replace("\n", " ")
    assert content["test"]["per_class"]["red"] == {"examples": 16, "precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert content["test"]["confusion"] == {name: {name: 16} for name in ("blue", "green", "red")}
    assert Image.open(tmp_path / "adapter" / "training.png").size[0] > 1000
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    PeftModel.from_pretrained(model, tmp_path / "adapter")  # the files beside PEFT's do not disturb it


def test_the_next_command_runs_as_printed(base: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "an adapter's folder"
    done = run(*words_for(base, data, output))
    command = shlex.split(done.stdout.splitlines()[-1])
    assert command[:2] == ["rmlora-deploy", "export"]
    exported = run(*command[1:])
    assert exported.code == 0, exported.stderr
    assert Path(command[-1], "model.onnx").is_file()


def test_an_adapter_that_learned_nothing_is_warned_of(base: Path, tmp_path: Path) -> None:
    rows = [{"text": f"w{n % 40} w{n % 7}", "label": "ham" if n % 6 else "spam"} for n in range(120)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run(*words_for(base, tmp_path / "data.jsonl", tmp_path / "adapter", "--learning-rate", "1e-9"))
    assert done.code == 0, done.stderr
    content = json.loads((tmp_path / "adapter" / "evaluation.json").read_text())
    assert len(content["warnings"]) >= 2
    assert done.stdout.count("Warning:") == len(content["warnings"])
    assert "The adapter is unsure of its answers" in done.stdout


def test_the_picture_of_a_run_carries_its_warnings(tmp_path: Path) -> None:
    log = [{"step": 1, "loss": 1.0, "learning_rate": 1e-3}, {"step": 2, "eval_loss": 0.9, "eval_accuracy": 0.5}]
    plot_training(log, tmp_path / "run.svg", kept_step=2, title="A run", notes=["The label 'x' is never predicted."])
    drawn = (tmp_path / "run.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("The label 'x' is never predicted.", "A run", "not recorded"))


def test_an_evaluation_without_a_number_does_not_cost_the_run(tmp_path: Path) -> None:
    history = [
        {"step": 1, "epoch": 1.0, "loss": math.nan, "perplexity": math.inf},
        {"step": 2, "epoch": 2.0, "loss": 0.5, "perplexity": 1.6},
    ]
    log = [{"step": item["step"], "epoch": item["epoch"], "eval_loss": item["loss"]} for item in history]
    metrics = {"validation": {"loss": 0.5}, "best_checkpoint_step": 2}
    result = TrainResult(tmp_path, metrics, 1, 2, 1.0, main_process=True, history=history, choice="Kept epoch 2.")
    _write_evaluation(result, tmp_path, log)
    written = json.loads((tmp_path / EVALUATION_FILE).read_text())["history"]
    assert written == [{"step": 1, "epoch": 1.0, "loss": None, "perplexity": None}, history[1]]
    assert (tmp_path / PLOT_FILE).exists()


def test_a_resumed_run_reports_its_whole(base: Path, data: Path, tmp_path: Path) -> None:
    words = words_for(base, data, tmp_path / "adapter", "--epochs", "8")
    command = [sys.executable, "-m", "rmlora_deploy", *map(str, words)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "adapter.run").glob("checkpoint-*")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = run(*words, "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    parts = json.loads((tmp_path / "adapter.run" / "parts.json").read_text())
    assert result["parts"] == len(parts) == 2
    assert parts[0] > 0 and result["seconds"] == pytest.approx(sum(parts), abs=2)
    assert result["steps"] == 8 * 6
    assert [row["epoch"] for row in result["history"]] == list(range(1, 9))
    assert "epoch  1.0  loss" in done.stderr  # of the part that was killed
    training = load_package(tmp_path / "adapter").metadata["training"]
    assert (training["steps"], training["parts"]) == (48, 2)


def test_a_head_whose_name_ends_another_modules_name_trains(data: Path, tmp_path: Path) -> None:
    base = save_base(build("distilbert"), tmp_path / "base")
    tokenizer().save_pretrained(base)
    done = run(*words_for(base, data, tmp_path / "adapter"))
    assert done.code == 0, done.stderr
    adapter = load_package(tmp_path / "adapter")
    assert {"pre_classifier.weight", "classifier.weight"} <= set(adapter.modules_to_save)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    inputs = {"input_ids": torch.tensor([[5, 9, 11]])}
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    merged = run("merge", base, tmp_path / "adapter", "-o", tmp_path / "merged")
    assert merged.code == 0, merged.stderr
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    with torch.inference_mode():
        torch.testing.assert_close(reloaded(**inputs).logits, adapted(**inputs).logits, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, color in (("red", (200, 0, 0)), ("green", (0, 200, 0))):
        (folder / name).mkdir()
        for number in range(8):
            pixels = np.clip(np.array(color) + rng.integers(0, 55, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def swin(directory: Path) -> Path:
    """Save a base that stores its modules under other names than it has in memory."""
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    SwinForImageClassification(config).save_pretrained(directory)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "do_resize": True}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory


def test_names_on_disk_that_differ_from_those_in_memory_never_cost_a_training(photos: Path, tmp_path: Path) -> None:
    words = ["train", "--task", "image-classification", "--base", swin(tmp_path / "swin"), "--train", photos]
    done = run(*words, "-o", tmp_path / "adapter", "--epochs", "1", "--rank", "2")
    if done.code == 0:
        load_package(tmp_path / "adapter")
        assert run("merge", tmp_path / "swin", tmp_path / "adapter", "-o", tmp_path / "merged").code == 0
    else:
        assert done.code == 3 and "could not be deployed, so it is not trained" in done.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"swin"}


def test_texts_longer_than_the_base_takes_are_cut_to_that(base: Path, tmp_path: Path) -> None:
    rows = [{"text": f"w{n} " * (300 if n == 39 else 2), "label": str(n % 2)} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = words_for(base, tmp_path / "data.jsonl", tmp_path / "adapter")
    done = run(*words)
    assert done.code == 0, done.stderr
    assert "The base reads at most 40 tokens: --max-length 128 is lowered to that." in done.stdout
    assert load_package(tmp_path / "adapter").metadata["training"]["settings"]["max_length"] == 40
