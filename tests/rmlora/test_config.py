"""Settings are validated once, and messages name the setting to change."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmlora.config import PRESETS, RMLoRAConfig
from rmlora.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, not 0: change --rank"),
        ({"rank": 2.5}, "rank must be a whole number"),
        ({"rank": True}, "rank must be a whole number"),
        ({"rank": 4, "active_rank": 5}, "active_rank 5 is larger than rank 4: lower --active-rank or raise --rank"),
        ({"alpha": 0}, "alpha must be positive, not 0: change --alpha"),
        ({"orth_weight": -0.1}, "orth_weight must be 0 or more"),
        ({"orth_weight": float("nan")}, "orth_weight must be 0 or more"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"mask_sharing": "both"}, "mask_sharing must be shared or independent, not 'both'"),
        ({"mask_mode": "none"}, "mask_mode must be gradient or update, not 'none'"),
        ({"target_modules": ()}, "target_modules is empty"),
        ({"modules_to_save": "classifier"}, "modules_to_save must be a list of module names"),
        ({"rank_pattern": {"query": 0}}, r"rank_pattern\['query'\] must be a whole number of at least 1"),
        ({"alpha_pattern": {"query": -1}}, r"alpha_pattern\['query'\] must be positive"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RMLoRAConfig(**settings)


def test_unknown_setting_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Unknown RM-LoRA setting ranks: the known ones are .*rank"):
        RMLoRAConfig.from_dict({"ranks": 4})


@given(rank=st.integers(1, 64), data=st.data())
def test_json_round_trip(rank: int, data: st.DataObject) -> None:
    config = RMLoRAConfig(
        rank=rank,
        active_rank=data.draw(st.integers(1, rank)),
        orth_weight=data.draw(st.floats(0, 1)),
        target_modules=data.draw(st.sampled_from(["all-linear", ("query", "value")])),
        rank_pattern={"query": 3},
        mask_sharing="independent",
    )
    assert RMLoRAConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(rank=st.integers(1, 64), data=st.data())
def test_active_rank_scales_with_a_modules_rank(rank: int, data: st.DataObject) -> None:
    config = RMLoRAConfig(rank=rank, active_rank=data.draw(st.integers(1, rank)))
    for module_rank in (1, 2, rank, 2 * rank):
        assert 1 <= config.active_rank_of(module_rank) <= module_rank
    assert config.active_rank_of(2 * rank) == 2 * config.active_rank


def test_to_peft_carries_every_setting() -> None:
    config = RMLoRAConfig(
        rank=4,
        active_rank=2,
        alpha=32,
        dropout=0.1,
        rslora=True,
        target_modules=("query",),
        exclude_modules=("layer.0",),
        modules_to_save=("head",),
        rank_pattern={"a": 2},
        alpha_pattern={"a": 8},
        fan_in_fan_out=True,
    )
    peft = config.to_peft(task_type="SEQ_CLS")
    assert (peft.r, peft.lora_alpha, peft.lora_dropout, peft.use_rslora) == (4, 32, 0.1, True)
    assert (peft.target_modules, peft.exclude_modules, peft.modules_to_save) == ({"query"}, {"layer.0"}, ["head"])
    assert (peft.rank_pattern, peft.alpha_pattern, peft.fan_in_fan_out) == ({"a": 2}, {"a": 8}, True)
    assert peft.task_type == "SEQ_CLS"


def test_all_directions_are_active_unless_fewer_are_asked_for() -> None:
    assert RMLoRAConfig(rank=6).active_rank == 6
    assert not RMLoRAConfig(rank=6).masks
    assert RMLoRAConfig(**PRESETS["paper"]).active_rank == 4
