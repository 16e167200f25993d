"""Masks are uniform draws and a pure function of seed, step and module name."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rmlora.mask import masked_directions, masked_directions_of_many

names = st.text(st.characters(min_codepoint=46, max_codepoint=122), min_size=1, max_size=30)


@given(
    seed=st.integers(0, 2**32),
    step=st.integers(1, 2**40),
    module=names,
    rank=st.integers(1, 64),
    data=st.data(),
)
def test_draws_the_right_number_without_replacement(
    seed: int, step: int, module: str, rank: int, data: st.DataObject
) -> None:
    active = data.draw(st.integers(1, rank))
    masked = masked_directions(seed=seed, step=step, module=module, side="A", rank=rank, active_rank=active)
    assert len(masked) == rank - active == len(set(masked.tolist()))
    assert ((masked >= 0) & (masked < rank)).all()


@given(step=st.integers(0, 1000), modules=st.lists(names, min_size=1, max_size=5))
def test_a_modules_mask_does_not_depend_on_the_other_modules(step: int, modules: list[str]) -> None:
    pairs = [(module, "B") for module in modules]
    many = masked_directions_of_many(seed=3, step=step, names=pairs, rank=8, active_rank=4)
    for module, row in zip(modules, many, strict=True):
        alone = masked_directions(seed=3, step=step, module=module, side="B", rank=8, active_rank=4)
        np.testing.assert_array_equal(row, alone)


def test_step_zero_has_no_mask() -> None:
    assert masked_directions(seed=1, step=0, module="m", side="AB", rank=8, active_rank=4).size == 0


def test_every_direction_is_masked_equally_often() -> None:
    counts = np.zeros(8)
    for step in range(1, 2001):
        counts[masked_directions(seed=0, step=step, module="layer", side="AB", rank=8, active_rank=6)] += 1
    expected, deviation = 2000 * 2 / 8, np.sqrt(2000 * 0.25 * 0.75)
    assert (abs(counts - expected) < 4 * deviation).all()


def test_seed_step_module_and_side_each_change_the_mask() -> None:
    def masks(seed: int, module: str, side: str) -> list[tuple[int, ...]]:
        return [
            tuple(masked_directions(seed=seed, step=s, module=module, side=side, rank=16, active_rank=8))
            for s in range(1, 40)
        ]

    reference = masks(0, "a", "A")
    assert len(set(reference)) > 35
    for other in (masks(1, "a", "A"), masks(0, "b", "A"), masks(0, "a", "B")):
        assert sum(x == y for x, y in zip(reference, other, strict=True)) <= 1


def test_masks_never_change_between_versions() -> None:
    """A run resumed under a newer version must draw the masks the older one would have drawn."""
    drawn = [
        masked_directions(seed=42, step=s, module="bert.encoder.layer.0", side="AB", rank=8, active_rank=4).tolist()
        for s in (1, 2, 1000)
    ]
    assert drawn == GOLDEN


GOLDEN = [[0, 3, 6, 7], [3, 5, 6, 7], [0, 1, 2, 7]]
