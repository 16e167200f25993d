"""Splits of examples into test, validation and nested training sets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.realdata import DATASETS, Example, Split, split
from rmlora.errors import InputError


@st.composite
def _examples(draw: st.DrawFn) -> list[Example]:
    """Draw 60 to 300 examples of up to five labels, alone or in groups of up to four."""
    labels = draw(st.lists(st.sampled_from("abcde"), min_size=60, max_size=300))
    size = draw(st.integers(1, 4))
    return [
        Example(str(number), label, None if size == 1 else f"{label}{number // size}")
        for number, label in enumerate(labels)
    ]


def _groups(examples: list[Example], indices: list[int]) -> set[str]:
    return {examples[index].group or examples[index].input for index in indices}


@settings(deadline=None)
@given(_examples(), st.integers(0, 2**32), st.integers(1, 10))
def test_training_sets_are_nested_and_share_the_other_parts(examples: list[Example], seed: int, size: int) -> None:
    everything = split(examples, seed=seed, validation=10, test=16)
    for train in (0, size, 2 * size):
        assert split(examples, seed=seed, train=train, validation=10, test=16) == Split(
            everything.train[:train], everything.validation, everything.test
        )
    assert split(examples, seed=seed, validation=0, test=16).test == everything.test


@settings(deadline=None)
@given(_examples(), st.integers(0, 2**32))
def test_no_index_and_no_group_is_in_two_parts(examples: list[Example], seed: int) -> None:
    parts = split(examples, seed=seed, validation=8, test=16)
    assert (len(parts.validation), len(parts.test)) == (8, 16)
    indices = [index for part in parts for index in part]
    assert len(indices) == len(set(indices))
    assert set(indices) <= set(range(len(examples)))
    groups = [_groups(examples, part) for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups))
    left_out = set(range(len(examples))) - set(indices)
    assert _groups(examples, sorted(left_out)) <= groups[1] | groups[2]  # nothing that could have trained is left out


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcde"), min_size=60, max_size=300), st.integers(0, 2**32), st.integers(1, 40))
def test_every_part_has_the_shares_of_the_labels(labels: list[str], seed: int, size: int) -> None:
    """Where examples stand alone, no label is more than one example off its share for each beginning of the order."""
    examples = [Example(str(number), label) for number, label in enumerate(labels)]
    parts = split(examples, seed=seed, train=min(size, len(labels) - 20), validation=0, test=20)
    whole = Counter(labels)
    _within_one(Counter(labels[index] for index in parts.test), whole)
    trained = Counter(labels[index] for index in parts.train)
    _within_one(trained, whole - Counter(labels[index] for index in parts.test))
    if len(parts.train) >= len(whole):
        assert set(trained) == {labels[i] for i in range(len(labels)) if i not in parts.test}


def _within_one(part: Counter[str], whole: Counter[str]) -> None:
    """Check that a part is a beginning of all labels at one and the same progress."""
    assert max((part[label] - 1) / whole[label] for label in whole) <= min(
        part[label] / whole[label] for label in whole
    )


def test_the_seed_decides() -> None:
    examples = [Example(str(number), "ab"[number % 2]) for number in range(100)]
    first = split(examples, seed=1, validation=10, test=20)
    assert first == split(examples, seed=1, validation=10, test=20)
    assert set(first.test) != set(split(examples, seed=2, validation=10, test=20).test)


def test_a_large_group_only_trains() -> None:
    examples = [Example(str(number), "a", "large" if number < 30 else None) for number in range(100)]
    for seed in range(20):
        assert set(range(30)) <= set(split(examples, seed=seed, validation=20, test=40).train)


def test_too_much_is_refused() -> None:
    examples = [Example(str(number), "a", "large" if number < 30 else None) for number in range(100)]
    with pytest.raises(InputError, match="61 examples are wanted for training and 60 are left beside 30 for testing"):
        split(examples, seed=0, train=61, validation=10, test=30)
    with pytest.raises(InputError, match="80 examples are wanted for test and 70 are in groups of at most 20"):
        split(examples, seed=0, validation=0, test=80)


@pytest.mark.parametrize("name", ["trec", "intents", "bbc", "stsb", "diagnoses"])
def test_real_data(name: str) -> None:
    """Test sets of 1,000 (BBC: 700) hold every label, and so does a training set of 200."""
    examples = DATASETS[name]()
    parts = split(examples, seed=0, train=200, validation=200, test=700 if name == "bbc" else 1000)
    kinds = [{round(e.label) if isinstance(e.label, float) else e.label for e in examples}]
    for part in (parts.train, parts.test):
        kinds.append({round(v) if isinstance(v := examples[i].label, float) else v for i in part})
    assert kinds[0] == kinds[1] == kinds[2]
    groups = [_groups(examples, part) if examples[0].group else {str(i) for i in part} for part in parts]
    assert sum(map(len, groups)) == len(set().union(*groups))
