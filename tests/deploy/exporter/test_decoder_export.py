"""Exporting language models: what a bundle holds, what it is compared with, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, CheckpointError, ConfigError, ParityError
from rmlora_deploy import export, load, verify
from rmlora_deploy.bundles.adapters import add_adapter
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.exporter.decoder import decoder_routes
from rmlora_deploy.exporter.decoder.builder_checkpoint import check_end_token
from rmlora_deploy.inference import Generator
from rmlora_deploy.runtime import AdapterRef
from tests.helpers.cli import fails, run
from tests.helpers.decoders import decoder_adapter, decoder_base
from tests.helpers.genai import genai_texts_are_ours
from tests.helpers.rarely import rarely


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a base, the adapters a and b, and bundles of them."""
    directory = tmp_path_factory.mktemp("decoders")
    base = decoder_base("llama", directory / "base")
    adapters = {name: decoder_adapter(base, directory / name, seed=seed) for name, seed in (("a", 1), ("b", 2))}
    export(base, adapters, directory / "both")
    export(base, adapters["a"], directory / "merged")
    return directory


def test_a_bundle_holds_what_genai_and_the_toolkit_read(made: Path) -> None:
    files = {path.name for path in (made / "merged").iterdir()}
    assert {
        "model.onnx",
        "genai_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "config.json",
        "manifest.json",
    } <= files
    assert not any((made / "merged" / name).exists() for name in ("built", "source", "cache"))
    manifest = Bundle.open(made / "merged").manifest
    assert manifest.decoder is not None and manifest.decoder.chat and manifest.decoder.context_length == 256
    assert manifest.exporter == "genai" and manifest.decoder.built_for == "cpu"
    report = manifest.verification
    assert report is not None and report.onnx is not None and report.onnx.max_abs_error <= 3e-4
    assert report.texts is not None and report.texts.agree
    assert {path.name for path in (made / "both" / "adapters").iterdir()} >= {"a.onnx_adapter", "b.onnx_adapter"}


def test_the_greedy_text_is_that_of_peft(made: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(made / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(made / "a")).eval()
    both, merged = load(made / "both"), load(made / "merged")
    assert isinstance(both, Generator) and isinstance(merged, Generator)
    prompts = ["The river", "a", "Where is the bridge ?"]
    for prompt, one, other in zip(
        prompts,
        both.generate(prompts, "a", max_new_tokens=20, raw=True),
        merged.generate(prompts, max_new_tokens=20, raw=True),
        strict=True,
    ):
        ids = both.codec.encode(prompt, raw=True)
        with torch.inference_mode():
            found = adapted.generate(input_ids=torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :]
        expected = [token for token in found.tolist() if token not in both.session.layout.end_tokens]
        assert list(one.tokens) == expected == list(other.tokens)
        assert one.finish == ("length" if len(expected) == 20 else "end")


def test_genai_loads_the_directory_and_its_adapters_and_gives_the_same_text(made: Path) -> None:
    ours = load(made / "both")
    assert isinstance(ours, Generator)
    genai_texts_are_ours(ours, [None, "a", "b"])


def test_verify_with_and_without_pytorch(made: Path) -> None:
    for name in ("merged", "both"):
        alone = verify(made / name, reference_only=True, record=False)
        assert alone.passed and alone.against.startswith("stored outputs")
        again = verify(made / name, record=False)
        assert again.passed and again.against == "PyTorch and PEFT"
    assert alone.base is not None and alone.base.bit_equal


def test_perplexity_is_measured_on_the_users_data(made: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"Line {number} of a story."}) + "\n" for number in range(9)))
    report = verify(made / "merged", data=str(data), record=False)
    assert report.perplexity is not None and report.perplexity.data == "texts.jsonl"
    assert report.perplexity.tokens == sum(len(f"Line {number} of a story.") - 1 for number in range(9))
    done = run("verify", made / "merged", "--data", data, "--no-write")
    assert done.code == 0 and "perplexity on 153 tokens of texts.jsonl: PyTorch in float32" in done.stdout


@pytest.mark.parametrize("form", ["messages", "completion"])
def test_of_instruction_data_the_answers_count(made: Path, tmp_path: Path, form: str) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{number} ?"}, {"role": "assistant", "content": "Yes, it is."}]}
        if form == "messages"
        else {"prompt": f"{number} ?", "completion": "Yes, it is."}
        for number in range(7)
    ]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = verify(made / "both", data={"a": str(data)}, record=False)
    row = (report.adapters or {})["a"]
    assert row.passed and row.perplexity is not None and row.texts is not None
    assert row.perplexity.tokens == 7 * len("Yes, it is.") and row.texts.prompts == 6
    assert (report.adapters or {})["b"].perplexity.data == "built-in text"  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_branches_are_bit_equal_to_the_quantized_base(made: Path, tmp_path: Path, precision: str) -> None:
    bundle = export(made / "base", {"a": made / "a", "b": made / "b"}, tmp_path / "bundle", precision=precision)
    report = bundle.manifest.verification
    assert report is not None and report.passed and report.base is not None and report.base.bit_equal
    assert report.mixed is not None and report.mixed.max_abs_error == 0
    products = 4 * 2 + 1  # packed q, k and v, o, packed gate and up, and down in two layers, and the head
    assert bundle.manifest.model.operators["MatMulNBits"] == products
    assert (report.adapters or {})["a"].perplexity is not None
    assert bundle.manifest.decoder is not None
    assert bundle.manifest.decoder.recipe == ("k_quant_mixed" if precision == "int4" else None)


@pytest.mark.rare
def test_fp16_is_built_for_cuda_and_refused_for_the_cpu(made: Path, tmp_path: Path) -> None:
    for precision, provider in (("fp16", "cpu"), ("fp32", "cuda")):
        with pytest.raises(ConfigError, match=f"{precision} for {provider} does not run"):
            export(made / "base", made / "a", tmp_path / "no", precision=precision, provider=provider)
    bundle = export(made / "base", made / "a", tmp_path / "bundle", precision="fp16")
    assert bundle.manifest.decoder is not None and bundle.manifest.decoder.built_for == "cuda"
    assert bundle.manifest.verification is not None and bundle.manifest.verification.passed


def test_an_adapter_can_be_added_later_and_a_foreign_one_cannot(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "both", tmp_path / "both")
    bundle = Bundle.open(tmp_path / "both")
    entry = add_adapter(bundle, "c", decoder_adapter(made / "base", tmp_path / "c", seed=3, r=2))
    assert entry.rank == 2
    opened = load(tmp_path / "both")
    assert isinstance(opened, Generator)
    answers = opened.generate(["The river"] * 3, ["a", "c", None], max_new_tokens=8, raw=True)
    assert len({answer.tokens for answer in answers}) == 3
    other = decoder_base("llama", tmp_path / "other", seed=5)
    narrow = decoder_adapter(decoder_base("llama", tmp_path / "narrow", intermediate_size=64), tmp_path / "n")
    with pytest.raises(AdapterError, match="made for different bases"):
        add_adapter(bundle, "n", narrow)
    assert other.is_dir()


def test_a_wrong_graph_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(checkpoint: Path, output: Path, *rest: object, **options: object) -> None:
        built(made / "base", output, *rest, **options)  # type: ignore[arg-type]

    built = decoder_routes.build_decoder
    monkeypatch.setattr(decoder_routes, "build_decoder", build)
    with pytest.raises(ParityError, match="differs from PyTorch by .* No bundle was written"):
        export(made / "base", made / "a", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_modules_without_a_branch_are_refused_and_can_be_merged(made: Path, tmp_path: Path) -> None:
    embedding = decoder_adapter(made / "base", tmp_path / "e", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(AdapterError, match="changes the embedding 'model.embed_tokens'"):
        export(made / "base", {"e": embedding}, tmp_path / "no")
    saved = decoder_adapter(made / "base", tmp_path / "s", target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(AdapterError, match="lm_head"):
        export(made / "base", {"s": saved}, tmp_path / "no")
    assert export(made / "base", embedding, tmp_path / "merged").manifest.verification.passed  # type: ignore[union-attr]


def test_the_tied_head_gets_a_branch_and_the_embedding_stays(made: Path, tmp_path: Path) -> None:
    head = decoder_adapter(made / "base", tmp_path / "h", target_modules=["q_proj", "lm_head"])
    report = export(made / "base", {"h": head}, tmp_path / "bundle").manifest.verification
    assert report is not None and report.passed and report.base is not None and report.base.bit_equal
    session = Bundle.open(tmp_path / "bundle").decoder_session()
    tokens, ref = list(range(5, 40)), AdapterRef("h")
    np.testing.assert_array_equal(session.logits(tokens, ref, start=-4), session.logits(tokens, ref)[-4:])
    assert session.logits(tokens, ref, start=-1).shape[0] == 1  # the branch, too, computes no more
    assert verify(tmp_path / "bundle", reference_only=True).passed


def test_a_tied_head_is_refused_in_int4_before_the_build(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_routes, "build_decoder", None)  # calling it would be the wrong error
    head = decoder_adapter(made / "base", tmp_path / "h", target_modules=["q_proj", "lm_head"])
    with pytest.raises(AdapterError, match="'h' changes 'lm_head', whose weight the base ties .* --precision int8"):
        export(made / "base", {"h": head}, tmp_path / "no", precision="int4")


@pytest.mark.parametrize("module", [rarely("q_proj"), "k_proj"])
def test_an_adapter_of_queries_or_keys_alone_is_tried_on_more_than_one_token(
    made: Path, tmp_path: Path, module: str
) -> None:
    adapter = decoder_adapter(made / "base", tmp_path / "one", target_modules=[module])
    report = export(made / "base", {"one": adapter}, tmp_path / "bundle").manifest.verification
    assert report is not None and report.passed
    silent = decoder_adapter(made / "base", tmp_path / "silent", target_modules=[module], size=0.0)
    with pytest.raises(AdapterError, match="'silent' changes nothing in the outputs"):
        add_adapter(Bundle.open(tmp_path / "bundle"), "silent", silent)


def test_a_base_without_an_end_token_is_refused_before_the_merge(tmp_path: Path) -> None:
    base = decoder_base("llama", tmp_path / "base", eos_token_id=None)
    adapter = decoder_adapter(base, tmp_path / "a", target_modules=["q_proj"])
    checkpoint = Checkpoint(base)
    check_end_token(checkpoint)  # the tokenizer names one
    file = base / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None, "pad_token": "<s>"}))
    with pytest.raises(
        CheckpointError, match=r"base names no token that ends a text, .* add 'eos_token_id' to its config"
    ):
        export(base, adapter, tmp_path / "no")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    check_end_token(checkpoint)


def test_options_of_other_models_are_refused(made: Path, tmp_path: Path) -> None:
    base, adapter, out = made / "base", made / "a", tmp_path / "no"
    for flags in (
        ("--opset", "20"),
        ("--int8-bits", "7", "--precision", "int8"),
        ("--pooling", "mean"),
        ("--labels", "a,b"),
    ):
        fails(
            2,
            f"{flags[0]} does not go with adapters for text-generation",
            "export",
            base,
            "-a",
            adapter,
            "-o",
            out,
            *flags,
        )
    fails(2, "--mode merged takes one --adapter", "export", base, "-a", adapter, "-a", made / "b", "-o", out)


def test_a_model_without_a_chat_template_continues_text(tmp_path: Path) -> None:
    base = decoder_base("qwen2", tmp_path / "base", chat=False)
    adapter = decoder_adapter(base, tmp_path / "a")
    bundle = export(base, adapter, tmp_path / "bundle", verify=False)
    assert bundle.manifest.verification is None
    assert verify(tmp_path / "bundle", reference_only=True).passed  # PyTorch's logits are stored all the same
    assert bundle.manifest.decoder is not None and not bundle.manifest.decoder.chat
    opened = load(tmp_path / "bundle")
    assert isinstance(opened, Generator)
    plain, raw = opened.generate(["abc"], max_new_tokens=4), opened.generate(["abc"], max_new_tokens=4, raw=True)
    assert plain == raw and plain[0].prompt_tokens == 3
    logits = opened.session.logits(opened.codec.encode("abc"))
    assert logits.shape[0] == 3 and np.isfinite(logits).all()
