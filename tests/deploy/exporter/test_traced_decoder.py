"""Language models traced with torch.onnx: precisions, adapters of all kinds, onnxruntime_genai, and a machine without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rmlora.errors import CheckpointError, ConfigError
from rmlora_deploy import export, load, verify
from rmlora_deploy.bundles.adapters import add_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference import Generator
from tests.helpers.cli import run_process
from tests.helpers.decoders import decoder_adapter, decoder_base
from tests.helpers.genai import genai_texts_are_ours
from tests.helpers.rarely import rarely


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a GPT-2, the adapters a and b, and a bundle of both."""
    directory = tmp_path_factory.mktemp("traced")
    base = decoder_base("gpt2", directory / "base")
    adapters = {name: decoder_adapter(base, directory / name, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    export(base, adapters, directory / "both")
    return directory


def test_nothing_else_asks_how_a_bundle_was_made(made: Path, tmp_path: Path) -> None:
    files = {path.name for path in (made / "both").iterdir()}
    assert {"model.onnx", "genai_config.json", "tokenizer.json", "chat_template.jinja", "config.json"} <= files
    assert not any((made / "both" / name).exists() for name in ("built", "source", "cache"))
    manifest = Bundle.open(made / "both").manifest
    assert manifest.exporter == "torch" and manifest.decoder is not None
    assert manifest.decoder.built_for == "cpu" and manifest.decoder.context_length == 256 and manifest.decoder.chat
    alone = verify(made / "both", reference_only=True, record=False)
    assert alone.passed and alone.base is not None and alone.base.bit_equal
    shutil.copytree(made / "both", tmp_path / "both")
    add_adapter(Bundle.open(tmp_path / "both"), "c", decoder_adapter(made / "base", tmp_path / "c", seed=3, r=2))
    opened = load(tmp_path / "both")
    assert isinstance(opened, Generator)
    answers = opened.generate(["The river"] * 3, ["a", "c", None], max_new_tokens=8, raw=True)
    assert len({answer.tokens for answer in answers}) == 3


def test_genai_runs_the_directory_with_its_adapters(made: Path) -> None:
    ours = load(made / "both")
    assert isinstance(ours, Generator)
    genai_texts_are_ours(ours, [None, "a", "b"])


@pytest.mark.parametrize("precision", [rarely("fp16"), "int8", rarely("int4")])
def test_lower_precisions_with_branches(made: Path, tmp_path: Path, precision: str) -> None:
    bundle = export(made / "base", {"a": made / "a", "b": made / "b"}, tmp_path / "bundle", precision=precision)
    report = bundle.manifest.verification
    assert report is not None and report.passed and report.base is not None
    assert report.mixed is not None and report.mixed.max_abs_error == 0
    assert bundle.manifest.decoder is not None and bundle.manifest.decoder.built_for == "cpu"
    assert bundle.manifest.decoder.recipe == ("k_quant_mixed" if precision == "int4" else None)
    rounded = bundle.manifest.model.operators.get("MatMulNBits", 0)
    assert rounded == (
        0 if precision == "fp16" else 9
    )  # packed qkv, its output, two of the MLP in two layers, and the head


def test_norms_that_compute_in_float32_are_exported_in_fp16(tmp_path: Path) -> None:
    base = decoder_base("olmo2", tmp_path / "base")
    adapter = decoder_adapter(base, tmp_path / "a")
    keys = decoder_adapter(base, tmp_path / "k", target_modules=["k_proj"], r=2)  # other inputs keep rank 0
    report = export(base, {"a": adapter, "k": keys}, tmp_path / "bundle", precision="fp16").manifest.verification
    assert report is not None and report.passed


def test_the_tied_head_and_the_embedding(made: Path, tmp_path: Path) -> None:
    head = decoder_adapter(made / "base", tmp_path / "h", target_modules=["c_attn", "lm_head"])
    report = export(made / "base", {"h": head}, tmp_path / "bundle").manifest.verification
    assert report is not None and report.passed and report.base is not None and report.base.bit_equal
    embedding = decoder_adapter(made / "base", tmp_path / "e", target_modules=["c_attn", "wte"])
    assert export(made / "base", embedding, tmp_path / "merged").manifest.verification.passed  # type: ignore[union-attr]


def test_models_that_the_builder_knows_are_traced_where_it_is_not_installed(tmp_path: Path) -> None:
    base = decoder_base("llama", tmp_path / "base")
    adapter = decoder_adapter(base, tmp_path / "a")
    genai = ("onnxruntime_genai",)
    words = ("export", base, "-a", adapter, "-o", tmp_path / "bundle")
    done = run_process(*words, without=genai)
    assert done.code == 0, done.stderr
    assert Bundle.open(tmp_path / "bundle").manifest.exporter == "torch"
    inspected = run_process("inspect", tmp_path / "bundle", without=genai)
    assert "by torch.onnx for cpu" in inspected.stdout
    answer = run_process("generate", tmp_path / "bundle", "Hi", "--max-new-tokens", "4", "--json", without=genai)
    assert answer.code == 0 and json.loads(answer.stdout)
    refused = run_process(*words, "--overwrite", "--precision", "fp16", "--provider", "cuda", without=genai)
    assert refused.code == 2 and "install the extra genai" in refused.stderr


def test_what_tracing_does_not_do_is_refused_before_any_work(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tried on --provider cpu only, not cuda: leave --provider out"):
        export(made / "base", made / "a", tmp_path / "no", provider="cuda")
    experts = decoder_base("qwen3_moe", tmp_path / "experts")
    adapter = decoder_adapter(experts, tmp_path / "e", target_modules=["q_proj"])
    with pytest.raises(ConfigError, match="experts of a Qwen3MoeForCausalLM are one operator"):
        export(experts, adapter, tmp_path / "no", precision="int8")
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    dynamic = decoder_base("olmo2", tmp_path / "dynamic", rope_parameters=rope)
    adapter = decoder_adapter(dynamic, tmp_path / "d", target_modules=["q_proj"])
    with pytest.raises(CheckpointError, match=r"\('dynamic'\) changes with the length of the text"):
        export(dynamic, adapter, tmp_path / "no")
    assert not (tmp_path / "no").exists()
