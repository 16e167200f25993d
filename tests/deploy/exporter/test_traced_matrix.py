"""Every architecture that is traced with torch.onnx, tiny and random: verified against PEFT, or refused with the true reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from rmlora.errors import CheckpointError
from rmlora_deploy import export
from rmlora_deploy.exporter.decoder.genai_architectures import BUILT
from rmlora_deploy.exporter.decoder.traced_architectures import EXPERTS, NOT_EXPORTED, TRACED
from tests.helpers.decoders import DECODERS, decoder_adapter, decoder_base

_TRACED = (
    "gpt2", "gpt_neo", "gptj", "codegen", "gpt_neox", "gpt_bigcode", "opt", "bloom", "biogpt", "falcon", "falcon40", "falcon_alibi",
    "stablelm", "olmo", "olmo2", "olmo3", "gemma3", "starcoder2", "cohere", "cohere2", "glm", "glm4", "helium", "exaone4", "arcee",
    "apertus", "seed_oss", "persimmon", "ministral", "mixtral", "qwen2_moe", "qwen3_moe",
)  # fmt: skip
_OFTEN = ("gpt2", "gemma3")
"""Conv1D and learned positions; windows and norms everywhere."""
_REFUSED = {
    "deepseek": "keys and values have different sizes",
    "lfm2": "the state of a convolution",
    "mamba": "keep a recurrent state",
    "xglm": "compute their attention themselves",
}
_EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def _cases() -> list[object]:
    return [pytest.param(name, marks=() if name in _OFTEN else pytest.mark.rare) for name in _TRACED]


@pytest.mark.parametrize("name", _cases())
def test_branches_of_every_traced_architecture_agree_with_peft(name: str, tmp_path: Path) -> None:
    base = decoder_base(name, tmp_path / "base")
    # PEFT's all-linear also adapts the experts' parameters, which are no modules.
    targets = _ATTENTION if name in _EXPERTS else "all-linear"
    adapters = {
        key: decoder_adapter(base, tmp_path / key, seed=seed, r=rank, target_modules=targets)
        for key, seed, rank in (("a", 1, 4), ("b", 2, 8))
    }
    manifest = export(base, adapters, tmp_path / "bundle").manifest
    report = manifest.verification
    assert manifest.exporter == "torch" and report is not None and report.passed
    assert manifest.model.operators["GroupQueryAttention"] == 2
    assert report.base is not None and report.base.bit_equal
    # The operator for experts multiplies all tokens of an expert at once, which rounds otherwise than one token alone.
    assert report.mixed is not None and report.mixed.max_abs_error <= (1e-5 if name in _EXPERTS else 0)
    assert set(report.adapters or {}) == {"a", "b"}
    for row in (report.adapters or {}).values():
        assert row.onnx.max_abs_error <= 3e-4
        assert row.texts is not None and row.texts.agree and row.texts.prompts >= 5
        assert row.perplexity is not None and row.perplexity.onnx == pytest.approx(row.perplexity.pytorch, rel=1e-4)


@pytest.mark.parametrize("name", _REFUSED)
def test_other_architectures_are_refused_by_name_before_any_work(name: str, tmp_path: Path) -> None:
    base = decoder_base(name, tmp_path / "base")
    targets = {"deepseek": ["o_proj"], "mamba": ["in_proj"]}.get(name, "all-linear")
    adapter = decoder_adapter(base, tmp_path / "a", target_modules=targets)
    for mode in ("merged", "branches"):
        with pytest.raises(CheckpointError, match=_REFUSED[name]) as caught:
            export(base, {"a": adapter}, tmp_path / "bundle", mode=mode, on_progress=_no_export)
        assert "LlamaForCausalLM" in str(caught.value) and "GPT2LMHeadModel" in str(caught.value)
        assert "rmlora-deploy merge" in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def _no_export(line: str) -> None:
    assert not line.startswith(("building", "exporting"))


def test_every_class_of_the_lists_exists_and_is_in_one_of_them() -> None:
    assert not set(TRACED) & set(BUILT) and not {*TRACED, *BUILT} & set(NOT_EXPORTED)
    for name in {*TRACED, *BUILT, *NOT_EXPORTED} - {"PhiMoEForCausalLM"}:  # as Microsoft's own code calls it
        assert hasattr(transformers, name), name
    tried = {DECODERS[name][0].removesuffix("Config") for name in _TRACED}
    assert {name.removesuffix("ForCausalLM").removesuffix("LMHeadModel") for name in TRACED} == {
        name.removesuffix("Text") for name in tried
    }
    assert set(EXPERTS) <= set(TRACED)
