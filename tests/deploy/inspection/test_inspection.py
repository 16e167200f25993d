"""Inspecting adapters and bundles: figures, fit to a base, pictures, and every mistake."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmlora.checkpoint import Checkpoint
from rmlora.config import RMLoRAConfig
from rmlora.errors import AdapterError
from rmlora.fingerprint import base_fingerprint
from rmlora.package import load_package, save_package
from rmlora.spectrum import adapter_spectrum
from rmlora_deploy.inspection.base_fit import fit_to_base, require_fit
from rmlora_deploy.inspection.spectrum_plot import plot_spectra
from tests.helpers.cli import fails, run
from tests.helpers.handmade import word_bundle
from tests.helpers.models import adapt, build, lora_config, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(build("bert"), tmp_path_factory.mktemp("inspect") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """A package written by this toolkit, with metadata and a mask over two directions of one module."""
    adapt(build("bert"), lora_config("bert", use_rslora=True)).save_pretrained(base.parent / "plain")
    plain = load_package(base.parent / "plain")
    path, module = next(iter(plain.modules.items()))
    masked = replace(module, rank_mask=np.array([True, False, True, False]))
    metadata = {
        "rmlora": RMLoRAConfig(rank=4, active_rank=2, alpha=6).to_dict(),
        "task": "text-classification",
        "labels": ["red", "green", "blue"],
        "base_fingerprint": base_fingerprint(Checkpoint(base), plain.modules),
        "metrics": {"test": {"accuracy": 0.75, "macro_f1": 0.5}},
    }
    made = replace(plain, modules={**plain.modules, path: masked}, metadata=metadata)
    save_package(made, base.parent / "adapter")
    return base.parent / "adapter"


def test_figures_of_an_adapter(adapter: Path) -> None:
    found = json.loads(run("inspect", adapter, "--json").stdout)
    package = load_package(adapter)
    assert found["kind"] == "adapter"
    assert found["labels"] == ["red", "green", "blue"]
    assert found["parameters"]["factors"] == package.parameters
    assert found["parameters"]["modules_to_save"] == sum(array.size for array in package.modules_to_save.values())
    assert found["bytes"] == sum(file.stat().st_size for file in adapter.iterdir())
    assert [item["module"] for item in found["modules"]] == list(package.modules)
    spectrum = adapter_spectrum(package)
    assert found["spectrum"]["effective_rank"] == pytest.approx(spectrum.effective_rank)
    first, second = found["modules"][:2]
    assert (first["rank"], first["active_rank"], first["numerical_rank"]) == (4, 2, 2)
    assert (second["rank"], second["active_rank"], second["alpha"]) == (4, 4, 6)
    assert second["scale"] == pytest.approx(6 / math.sqrt(4))  # rsLoRA
    update = package.modules[second["module"]]
    dense = np.linalg.svd(update.scale * update.B @ update.A, compute_uv=False)[:4]
    np.testing.assert_allclose(second["singular_values"], dense, rtol=1e-4)


def test_the_tables_of_an_adapter(adapter: Path) -> None:
    shown = run("inspect", adapter).stdout
    for text in ("RM-LoRA: rank 4, 2 active in a step", "accuracy 0.7500", "2 of 4", "red, green, blue"):
        assert text in shown
    assert len(run("inspect", adapter, "--all").stdout) >= len(shown)


def test_an_adapter_without_metadata_shows_what_is_known(base: Path, adapter: Path) -> None:
    shown = run("inspect", base.parent / "plain").stdout
    assert "a PEFT adapter from another program" in shown
    assert "not recorded" in shown


def test_the_base_it_was_made_for(base: Path, adapter: Path) -> None:
    done = run("inspect", adapter, "--base", base, "--json")
    fit = json.loads(done.stdout)["fit"]
    assert (done.code, fit["fits"], fit["same_base"]) == (0, True, True)
    assert all(item["tensor"].endswith(".weight") and item["problem"] is None for item in fit["modules"])
    assert "the weights it was trained on" in " ".join(run("inspect", adapter, "--base", base).stdout.split())
    unknown = json.loads(run("inspect", base.parent / "plain", "--base", base, "--json").stdout)["fit"]
    assert (unknown["fits"], unknown["same_base"]) == (True, None)


def test_the_same_shapes_with_other_weights(adapter: Path, tmp_path: Path) -> None:
    other = save_base(build("bert", seed=5), tmp_path / "other")
    fails(3, "fits", "inspect", adapter, "--base", other)
    done = run("inspect", adapter, "--base", other, "--json")
    assert done.code == 3
    assert "was trained on other weights" in done.stderr
    assert json.loads(done.stdout)["fit"]["same_base"] is False


def test_another_architecture(adapter: Path, tmp_path: Path) -> None:
    other = save_base(build("gpt2"), tmp_path / "gpt2")
    fails(
        3,
        "8 of 8 modules are missing or have another shape there, the first is 'bert.encoder",
        "inspect",
        adapter,
        "--base",
        other,
    )
    assert "not in the base" in run("inspect", adapter, "--base", other).stdout


def test_other_shapes(adapter: Path, base: Path) -> None:
    package = load_package(adapter)
    path, module = list(package.modules.items())[-1]
    odd = replace(module, lora_B=np.zeros((7, 4), np.float32))
    wrong = replace(package, modules={**package.modules, path: odd})
    fit = fit_to_base(wrong, Checkpoint(base))
    assert [item.problem for item in fit.misfits] == ["the update is 7 × 16, the weight 24 × 16"]
    with pytest.raises(AdapterError, match=rf"1 of 8 modules .*'{path}'"):
        require_fit(fit, wrong)


def test_a_tied_output_layer_fits_through_the_embedding(tmp_path: Path) -> None:
    from peft import LoraConfig
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    base = save_base(model, tmp_path / "base")
    adapt(model, LoraConfig(r=2, target_modules=["lm_head", "q_proj"])).save_pretrained(tmp_path / "adapter")
    done = run("inspect", tmp_path / "adapter", "--base", base, "--json")
    assert done.code == 0, done.stderr
    tensors = {item["module"]: item["tensor"] for item in json.loads(done.stdout)["fit"]["modules"]}
    assert tensors["lm_head"] == "model.embed_tokens.weight"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plots_of_one_or_several_adapters(adapter: Path, tmp_path: Path, suffix: str) -> None:
    picture = tmp_path / f"spectrum{suffix}"
    done = run("inspect", adapter, "--compare", adapter.parent / "plain", "--plot", picture)
    assert done.code == 0, done.stderr
    assert "plain" in done.stdout
    assert picture.stat().st_size > 5_000
    if suffix == ".png":
        assert np.asarray(Image.open(picture)).std() > 10  # something is drawn


def test_an_untrained_adapter_can_be_plotted(base: Path, tmp_path: Path) -> None:
    package = load_package(base.parent / "plain")
    still = {path: replace(item, lora_B=np.zeros_like(item.lora_B)) for path, item in package.modules.items()}
    plot_spectra({"still": adapter_spectrum(replace(package, modules=still))}, tmp_path / "still.png")
    assert (tmp_path / "still.png").is_file()


def test_comparisons_hold_every_adapter(adapter: Path, tmp_path: Path) -> None:
    found = json.loads(run("inspect", adapter, "--compare", adapter.parent / "plain", "--json").stdout)
    assert [item["source"] for item in found["compared"]] == [str(adapter.parent / "plain")]


def test_figures_of_a_bundle(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path / "words")
    found = json.loads(run("inspect", bundle, "--json").stdout)
    assert found["kind"] == "bundle"
    assert found["nodes"] == 5
    assert found["files"]["model.onnx"] == (bundle / "model.onnx").stat().st_size
    shown = run("inspect", bundle).stdout
    for text in ("ReduceSum 1", "input_ids", "batch × sequence", "fp32, merged", "Not verified"):
        assert text in shown


def test_mistakes_end_with_one_line_and_their_exit_code(adapter: Path, base: Path, tmp_path: Path) -> None:
    fails(3, "Nothing to inspect", "inspect", tmp_path / "none")
    fails(3, "is a file: give the directory", "inspect", adapter / "adapter_model.safetensors")
    fails(3, "is a model: give an adapter trained on it, or a bundle", "inspect", base)
    fails(3, "holds neither adapter_config.json nor manifest.json", "inspect", tmp_path)
    fails(3, "Base model not found", "inspect", adapter, "--base", tmp_path / "none")
    fails(3, "Adapter not found", "inspect", adapter, "--compare", tmp_path / "none")
    fails(2, "does not name a picture", "inspect", adapter, "--plot", tmp_path / "spectrum.txt")
    fails(8, "is not a directory; create it first", "inspect", adapter, "--plot", tmp_path / "none" / "s.png")
    bundle = word_bundle(tmp_path / "words")
    for words in (["--base", base], ["--compare", adapter], ["--plot", tmp_path / "s.png"]):
        fails(2, "is a bundle", "inspect", bundle, *words)
    cut = tmp_path / "cut"
    save_package(load_package(adapter), cut)
    (cut / "adapter_model.safetensors").write_bytes((cut / "adapter_model.safetensors").read_bytes()[:-8])
    fails(3, "is not a complete safetensors file", "inspect", cut)
