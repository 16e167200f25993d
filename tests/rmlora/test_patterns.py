"""Patterns of an adapter give PEFT's answers, and none of them can stop the program."""

import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from rmlora.errors import AdapterError
from rmlora.package import parse_adapter
from rmlora.patterns import check_selection, first_matches

NAMES = [
    "encoder.layer.0.attention.self.query",
    "encoder.layer.10.attention.self.query",
    "encoder.layer.1.output.dense",
    "model.layers.0.self_attn.q_proj",
    "model.vision.layers.0.self_attn.q_proj",
    "xquery",
    "query",
]
PATTERNS = [
    "query",
    "layer.1.output.dense",  # PEFT reads the dots as any character
    r"^encoder\.layer\.0\.attention\.self\.query",
    r"layer\.\d+\.attention\.self\.query",
    r"^(?!.*vision).*q_proj",
    r".*(?<!vision\.layers\.0\.self_attn\.)q_proj",
    r"(query|dense)",
    r"model\..*?proj$",
    "q_proj$",
    "self-query",
    r"encoder\.layer\.(?:0|10)\..*",
]


@pytest.fixture(autouse=True)
def short_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmlora.patterns.SECONDS", 2.0)


def peft_matches(patterns: list[str], names: list[str]) -> dict[str, str]:
    keys = {name: get_pattern_key(patterns, name) for name in names}
    return {name: key for name, key in keys.items() if key in patterns and re.match(rf"(.*\.)?({key})$", name)}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_matches_what_peft_matches(pattern: str) -> None:
    assert first_matches([pattern], NAMES, key="rank_pattern", source="a") == peft_matches([pattern], NAMES)


def test_the_first_of_several_patterns_wins() -> None:
    assert first_matches(PATTERNS, NAMES, key="rank_pattern", source="a") == peft_matches(PATTERNS, NAMES)
    assert first_matches(PATTERNS[::-1], NAMES, key="alpha_pattern", source="a") == peft_matches(PATTERNS[::-1], NAMES)


@given(st.lists(st.from_regex(r"\^?[a-c]{1,2}(\\?\.[a-c]{1,2}){0,2}\$?", fullmatch=True), min_size=1, max_size=4))
def test_plain_patterns_match_what_peft_matches(patterns: list[str]) -> None:
    names = ["a", "b", "a.b", "b.a", "aab", "ab.c", "a.b.c", "c.a.b", "axb"]
    assert first_matches(patterns, names, key="rank_pattern", source="x") == peft_matches(patterns, names)


def test_thousands_of_exact_patterns_take_no_time() -> None:
    names = [f"model.layers.{layer}.{part}" for layer in range(100) for part in "abcdefghij"]
    begin = time.monotonic()
    found = first_matches(["^" + re.escape(name) for name in names], names, key="rank_pattern", source="x")
    assert len(found) == 1000 and time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("patterns", "sentence"),
    [
        (["(a+)+b"], r"The pattern '\(a\+\)\+b' in rank_pattern of x takes too long to match"),
        (["(a"], r"in rank_pattern of x is not a regular expression: .*unterminated subpattern"),
        (["a" * 5000], "A pattern in rank_pattern of x has 5000 characters"),
        (["("*500 + ")" * 500], "in rank_pattern of x is not a regular expression|cannot be matched"),
        (["a"] * 30_000, "rank_pattern of x holds 30000 patterns; at most"),
    ],
)  # fmt: skip
def test_a_pattern_that_cannot_be_matched_is_refused(patterns: list[str], sentence: str) -> None:
    with pytest.raises(AdapterError, match=sentence):
        first_matches(patterns, ["a" * 60], key="rank_pattern", source="x")


@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "rank_pattern", "layers_pattern"])
def test_every_pattern_that_peft_would_match_is_tried_before(key: str) -> None:
    pattern = "(a+)+b"
    value = {pattern: 8} if key == "rank_pattern" else [pattern] if key == "layers_pattern" else pattern
    with pytest.raises(AdapterError, match=f"in {key} of x takes too long"):
        check_selection({key: value}, ["a" * 60], source="x")
    check_selection({"target_modules": "all-linear", "rank_pattern": {"query": 4}}, NAMES, source="x")


def test_an_adapter_with_such_a_pattern_is_refused_when_it_is_read() -> None:
    path = "a" * 60
    tensors = {
        f"base_model.model.{path}.lora_A.weight": np.zeros((2, 4), np.float32),
        f"base_model.model.{path}.lora_B.weight": np.zeros((4, 2), np.float32),
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "alpha_pattern": {"(a+)+b": 4}}
    with pytest.raises(AdapterError, match=r"in alpha_pattern of some/adapter_config.json takes too long"):
        parse_adapter(config, tensors, {}, source="some")
