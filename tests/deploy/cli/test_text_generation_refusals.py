"""Where there are no bundles for text-generation, commands say so and say what works instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rmlora.package import load_package
from rmlora.tasks import TASKS
from tests.helpers.answers import make_adapter, make_base
from tests.helpers.cli import fails, run, tokenizer
from tests.helpers.merge_cases import save_adapter_for
from tests.helpers.models import TOKENS, save_base

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("generator")
    model = LlamaForCausalLM(LlamaConfig(**SMALL, **TOKENS))
    base = save_base(model, directory / "base")
    tokenizer().save_pretrained(base)
    adapter = save_adapter_for(model, directory / "adapter", task_type="CAUSAL_LM", target_modules=["q_proj"])
    return base, adapter


@pytest.mark.parametrize("mode", ["merged", "branches"])
def test_export_says_that_there_are_no_bundles_and_what_works(
    mode: str, generator: tuple[Path, Path], tmp_path: Path
) -> None:
    base, adapter = generator
    assert load_package(adapter).task == "text-generation"
    for flags in ((), ("--task", "text-generation")):
        done = run("export", base, "-a", adapter, "-o", tmp_path / "no", "--mode", mode, *flags)
        assert done.code == 2 and "not exported" in done.stderr and "rmlora-deploy merge" in done.stderr
    fails(3, "is for text-generation and cannot be used", "export", base, "-a", adapter, "-o", tmp_path / "no",
          "--mode", mode, "--task", "text-classification")  # fmt: skip
    assert not (tmp_path / "no").exists()
    merged = run("merge", base, adapter, "-o", tmp_path / f"merged-{mode}")
    assert merged.code == 0, merged.stderr


def test_a_bundle_that_claims_the_task_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "one label")
    adapter = make_adapter(base, tmp_path / "adapter")
    done = run("export", base, "-a", adapter, "-o", tmp_path / "bundle", "--no-verify")
    assert done.code == 0, done.stderr
    manifest = tmp_path / "bundle" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "task": "text-generation"}))
    fails(2, "nothing to predict with or to serve", "predict", tmp_path / "bundle", "hello")
    fails(2, "nothing to predict with or to serve", "verify", tmp_path / "bundle", "--base", base)
    shutil.rmtree(tmp_path / "bundle")


def test_only_tasks_without_bundles_are_refused() -> None:
    assert [name for name, task in TASKS.items() if task.not_exported] == ["text-generation"]
