"""The training command: packages, exact resumption after a kill, several processes, images, GGUF, and errors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from rmlora.package import load_package
from rmlora.tasks import get_task
from rmlora.training.data import Columns, load_splits
from rmlora.training.resume import last_complete_checkpoint
from rmlora.training.sampler import LengthGroups
from tests.helpers.cli import environment, fails, run, text_base, text_data
from tests.helpers.models import build, save_base

SETTINGS = ["--rank", "4", "--alpha", "4", "--batch-size", "8", "--epochs", "3", "--learning-rate", "5e-3"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_base(tmp_path_factory.mktemp("base") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_data(tmp_path_factory.mktemp("data") / "train.jsonl")


def words_for(base: Path, data: Path, output: Path, *more: object) -> list[object]:
    """Return the words of a short training run."""
    return ["train", "--base", base, "--train", data, "-o", output, *SETTINGS, *more]


def tensors(package: Path) -> dict[str, np.ndarray]:
    return load_file(package / "adapter_model.safetensors")


def assert_equal(left: Path, right: Path) -> None:
    first, second = tensors(left), tensors(right)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


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
    assert (metadata["rmlora"]["active_rank"], metadata["training"]["settings"]["epochs"]) == (2, 3.0)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "rmlora.json",
    }
    assert list((tmp_path / "adapter.run" / "tensorboard").glob("events*"))
    assert {name.partition(".")[0] for name in adapter.modules_to_save} == {"classifier"}
    fails(8, "already exists", *words)


def test_the_base_without_a_pooler_gets_one_that_is_saved(tmp_path: Path, data: Path) -> None:
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


@pytest.mark.parametrize("moments", [(0.0,), (0.3, 0.6), (1.2,)])
def test_a_killed_run_ends_as_an_uninterrupted_one(
    base: Path, data: Path, tmp_path: Path, moments: tuple[float, ...]
) -> None:
    more = ["--dropout", "0.1", "--save-steps", "2", "--mask-mode", "update", "--group-by-length"]
    words = words_for(base, data, tmp_path / "killed", *more)
    assert run(*words_for(base, data, tmp_path / "whole", *more)).code == 0
    run_dir = tmp_path / "killed.run"
    for moment in moments:
        command = [sys.executable, "-m", "rmlora_deploy", *map(str, words)]
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        known = set(run_dir.glob("checkpoint-*"))
        while process.poll() is None and not set(run_dir.glob("checkpoint-*")) - known:
            time.sleep(0.005)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
    if not (tmp_path / "killed").exists():
        done = run(*words)
        assert done.code == 0, done.stderr
    assert_equal(tmp_path / "whole", tmp_path / "killed")


def test_batches_of_equal_length_learn_as_well(base: Path, data: Path, tmp_path: Path) -> None:
    more = ["--test", data, "--group-by-length", "--epochs", "10", "--json"]
    done = run(*words_for(base, data, tmp_path / "grouped", *more))
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["test"]["accuracy"] > 0.9


def test_the_order_by_length_is_a_function_of_seed_and_epoch() -> None:
    lengths = list(np.random.default_rng(0).integers(1, 30, 64))
    orders = []
    for epoch in (0, 1, 0):
        groups = LengthGroups(lengths, batch_size=4, seed=7)
        groups.set_epoch(epoch)
        orders.append(list(groups))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(64))
    spans = [np.ptp([lengths[i] for i in orders[0][start : start + 4]]) for start in range(0, 64, 4)]
    assert np.mean(spans) < 8  # at random it is 20


def test_half_written_checkpoints_are_not_resumed_from(base: Path, data: Path, tmp_path: Path) -> None:
    words = words_for(base, data, tmp_path / "adapter")
    assert run(*words).code == 0
    run_dir = tmp_path / "adapter.run"
    whole = last_complete_checkpoint(run_dir)
    assert whole is not None
    state = (whole / "trainer_state.json").read_text()
    (whole / "trainer_state.json").write_text(state[: len(state) // 2])
    earlier = last_complete_checkpoint(run_dir)
    assert earlier != whole and not whole.exists()


def test_another_runs_directory_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    words = words_for(base, data, tmp_path / "adapter")
    assert run(*words).code == 0
    fails(2, "holds an interrupted run with another learning rate", *words, "--overwrite", "--learning-rate", "1e-4")
    assert run(*words, "--overwrite", "--learning-rate", "1e-4", "--no-resume").code == 0


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
        env=environment(PROBE_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    assert done.stdout.count("Adapter written to") == 1
    assert load_package(tmp_path / "adapter").modules
    training = json.loads((tmp_path / "adapter" / "rmlora.json").read_text())["training"]
    assert training["steps"] == 3 * 3  # of 42 sentences, 16 a step and 3 epochs: the data were shared out


def test_images_are_learned_from_a_folder(tmp_path: Path) -> None:
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
    assert "classifier.weight" in adapter.modules_to_save
    assert (tmp_path / "adapter" / "preprocessor_config.json").is_file()


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "w1 w2", "label": "a"}\n{"text": "w3", "label": "a"}\n', "has only one label ('a')"),
        ('{"text": "", "label": "a"}\n{"text": "w3", "label": "b"}\n', "Row 1 of"),
        ('{"text": "w1", "label": null}\n{"text": "w3", "label": "b"}\n', "has no 'label'"),
        ('{"body": "w1", "label": "a"}\n', "has none of the columns text, sentence"),
        ('{"text": "w1", "lab": "a"}\n', "has none of the columns label, labels"),
        ("{not json\n", "cannot be read as a dataset"),
        ("", "is empty: there is nothing to train on"),
    ],
)
def test_bad_data_is_told_in_one_sentence(base: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    fails(3, message, "train", "--base", base, "--train", path, "-o", tmp_path / "adapter")
    assert {item.name for item in tmp_path.iterdir()} == {"bad.jsonl"}


def test_wrong_flags_and_paths(base: Path, data: Path, tmp_path: Path) -> None:
    start = ["train", "--train", data, "-o", tmp_path / "adapter"]
    fails(3, "Base model not found: ./nowhere", *start, "--base", "./nowhere")
    fails(3, "could not be fetched from the hub", *start, "--base", "someone/model")
    fails(3, "Data not found: ./none.csv", "train", "--base", base, "--train", "./none.csv", "-o", tmp_path / "adapter")
    fails(
        2,
        "matches no module of this model: choose --target-modules from",
        *start,
        "--base",
        base,
        "--target-modules",
        "foo",
    )
    fails(2, "active_rank 9 is larger than rank 8", *start, "--base", base, "--active-rank", "9")
    fails(2, "learning_rate must be positive", *start, "--base", base, "--learning-rate", "0")
    images = ["--task", "image-classification", "--group-by-length"]
    fails(2, "--group-by-length is for texts", *start, "--base", base, *images)
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
