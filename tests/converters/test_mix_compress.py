"""A mix is the weighted sum; compression loses what it says and no more; PEFT agrees on both."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel

from rmlora.adapter import Adapter, LoraModule
from rmlora.errors import AdapterError, ConfigError
from rmlora.package import load_package, save_package
from rmlora.spectrum import module_spectrum
from rmlora_converters.compress import compress_adapter
from rmlora_converters.delta import delta_rows
from rmlora_converters.mix import mix_adapters
from tests.helpers.cli import fails, run
from tests.helpers.models import ARCHITECTURES, adapt, build, lora_config, output, relative_error


def module(path: str, rank: int, seed: int, mask: list[bool] | None = None) -> LoraModule:
    rng = np.random.default_rng(seed)
    return LoraModule(
        path=path,
        kind="linear",
        lora_A=rng.normal(size=(rank, 12)).astype(np.float32),
        lora_B=rng.normal(size=(9, rank)).astype(np.float32),
        scale=0.5,
        rank_mask=None if mask is None else np.array(mask),
    )


def adapter(*modules: LoraModule) -> Adapter:
    return Adapter(modules={item.path: item for item in modules})


def dense(item: LoraModule) -> np.ndarray:
    return delta_rows(item, (9, 12))


@settings(max_examples=30)
@given(ranks=st.lists(st.integers(1, 5), min_size=2, max_size=4), data=st.data())
def test_a_mix_is_the_weighted_sum(ranks: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(-2, 2), min_size=len(ranks), max_size=len(ranks)).filter(any))
    modules = [module("layer", rank, seed) for seed, rank in enumerate(ranks)]
    mixed = mix_adapters([adapter(item) for item in modules], weights).modules["layer"]
    expected = sum(weight * dense(item) for weight, item in zip(weights, modules, strict=True))
    scale = max(abs(weight) for weight in weights) * 30
    np.testing.assert_allclose(dense(mixed), expected, atol=1e-6 * scale)
    assert mixed.rank == sum(rank for rank, weight in zip(ranks, weights, strict=True) if weight)


def test_a_mix_keeps_masks_and_modules_of_one_side() -> None:
    left = adapter(module("both", 3, 0, mask=[True, False, True]), module("left", 2, 1))
    mixed = mix_adapters([left, adapter(module("both", 4, 2))], [1.0, -0.5])
    assert set(mixed.modules) == {"both", "left"}
    assert mixed.modules["both"].rank == 2 + 4
    expected = dense(left.modules["both"]) - 0.5 * dense(module("both", 4, 2))
    np.testing.assert_allclose(dense(mixed.modules["both"]), expected, atol=1e-5)


def test_what_cannot_be_mixed_is_refused() -> None:
    one = adapter(module("layer", 2, 0))
    wide = adapter(replace(module("layer", 2, 0), lora_A=np.ones((2, 13), np.float32)))
    with pytest.raises(AdapterError, match="made for different bases"):
        mix_adapters([one, wide], [1, 1])
    with pytest.raises(ConfigError, match="2 adapters need 2 weights, not 1"):
        mix_adapters([one, one], [1])
    with pytest.raises(ConfigError, match="not a finite number"):
        mix_adapters([one, one], [1, math.nan])
    with pytest.raises(AdapterError, match="No direction"):
        mix_adapters([one, one], [0, 0])
    with pytest.raises(ConfigError, match="different heads"):
        mix_adapters([one, replace(one, modules_to_save={"classifier.weight": np.ones(2)})], [1, 1])
    here, there = ({"base_weights": {"layer": digit * 32}} for digit in "ab")
    with pytest.raises(AdapterError, match="the weight of 'layer' differs"):
        mix_adapters([replace(one, metadata=here), replace(one, metadata=there)], [1, 1])


@settings(max_examples=30)
@given(rank=st.integers(1, 14), seed=st.integers(0, 99), refactor=st.booleans())
def test_without_a_criterion_nothing_is_lost(rank: int, seed: int, refactor: bool) -> None:
    item = module("layer", rank, seed)
    smaller, report = compress_adapter(adapter(item), refactor=refactor)
    np.testing.assert_allclose(dense(smaller.modules["layer"]), dense(item), atol=1e-5 * np.abs(dense(item)).max())
    assert smaller.modules["layer"].active_rank == module_spectrum(item).numerical_rank <= min(rank, 9)
    assert report.loss < 1e-5


def test_exact_refactoring_finds_the_smallest_rank() -> None:
    item = module("layer", 3, 0)
    doubled = mix_adapters([adapter(item), adapter(item)], [0.25, 0.75])
    assert doubled.modules["layer"].rank == 6
    smaller, _ = compress_adapter(doubled, refactor=True)
    assert smaller.modules["layer"].rank == 3
    np.testing.assert_allclose(dense(smaller.modules["layer"]), dense(item), atol=1e-5)


@pytest.mark.parametrize("criterion", [{"rank": 2}, {"energy": 0.8}, {"parameters": 100}])
def test_the_loss_is_the_one_reported_and_the_best_possible(criterion: dict[str, float]) -> None:
    items = [module(f"layer{seed}", 6, seed) for seed in range(3)]
    smaller, report = compress_adapter(adapter(*items), **criterion)  # type: ignore[arg-type]
    lost = total = 0.0
    for item in items:
        entry = next(kept for kept in report.modules if kept.module == item.path)
        gone = dense(item) - dense(smaller.modules[item.path])
        norm = np.linalg.norm(dense(item))
        assert entry.loss == pytest.approx(np.linalg.norm(gone) / norm, abs=1e-5)
        tail = np.linalg.svd(dense(item), compute_uv=False)[entry.after :]
        assert np.linalg.norm(gone) == pytest.approx(np.linalg.norm(tail), rel=1e-4, abs=1e-4)
        lost, total = lost + np.sum(gone**2), total + norm**2
    assert report.loss == pytest.approx(math.sqrt(lost / total), rel=1e-4)
    assert report.parameters_after < report.parameters_before
    if "parameters" in criterion:
        assert report.parameters_after <= 100


def test_masking_and_dropping_give_the_same_update() -> None:
    items = [module("a", 6, 0), module("b", 6, 1)]
    masked, _ = compress_adapter(adapter(*items), parameters=21)
    dropped, _ = compress_adapter(adapter(*items), parameters=21, refactor=True)
    assert {item.rank for item in masked.modules.values()} == {6}
    for path, item in masked.modules.items():
        expected = dense(dropped.modules[path]) if path in dropped.modules else 0 * dense(item)
        np.testing.assert_allclose(dense(item), expected, atol=1e-6)


def test_criteria_out_of_range_say_what_to_change() -> None:
    one = adapter(module("layer", 2, 0))
    for criterion, message in (
        ({"rank": 0}, "change --rank"),
        ({"energy": 1.5}, "change --energy"),
        ({"parameters": 3}, "the least takes 21"),
        ({"rank": 1, "energy": 0.5}, "Give one of --rank"),
    ):
        with pytest.raises(ConfigError, match=message):
            compress_adapter(one, **criterion)  # type: ignore[arg-type]
    silent = adapter(replace(module("layer", 2, 0), lora_B=np.zeros((9, 2), np.float32)))
    for refactor in (False, True):
        with pytest.raises(AdapterError, match="No direction"):
            compress_adapter(silent, refactor=refactor)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_peft_runs_what_was_mixed_and_compressed(name: str, tmp_path: Path) -> None:
    """Half of an adapter plus half of it again, back at its own rank, is the adapter itself."""
    model = adapt(build(name), lora_config(name))
    model.save_pretrained(tmp_path / "adapter")
    words = ["mix", tmp_path / "adapter", tmp_path / "adapter", "-o", tmp_path / "mixed"]
    assert run(*words).code == 0
    done = run("compress", tmp_path / "mixed", "--refactor", "-o", tmp_path / "small", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["loss"] < 1e-5
    expected = output(model, ARCHITECTURES[name].inputs())
    for made in ("mixed", "small"):
        again = PeftModel.from_pretrained(build(name), tmp_path / made).eval()
        with torch.no_grad():
            assert relative_error(output(again, ARCHITECTURES[name].inputs()), expected) <= 1e-5


def test_masked_packages_are_read_back(tmp_path: Path) -> None:
    items = [module("a", 6, 0), module("b", 5, 1)]
    masked, _ = compress_adapter(adapter(*items), energy=0.7)
    save_package(masked, tmp_path / "masked")
    read = load_package(tmp_path / "masked")
    for path, item in masked.modules.items():
        np.testing.assert_array_equal(dense(read.modules[path]), dense(item))
        assert read.modules[path].active_rank < item.rank


def test_the_commands_tell_their_mistakes(tmp_path: Path) -> None:
    adapt(build("bert"), lora_config("bert")).save_pretrained(tmp_path / "a")
    out = ["-o", tmp_path / "out"]
    fails(2, "--weights x is not a list of numbers", "mix", tmp_path / "a", "--weights", "x", *out)
    fails(2, "1 adapters need 1 weights, not 2", "mix", tmp_path / "a", "--weights", "1,2", *out)
    fails(2, "is not one of the adapters", "mix", tmp_path / "a", "--head-from", tmp_path / "b", *out)
    fails(3, "Adapter not found", "mix", tmp_path / "nowhere", *out)
    fails(3, "Adapter not found", "compress", tmp_path / "nowhere", *out)
    fails(2, "raise --parameters", "compress", tmp_path / "a", "--parameters", "1", *out)
    assert not (tmp_path / "out").exists()
    assert run("compress", tmp_path / "a", "--rank", "1", *out).stdout.count("of the update as a whole") == 1
    fails(8, "already exists", "compress", tmp_path / "a", *out)
    fails(8, "already exists", "mix", tmp_path / "a", *out)
