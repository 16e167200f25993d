"""A mix is the weighted sum of its adapters."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rmlora.errors import AdapterError, ConfigError
from rmlora_converters.compress import compress_adapter
from rmlora_converters.mix import mix_adapters
from tests.converters.small_adapters import adapter, dense, module
from tests.helpers.cli import fails, run
from tests.helpers.models import adapt, build, lora_config


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


def test_a_mix_reads_texts_as_far_as_the_longest_of_its_adapters() -> None:
    one = adapter(module("layer", 2, 0))
    short = replace(one, metadata={"training": {"settings": {"max_length": 64}, "steps": 7}})
    mixed = mix_adapters([short, replace(one, metadata={"max_length": 128})], [1, 1])
    assert (mixed.trained_length, mixed.metadata.get("training")) == (128, None)
    assert mix_adapters([one, one], [1, 1]).trained_length is None
    assert compress_adapter(short, energy=0.9)[0].trained_length == 64


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
    pair, text = (replace(one, metadata={"input_form": form}) for form in ("pair", "text"))
    with pytest.raises(ConfigError, match="was trained on pairs of texts and"):
        mix_adapters([text, pair], [1, 1])
    assert mix_adapters([text, pair], [1, 1], head=1).input_form == "pair"
    assert mix_adapters([one, pair], [1, 1]).input_form == "pair"
    here, there = ({"base_weights": {"layer": digit * 32}} for digit in "ab")
    with pytest.raises(AdapterError, match="the weight of 'layer' differs"):
        mix_adapters([replace(one, metadata=here), replace(one, metadata=there)], [1, 1])


def test_the_mix_command_names_mistakes(tmp_path: Path) -> None:
    adapt(build("bert"), lora_config("bert")).save_pretrained(tmp_path / "a")
    out = ["-o", tmp_path / "out"]
    fails(2, "--weights x is not a list of numbers", "mix", tmp_path / "a", "--weights", "x", *out)
    fails(2, "1 adapter needs 1 weight, not 2", "mix", tmp_path / "a", "--weights", "1,2", *out)
    fails(2, "is not one of the adapters", "mix", tmp_path / "a", "--head-from", tmp_path / "b", *out)
    fails(3, "Adapter not found", "mix", tmp_path / "nowhere", *out)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    fails(8, "already exists", "mix", tmp_path / "a", *out)


def test_what_is_made_of_adapters_has_a_card_without_their_figures(tmp_path: Path) -> None:
    adapt(build("bert"), lora_config("bert")).save_pretrained(tmp_path / "a_b")
    theirs = (tmp_path / "a_b" / "README.md").read_text()
    made = {"mix": ["--weights", "0.7"], "compress": ["--rank", "1"], "refactor": ["--rank", "1", "--refactor"]}
    pages = {}
    for name, flags in made.items():
        command = "compress" if name == "refactor" else name
        done = run(command, tmp_path / "a_b", *flags, "-o", tmp_path / name)
        assert done.code == 0, done.stderr
        pages[name] = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert yaml.safe_load(pages[name].split("---\n")[1])["library_name"] == "peft"
        assert "It was not evaluated since" in pages[name] and str(tmp_path) not in pages[name]
    assert "the sum 0.7 · a\\_b." in pages["mix"]
    assert "PEFT does not read" in pages["compress"] and "PEFT does not read" not in pages["refactor"]
    assert (tmp_path / "a_b" / "README.md").read_text() == theirs
