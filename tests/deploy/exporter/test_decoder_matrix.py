"""Every architecture that the GenAI builder builds, tiny and random, verified against PyTorch and PEFT."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from rmlora.errors import AdapterError
from rmlora_deploy import export
from rmlora_deploy.exporter.decoder.genai_architectures import BUILT
from tests.helpers.decoders import DECODERS, decoder_adapter, decoder_base

_OFTEN = ("llama", "gemma2")
"""Tied; with windows and soft limits."""
_BUILT = (
    "llama", "llama3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "smollm3", "granite", "nemotron", "ernie", "hunyuan",
)  # fmt: skip


def _cases() -> list[object]:
    return [pytest.param(name, marks=() if name in _OFTEN else pytest.mark.rare) for name in _BUILT]


@pytest.mark.parametrize("name", _cases())
def test_branches_of_every_architecture_agree_with_peft(name: str, tmp_path: Path) -> None:
    base = decoder_base(name, tmp_path / "base")
    adapters = {
        key: decoder_adapter(base, tmp_path / key, seed=seed, r=rank) for key, seed, rank in (("a", 1, 4), ("b", 2, 8))
    }
    manifest = export(base, adapters, tmp_path / "bundle").manifest
    report = manifest.verification
    assert manifest.exporter == "genai" and report is not None and report.passed
    assert report.base is not None and report.base.bit_equal
    assert report.mixed is not None and report.mixed.max_abs_error == 0
    assert set(report.adapters or {}) == {"a", "b"}
    for row in (report.adapters or {}).values():
        assert row.onnx.max_abs_error <= 3e-4
        assert row.texts is not None and row.texts.agree and row.texts.prompts >= 5
        assert row.perplexity is not None and row.perplexity.onnx == pytest.approx(row.perplexity.pytorch, rel=1e-4)


@pytest.mark.rare
def test_phi3_is_merged_and_its_packed_gate_gets_no_branch(tmp_path: Path) -> None:
    base = decoder_base("phi3", tmp_path / "base")
    adapter = decoder_adapter(base, tmp_path / "a")
    assert export(base, adapter, tmp_path / "merged").manifest.verification.passed  # type: ignore[union-attr]
    with pytest.raises(AdapterError, match="gate_up_proj', which the GenAI builder splits"):
        export(base, {"a": adapter}, tmp_path / "branches")
    packed = decoder_adapter(base, tmp_path / "b", target_modules=["qkv_proj", "o_proj", "down_proj"])
    assert export(base, {"b": packed}, tmp_path / "branches").manifest.verification.passed  # type: ignore[union-attr]


def test_the_builder_knows_every_class_that_is_exported() -> None:
    spec = importlib.util.find_spec("onnxruntime_genai")
    assert spec is not None and spec.origin is not None
    source = (Path(spec.origin).parent / "models" / "builder.py").read_text()
    known = set(re.findall(r'architectures\[0\] == "(\w+)"', source))
    assert set(BUILT) <= known
    tried = {DECODERS[name][0].removesuffix("Config") for name in (*_BUILT, "phi3")}
    assert {name.removesuffix("ForCausalLM") for name in BUILT} == tried
