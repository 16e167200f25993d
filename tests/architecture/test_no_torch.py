"""Deploying needs no torch: with torch, peft and accelerate absent, everything imports and bundles are served."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from rmlora_deploy import export
from tests.helpers import answers
from tests.helpers.cli import BLOCKER, PACKAGES, environment, run, run_process
from tests.helpers.handmade import color_bundle, word_bundle
from tests.helpers.models import adapt, build, lora_config, save_base

ABSENT = ("torch", "torchvision", "peft", "accelerate")

NOT_IN_PREDICT = (
    *ABSENT, "transformers", "fastapi", "fastapi_offline", "uvicorn", "starlette", "aiohttp", "prometheus_client", "matplotlib",
    "ray", "datasets", "optimum", "onnxscript", "gguf", "yaml",
)  # fmt: skip
"""What the extra ``predict`` does not install."""

TRAINING_ONLY = {
    "rmlora.training.embedding_rows",
    "rmlora.training.embedding_trainer",
    "rmlora.training.features",
    "rmlora.training.generate_answers",
    "rmlora.training.label_pairs",
    "rmlora.training.language_rows",
    "rmlora.training.answer_trainer",
    "rmlora.training.language_trainer",
    "rmlora.training.objective",
    "rmlora.training.packed_rows",
    "rmlora.training.question_rows",
    "rmlora.training.question_trainer",
    "rmlora.training.sampler",
    "rmlora.training.tagged_rows",
}
"""Modules that define subclasses of torch's or the Trainer's own classes, imported when training starts."""

IMPORT_ALL = """
import importlib, json, sys
failed = {{}}
for name in {names!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps({{"failed": failed, "loaded": [name for name in {absent!r} if name in sys.modules]}}))
"""


def modules() -> list[str]:
    found = [
        name
        for package, folder in PACKAGES.items()
        for _, name, _ in pkgutil.walk_packages([str(folder)], prefix=f"{package}.")
        if not name.endswith("__main__")
    ]
    return [*PACKAGES, *found]


def test_every_module_but_those_of_training_imports() -> None:
    program = BLOCKER.format(blocked=ABSENT) + IMPORT_ALL.format(names=modules(), absent=ABSENT)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    result = json.loads(done.stdout)
    assert set(result["failed"]) == TRAINING_ONLY
    assert not result["loaded"]


def test_importing_the_packages_leaves_torch_alone_where_it_is_installed() -> None:
    deploying = [name for name in modules() if not name.startswith(("rmlora.callback", "rmlora.training"))]
    program = IMPORT_ALL.format(names=deploying, absent=("torch", "peft"))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert json.loads(done.stdout) == {"failed": {}, "loaded": []}


def test_help_inspect_predict_and_bench_of_a_text_bundle(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path / "words")
    assert run_process("--help", without=ABSENT).code == 0
    shown = run_process("inspect", bundle, without=ABSENT)
    assert shown.code == 0, shown.stderr
    assert "text-classification" in shown.stdout
    answered = run_process("predict", bundle, "w1 w9", "--json", without=ABSENT)
    assert answered.code == 0, answered.stderr
    assert json.loads(answered.stdout)[0]["answers"]["words"][0]["label"] == "green"
    sizes = ("--batch", "1", "--length", "4", "--threads", "1", "--rounds", "1", "--seconds", "0.01")
    measured = run_process("bench", bundle, *sizes, "--json", without=ABSENT)
    assert measured.code == 0, measured.stderr
    report = json.loads(measured.stdout)
    assert [row["engine"] for row in report["rows"]] == ["onnx"]
    missing = {item["engine"]: item.get("not_measured") for item in report["contestants"]}
    assert missing["torch"] == "the package torch is not installed"


def test_the_extra_predict_asks_embeds_and_verifies(tmp_path: Path) -> None:
    from PIL import Image

    base = answers.make_base(tmp_path / "base", "one label")
    adapter = answers.make_adapter(base, tmp_path / "adapter")
    export(base, adapter, tmp_path / "merged")
    export(base, {"one": adapter}, tmp_path / "branches")
    for bundle in (tmp_path / "merged", tmp_path / "branches"):
        words = ("predict", bundle, *answers.TEXTS, "--json", "--top", "3")
        light, full = run_process(*words, without=NOT_IN_PREDICT), run(*words)
        assert light.code == 0, light.stderr
        assert light.stdout == full.stdout
        verified = run_process("verify", bundle, "--reference-only", "--json", without=NOT_IN_PREDICT)
        assert verified.code == 0, verified.stderr
        assert json.loads(verified.stdout)["passed"]
    vectors = word_bundle(tmp_path / "vectors", labels=(), task="feature-extraction")
    Image.new("RGB", (9, 9), (0, 200, 0)).save(tmp_path / "green.png")
    for words in (
        ("predict", vectors, "w1 w2", "w0", "--json"),
        ("predict", color_bundle(tmp_path / "colors"), tmp_path / "green.png", "--json"),
    ):
        light, full = run_process(*words, without=NOT_IN_PREDICT), run(*words)
        assert light.code == 0, light.stderr
        assert light.stdout == full.stdout


@pytest.mark.parametrize("missing", ["tokenizers", "PIL"])
def test_without_the_extra_predict_it_is_named(missing: str, tmp_path: Path) -> None:
    bundle, given = (word_bundle(tmp_path / "words"), "w0") if missing == "tokenizers" else (
        color_bundle(tmp_path / "colors"), "none.png")  # fmt: skip
    done = run_process("predict", bundle, given, without=(*NOT_IN_PREDICT, missing))
    assert done.code == 4
    assert f"This needs the package '{missing}' (extra 'predict')" in done.stderr


def test_predict_with_an_image_bundle(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (9, 9), (0, 200, 0)).save(tmp_path / "green.png")
    bundle = color_bundle(tmp_path / "colors")
    answered = run_process("predict", bundle, tmp_path / "green.png", "--json", without=ABSENT)
    assert answered.code == 0, answered.stderr
    assert json.loads(answered.stdout)[0]["answers"]["colors"][0]["label"] == "green"


def test_inspect_and_merge_of_an_adapter(tmp_path: Path) -> None:
    base = save_base(build("bert"), tmp_path / "base")
    adapt(build("bert"), lora_config("bert")).save_pretrained(tmp_path / "adapter")
    shown = run_process("inspect", tmp_path / "adapter", "--base", base, "--plot", tmp_path / "s.png", without=ABSENT)
    assert shown.code == 0, shown.stderr
    assert (tmp_path / "s.png").stat().st_size > 10_000
    merged = run_process("merge", base, tmp_path / "adapter", "--output", tmp_path / "merged", without=ABSENT)
    assert merged.code == 0, merged.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--base", "base", "--train", "data.csv", "--output", "out"),
        ("export", "base", "--adapter", "adapter", "--output", "out"),
    ],
)
def test_what_needs_torch_says_which_extra_installs_it(words: tuple[str, ...]) -> None:
    done = run_process(*words, without=ABSENT)
    assert done.code == 4
    assert done.stderr.startswith("Error: This needs the package 'torch'")
    assert "pip install 'torch" in done.stderr


def test_without_onnxruntime_the_extra_is_named(tmp_path: Path) -> None:
    done = run_process("predict", word_bundle(tmp_path / "words"), "w0", without=("onnxruntime",))
    assert done.code == 4
    assert "pip install 'onnxruntime<" in done.stderr
