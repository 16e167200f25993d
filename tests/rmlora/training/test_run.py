"""Training runs by command: packages, several processes, images, YAML settings, and errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rmlora.package import load_package
from tests.helpers.cli import environment, fails, run, text_base, text_data
from tests.helpers.models import build, save_base
from tests.rmlora.training.short_run import SETTINGS, words_for


def test_a_run_leaves_a_complete_package(base: Path, data: Path, tmp_path: Path) -> None:
    test = text_data(tmp_path / "test.jsonl", rows=12, seed=1)
    words = words_for(base, data, tmp_path / "adapter", "--test", test, "--json")
    done = run(*words)
    assert done.code == 0, done.stderr
    answer = json.loads(done.stdout)
    assert set(answer["metrics"]) == {"validation", "test", "examples", "best_checkpoint_step"}
    adapter = load_package(tmp_path / "adapter")
    metadata = adapter.metadata
    assert adapter.task == "text-classification"
    assert adapter.labels == ["blue", "green", "red"]
    assert metadata["architecture"] == "BertForSequenceClassification"
    assert adapter.fingerprint and adapter.fingerprint.startswith("sha256:")
    assert metadata["metrics"]["test"] == answer["metrics"]["test"]
    assert (metadata["rmlora"]["active_rank"], metadata["training"]["settings"]["epochs"]) == (4, 3.0)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "evaluation.json",
        "rmlora.json",
        "training.png",
    }
    assert list((tmp_path / "adapter.run" / "tensorboard").glob("events*"))
    assert {name.partition(".")[0] for name in adapter.modules_to_save} == {"classifier"}
    fails(8, "already exists", *words)


def test_a_base_without_a_pooler_gets_one_that_is_saved(tmp_path: Path, data: Path) -> None:
    from transformers import BertModel

    model = build("bert")
    encoder = BertModel(model.config, add_pooling_layer=False)
    encoder.load_state_dict(model.bert.state_dict(), strict=False)
    text_base(tmp_path / "base")
    save_base(encoder, tmp_path / "base")
    done = run(*words_for(tmp_path / "base", data, tmp_path / "adapter"))
    assert done.code == 0, done.stderr
    modules_to_save = load_package(tmp_path / "adapter").modules_to_save
    assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight"} <= set(modules_to_save)


PROBE = """
import hashlib, os, sys
import rmlora.callback as callback
original = callback.mask_gradients
drawn = hashlib.sha256()
def recording(factors, config, step):
    result = original(factors, config, step)
    for item in factors:
        drawn.update(((item.A.grad == 0).all(1).numpy().tobytes()) + ((item.B.grad == 0).all(0).numpy().tobytes()))
    return result
callback.mask_gradients = recording
import rmlora.training.run as run
original_fit = run.fit
def fit(settings, arguments, config, model, *rest, **more):
    result = original_fit(settings, arguments, config, model, *rest, **more)
    values = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            values.update(parameter.detach().numpy().tobytes())
    rank = os.environ["RANK"]
    open(os.path.join(os.environ["PROBE_DIR"], rank), "w").write(drawn.hexdigest() + " " + values.hexdigest())
    return result
run.fit = fit
from rmlora_deploy.cli import main
main()
"""


def test_two_processes_draw_the_same_masks_and_end_equal(base: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29713"]
    words = [tmp_path / "probe.py", *words_for(base, data, tmp_path / "adapter")]
    done = subprocess.run(
        [*command, *map(str, words)],
        env=environment(PROBE_DIR=str(tmp_path), CUDA_VISIBLE_DEVICES=""),  # two processes cannot share one GPU
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    assert done.stdout.count("Adapter written to") == 1
    assert load_package(tmp_path / "adapter").modules
    training = json.loads((tmp_path / "adapter" / "rmlora.json").read_text())["training"]
    assert training["steps"] == 3 * 3  # 42 sentences, 16 per step, 3 epochs: each process has half of the data


def test_a_folder_of_images_trains_a_classifier(tmp_path: Path) -> None:
    save_base(build("vit").vit, tmp_path / "base")
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(processor))
    rng = np.random.default_rng(0)
    for label, color in enumerate(((200, 0, 0), (0, 200, 0))):
        folder = tmp_path / "photos" / ("red", "green")[label]
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = np.clip(np.array(color) + rng.integers(0, 55, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    done = run(
        "train", "--task", "image-classification", "--base", tmp_path / "base", "--train", tmp_path / "photos",
        "-o", tmp_path / "adapter", *SETTINGS,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    fails(
        2, "does not take images of this size", "train", "--task", "image-classification", "--base", tmp_path / "base",
        "--train", tmp_path / "photos", "-o", tmp_path / "other", *SETTINGS, "--image-size", "24",
    )  # fmt: skip
    adapter = load_package(tmp_path / "adapter")
    assert adapter.labels == ["green", "red"]
    fails(
        3, "or give one that reads texts.", "train", "--base", tmp_path / "base", "--train", text_data(tmp_path / "texts.jsonl"),
        "-o", tmp_path / "other", *SETTINGS,
    )  # fmt: skip
    assert "classifier.weight" in adapter.modules_to_save
    assert (tmp_path / "adapter" / "preprocessor_config.json").is_file()
    words = (
        "train",
        "--task",
        "image-classification",
        "--base",
        tmp_path / "base",
        "-o",
        tmp_path / "other",
        *SETTINGS,
    )
    for folder in (tmp_path / "photos" / "red", tmp_path / "one"):
        shutil.copytree(tmp_path / "photos" / "red", tmp_path / "one" / "red", dirs_exist_ok=True)
        fails(3, "have no labels: put those of each label into a subfolder of their own", *words, "--train", folder)
    broken = tmp_path / "photos" / "red" / "3.png"
    for content in (broken.read_bytes()[:200], b"hello"):
        broken.write_bytes(content)
        fails(3, f"{broken} cannot be decoded as an image", *words, "--train", tmp_path / "photos")


def test_yaml_gives_defaults_and_flags_win(base: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"base: {base}\ntrain_data: {data}\nrank: 2\nepochs: 1\ntarget-modules: [query, value]\n")
    done = run("train", "--config", config, "-o", tmp_path / "adapter", "--rank", "6", "--method", "lora")
    assert done.code == 0, done.stderr
    settings = load_package(tmp_path / "adapter").metadata["rmlora"]
    assert (settings["rank"], settings["active_rank"], settings["orth_weight"]) == (6, 6, 0.0)
    assert settings["target_modules"] == ["query", "value"]
    config.write_text("ranks: 2\n")
    fails(2, "unknown setting 'ranks': the known ones are", "train", "--config", config, "-o", tmp_path / "no")
    config.write_text("a: [\n")
    fails(2, "cannot be read as YAML", "train", "--config", config, "-o", tmp_path / "no")


def test_presets_give_defaults_and_flags_win(base: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("preset: paper\north-weight: 0.05\n")
    start = ["train", "--base", base, "--train", data, "--epochs", "1", "--target-modules", "query"]
    done = run(*start, "-o", tmp_path / "paper", "--config", config)
    assert done.code == 0, done.stderr
    settings = load_package(tmp_path / "paper").metadata["rmlora"]
    assert (settings["orth_weight"], settings["decorrelation"], settings["compensate"]) == (0.05, 0.0, False)
    shown = run("inspect", tmp_path / "paper")
    assert "RM-LoRA: rank 8, 4 active in a step, alpha 16, orth_weight 0.05" in " ".join(shown.stdout.split())
    no = [*start, "-o", tmp_path / "no", "--method", "lora"]
    fails(2, "--method lora is plain LoRA and --preset paper is not", *no, "--preset", "paper")
    fails(2, "without masks and regularizer: leave --decorrelation 3.0 out", *no, "--decorrelation", "3")
    fails(2, "without masks and regularizer: leave --init gradient out", *no, "--init", "gradient")
    fails(2, "without masks and regularizer: leave --compensate out", *no, "--compensate")


def test_wrong_flags_and_paths(base: Path, data: Path, tmp_path: Path) -> None:
    start = ["train", "--train", data, "-o", tmp_path / "adapter"]
    fails(3, "Base model not found: ./nowhere", *start, "--base", "./nowhere")
    fails(3, "could not be fetched from the hub", *start, "--base", "someone/model")
    fails(3, "Data not found: ./none.csv", "train", "--base", base, "--train", "./none.csv", "-o", tmp_path / "adapter")
    fails(
        2,
        "target_modules 'foo' matches no module of this model: choose --target-modules (repeatable) from",
        *start,
        "--base",
        base,
        "--target-modules",
        "foo",
    )
    fails(2, "active_rank 9 is larger than rank 8", *start, "--base", base, "--active-rank", "9")
    fails(2, "learning_rate must be positive", *start, "--base", base, "--learning-rate", "0")
    images = ["--task", "image-classification"]
    fails(2, "--group-by-length is for texts", *start, "--base", base, *images, "--group-by-length")
    fails(
        2,
        "--max-length is for text-classification, feature-extraction, token-classification, question-answering, text-generation, "
        "text2text-generation, but the task is image-classification: leave it out, or choose another --task",
        *start,
        "--base",
        base,
        *images,
        "--max-length",
        "9",
    )
    fails(2, "precision fp16 needs a GPU", *start, "--base", base, "--precision", "fp16")
    fails(2, "No such option", *start, "--base", base, "--rang", "3")
    fails(3, "has no column 'txt' (it has", *start, "--base", base, "--text-column", "txt")
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "w1", "label": "yellow"}\n')
    fails(3, "has the label 'yellow', which the training data lacks", *start, "--base", base, "--validation", other)
    (tmp_path / "file").write_text("")
    fails(8, "is a file", "train", "--train", data, "--base", base, "-o", tmp_path / "file")


def test_a_diverging_run_is_an_error(base: Path, data: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--base",
        base,
        "--train",
        data,
        "-o",
        tmp_path / "adapter",
        "--learning-rate",
        "1e38",
        "--max-grad-norm",
        "0",
    ]
    fails(7, "Training diverged", *words)
    assert not (tmp_path / "adapter").exists()


def test_target_modules_in_every_form(base: Path, data: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    start = ["train", "--config", config, "--overwrite", "--no-resume", "-o", tmp_path / "adapter"]

    def trained(settings: str, *more: str) -> dict[str, int]:
        config.write_text(f"base: {base}\ntrain: {data}\nepochs: 1\n{settings}\n")
        done = run(*start, *more)
        assert done.code == 0, done.stderr
        return {path: module.rank for path, module in load_package(tmp_path / "adapter").modules.items()}

    everything = trained("target_modules: all-linear")
    assert len(everything) == 13
    assert len(trained("target_modules: query")) == 2
    expression = ".*layer\\.1\\.attention\\.self\\.(query|value)"
    assert {path.rpartition(".")[2] for path in trained("", "--target-modules", expression)} == {"query", "value"}
    assert len(trained(f"target_modules: '{expression}'")) == 2
    ranks = trained("rank_pattern: {query: 2, value: 3}\nalpha_pattern: {key: 5}\nlabels: [red, green, 'blue']")
    assert {rank for path, rank in ranks.items() if path.endswith("query")} == {2}
    assert {rank for path, rank in ranks.items() if path.endswith("value")} == {3}
    adapter = load_package(tmp_path / "adapter")
    assert adapter.labels == ["red", "green", "blue"]
    assert adapter.peft_config["alpha_pattern"] == {"key": 5.0}
    fails(2, "is a regular expression", *start, "--target-modules", "query", "--target-modules", "(key)")
    fails(2, "is not a regular expression", *start, "--target-modules", "(key")
    for settings, message in (
        ("rank: [1, 2]", "sets 'rank' to a list: one value belongs there"),
        ("target_modules: {a: 1}", "sets 'target_modules' to a mapping"),
        ("rank_pattern: {query: [2]}", "sets 'rank_pattern' to a list"),
        ("base: x\ntrain: y\nrank: 2.5", "'2.5' is not a valid integer"),
        ("rank: true", "sets 'rank' to true"),
        ("labels: [no, yes]", "sets 'labels' to false (or no, off)"),
        ("target_modules: [query, on]", "sets 'target_modules' to true (or yes, on)"),
        ("modules_to_save: false", "write names in quotes"),
        ("target_modules: [null]", "sets 'target_modules' to null"),
        ("rank_pattern: {yes: 4}", "sets 'rank_pattern' to true"),
        ("rang: 2", "did you mean 'rank'?"),
    ):
        config.write_text(settings)
        fails(2, message, *start)


def test_labels_on_the_command_line_name_the_outputs(base: Path, tmp_path: Path) -> None:
    rows = [{"text": f"w{n} w{n % 2}", "label": n % 2} for n in range(40)] + [{"text": "", "label": 1}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = words_for(base, tmp_path / "data.jsonl", tmp_path / "adapter", "--epochs", "1")
    fails(3, "Line 41 of", *words, "--labels", "ham,spam")
    fails(2, "names 1 label: classification needs at least two", *words, "--labels", "ham")
    named = ["--labels", "a,b", "--label-column", "text", "--skip-empty"]
    fails(2, "has the label 'w0 w0', which --labels lacks (it has a, b)", *words, *named)
    (tmp_path / "labels.txt").write_text("ham\nspam\n")
    done = run(*words, "--labels", tmp_path / "labels.txt", "--skip-empty")
    assert done.code == 0, done.stderr
    assert "Note: Left out 1 row of" in done.stdout
    assert load_package(tmp_path / "adapter").labels == ["ham", "spam"]
