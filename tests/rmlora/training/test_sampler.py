"""Batches of similar length: the order depends on seed and epoch only, and training works as well."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rmlora.training.sampler import LengthGroups
from tests.helpers.cli import run
from tests.rmlora.training.short_run import words_for


def test_the_order_by_length_is_a_function_of_seed_and_epoch() -> None:
    lengths = list(np.random.default_rng(0).integers(1, 30, 64))
    orders = []
    for epoch in (0, 1, 0):
        groups = LengthGroups(lengths, batch_size=4, seed=7)
        groups.set_epoch(epoch)
        orders.append(list(groups))
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == list(range(64))
    spans = [np.ptp([lengths[i] for i in orders[0][start : start + 4]]) for start in range(0, 64, 4)]
    assert np.mean(spans) < 8  # at random it is 20


def test_batches_of_equal_length_learn_as_well(base: Path, data: Path, tmp_path: Path) -> None:
    more = ["--test", data, "--group-by-length", "--epochs", "10", "--json"]
    done = run(*words_for(base, data, tmp_path / "grouped", *more))
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["test"]["accuracy"] > 0.9
