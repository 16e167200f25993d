"""What scores mean, and the metric of each meaning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmlora.errors import CheckpointError, InputError
from rmlora.scoring import problem_type_in, scoring_of

LOGITS = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=5)


@given(LOGITS)
def test_functions_are_those_of_torch(row: list[float]) -> None:
    values = torch.tensor(row, dtype=torch.float64)
    several = scoring_of("multi_label_classification", len(row))
    np.testing.assert_allclose(several.apply(np.array(row)), torch.sigmoid(values).numpy(), rtol=1e-12)
    one = scoring_of(None, len(row))
    expected = torch.softmax(values, -1) if len(row) > 1 else torch.sigmoid(values)
    np.testing.assert_allclose(one.apply(np.array(row)), expected.numpy(), rtol=1e-9, atol=1e-300)
    np.testing.assert_array_equal(scoring_of("regression", len(row)).apply(np.array(row)), row)


@pytest.mark.parametrize("problem", [None, "softmax", "sigmoid", "single_label_classification"])
def test_a_single_score_is_never_a_share_of_itself(problem: str | None) -> None:
    scoring = scoring_of(problem, 1)
    assert scoring.function == "sigmoid" and not scoring.is_probability and not scoring.has_choice
    assert scoring.apply(np.array([0.0])) == 0.5


@pytest.mark.parametrize(
    ("problem", "outputs"), [("multi_label_classification", 3), ("regression", 1), ("regression", 2), (None, 2)]
)
def test_a_recorded_function_stands_for_its_problem_type(problem: str | None, outputs: int) -> None:
    scoring = scoring_of(problem, outputs)
    assert scoring_of(scoring.function, outputs) is scoring


def test_unknown_problem_types_are_refused() -> None:
    assert problem_type_in({}) is None and problem_type_in({"problem_type": "regression"}) == "regression"
    with pytest.raises(CheckpointError, match="has the problem_type 'ranking'"):
        problem_type_in({"problem_type": "ranking"})


def test_metrics() -> None:
    labels, logits = ["a", "b"], np.array([[2.0, -1.0], [-1.0, 3.0], [1.0, 0.5]])
    one = scoring_of(None, 2)
    targets = np.stack([one.target(cell, labels, where="x") for cell in ("a", "b", "b")])
    assert one.measure(logits, targets) == pytest.approx(2 / 3)
    several = scoring_of("multi_label_classification", 2)
    targets = np.stack([several.target(cell, labels, where="x") for cell in ("a", "a, b", "b")])
    assert several.measure(logits, targets) == pytest.approx(6 / 8)  # 3 right, 4 chosen, 4 to choose
    for cell in ('["a", "b"]', "[0, 1]", '["0", "b"]'):
        assert several.target(cell, labels, where="x").tolist() == [1, 1]
    assert several.target("[]", labels, where="x").tolist() == [0, 0]
    assert scoring_of("regression", 2).target("[0.5, 2]", labels, where="x").tolist() == [0.5, 2]
    number = scoring_of("regression", 1)
    targets = np.stack([number.target(cell, ["n"], where="x") for cell in ("1", "2.5", "4")])
    assert number.measure(np.array([[2.0], [3.5], [5.0]]), targets) == pytest.approx(1.0)
    assert number.measure(np.zeros((3, 1)), targets) == 0.0


@pytest.mark.parametrize(
    ("problem", "cell", "message"),
    [
        (None, "c", "Row 3 has the label 'c', but the model's are a, b"),
        ("multi_label_classification", "a;c", "Row 3 has the label 'c'"),
        ("regression", "a,1", "the model gives numbers: write a number"),
        ("regression", "1", "the model gives 2 finite numbers"),
        ("regression", "1;nan", "the model gives 2 finite numbers"),
    ],
)
def test_a_cell_that_does_not_fit_is_named(problem: str | None, cell: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scoring_of(problem, 2).target(cell, ["a", "b"], where="Row 3")
