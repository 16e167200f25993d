"""Compression loses what it reports and no more, and PEFT runs the result."""

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

from rmlora.errors import AdapterError, ConfigError
from rmlora.package import load_package, save_package
from rmlora.spectrum import module_spectrum
from rmlora_converters.compress import compress_adapter
from rmlora_converters.mix import mix_adapters
from tests.converters.small_adapters import adapter, dense, module
from tests.helpers.cli import fails, run
from tests.helpers.models import ARCHITECTURES, adapt, build, lora_config, output, relative_error


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
        entry = next(entry for entry in report.modules if entry.module == item.path)
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
        ({"parameters": 3}, "the smallest takes 21"),
        ({"rank": 1, "energy": 0.5}, "Pass only one of --rank"),
    ):
        with pytest.raises(ConfigError, match=message):
            compress_adapter(one, **criterion)  # type: ignore[arg-type]
    silent = adapter(replace(module("layer", 2, 0), lora_B=np.zeros((9, 2), np.float32)))
    for refactor in (False, True):
        with pytest.raises(AdapterError, match="No direction"):
            compress_adapter(silent, refactor=refactor)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_peft_runs_what_was_mixed_and_compressed(name: str, tmp_path: Path) -> None:
    """Half of an adapter plus the other half, compressed to its rank, is the adapter itself."""
    model = adapt(build(name), lora_config(name))
    model.save_pretrained(tmp_path / "adapter")
    words = ["mix", tmp_path / "adapter", tmp_path / "adapter", "-o", tmp_path / "mixed"]
    assert run(*words).code == 0
    done = run("compress", tmp_path / "mixed", "--refactor", "-o", tmp_path / "small", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["loss"] < 1e-5
    expected = output(model, ARCHITECTURES[name].inputs())
    for result in ("mixed", "small"):
        loaded = PeftModel.from_pretrained(build(name), tmp_path / result).eval()
        with torch.no_grad():
            assert relative_error(output(loaded, ARCHITECTURES[name].inputs()), expected) <= 1e-5


def test_masked_packages_are_read_back(tmp_path: Path) -> None:
    items = [module("a", 6, 0), module("b", 5, 1)]
    masked, _ = compress_adapter(adapter(*items), energy=0.7)
    save_package(masked, tmp_path / "masked")
    read = load_package(tmp_path / "masked")
    for path, item in masked.modules.items():
        np.testing.assert_array_equal(dense(read.modules[path]), dense(item))
        assert read.modules[path].active_rank < item.rank


def test_the_compress_command_names_mistakes(tmp_path: Path) -> None:
    adapt(build("bert"), lora_config("bert")).save_pretrained(tmp_path / "a")
    out = ["-o", tmp_path / "out"]
    fails(3, "Adapter not found", "compress", tmp_path / "nowhere", *out)
    fails(2, "raise --parameters", "compress", tmp_path / "a", "--parameters", "1", *out)
    assert not (tmp_path / "out").exists()
    assert run("compress", tmp_path / "a", "--rank", "1", *out).stdout.count("of the update as a whole") == 1
    fails(8, "already exists", "compress", tmp_path / "a", *out)
