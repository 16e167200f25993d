"""Commands on language models that are given what belongs to another task, or the other way round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rmlora.package import load_package
from tests.helpers.answers import make_adapter, make_base
from tests.helpers.cli import fails, run
from tests.helpers.decoders import decoder_adapter, decoder_base


@pytest.mark.parametrize("mode", ["merged", "branches"])
def test_an_adapter_is_not_exported_for_another_task(mode: str, tmp_path: Path) -> None:
    base = decoder_base("llama", tmp_path / "base")
    adapter = decoder_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    assert load_package(adapter).task == "text-generation"
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
    fails(2, "rmlora-deploy generate", "predict", tmp_path / "bundle", "hello")
    fails(3, "genai_config.json", "generate", tmp_path / "bundle", "hello")
    fails(3, "genai_config.json", "verify", tmp_path / "bundle", "--base", base)


def test_the_provider_of_the_graph_is_for_language_models(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "one label")
    adapter = make_adapter(base, tmp_path / "adapter")
    fails(
        2,
        "--provider chooses what a language model",
        "export",
        base,
        "-a",
        adapter,
        "-o",
        tmp_path / "no",
        "--provider",
        "cpu",
    )
