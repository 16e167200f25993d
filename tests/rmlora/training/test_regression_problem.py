"""Numbers as targets: reading, metrics against SciPy's and by hand, and warnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rmlora.errors import ConfigError, InputError
from rmlora.scoring import scoring_of
from rmlora.training.label_column import LabelColumn
from rmlora.training.regression_problem import RegressionProblem
from rmlora.training.settings import TrainSettings

PROBLEM = RegressionProblem()


def column(*cells: str) -> LabelColumn:
    return LabelColumn("stars", "data.csv", list(cells), range(2, len(cells) + 2), "line")


def settings(**more: object) -> TrainSettings:
    return TrainSettings("base", "data.csv", Path("out"), problem_type="regression", **more)  # type: ignore[arg-type]


def test_outputs_are_named_by_the_column() -> None:
    assert PROBLEM.order(column("1.5", "2"), None) == ("stars",)
    assert PROBLEM.order(column("[1.5, 2]"), None) == ("stars_0", "stars_1")
    assert PROBLEM.order(column("1.5"), ["rating"]) == ("rating",)
    with pytest.raises(ConfigError, match="gives 2 names, but 'stars' of data.csv has 1 number in a cell"):
        PROBLEM.order(column("1.5"), ["a", "b"])


def test_targets_and_cells_that_are_none() -> None:
    assert PROBLEM.encode(column("1.5", " 2 ", "-3e-1"), ["stars"], given=False) == [[1.5], [2.0], [-0.3]]
    assert PROBLEM.encode(column("[1, 2.5]", "[3, 4]"), ["a", "b"], given=False) == [[1.0, 2.5], [3.0, 4.0]]
    for cell, message in (
        ("good", "is no number"),
        ("[1, 2]", "has 2 numbers in 'stars'"),
        ("1,5", "write decimals with a point"),
        ("nan", "finite"),
        ("1e39", "finite"),
        ("-1e30", "below 1e\\+18 in size"),
    ):
        with pytest.raises(InputError, match=f"^Line 3 of data.csv .*{message}"):
            PROBLEM.encode(column("1", cell), ["stars"], given=False)


def test_a_target_that_the_trainer_would_not_count_is_the_next_number() -> None:
    target = PROBLEM.encode(column("-100"), ["stars"], given=False)[0][0]
    assert np.float32(target) != np.float32(-100) and target == pytest.approx(-100, rel=1e-7)


def test_metrics_are_those_worked_out_by_hand() -> None:
    predicted, wanted = np.array([[1.0], [2.0], [4.0]]), np.array([[1.0], [3.0], [2.0]])
    found = PROBLEM.metrics(predicted, wanted, settings())
    assert found["mse"] == pytest.approx(5 / 3) and found["mae"] == pytest.approx(1.0)
    assert found["spearman"] == pytest.approx(0.5)
    assert found["pearson"] == pytest.approx(np.corrcoef(predicted[:, 0], wanted[:, 0])[0, 1])
    assert found["pearson"] == pytest.approx(
        scoring_of("regression", 1).measure(predicted, wanted)
    )  # what verify measures
    constant = PROBLEM.metrics(np.ones((3, 1)), wanted, settings())
    assert (constant["pearson"], constant["spearman"]) == (0.0, 0.0)
    assert PROBLEM.metrics(np.ones((1, 1)), np.ones((1, 1)), settings())["pearson"] == 0.0


def test_an_adapter_that_is_no_better_than_the_mean_is_warned_of() -> None:
    wanted = np.array([[10.0], [30.0], [90.0]])
    found = PROBLEM.evaluate(np.zeros((3, 1)), wanted, ["stars"], "test", settings())
    assert "is not below what always answering the mean reaches" in found.warnings[0]
    assert "Targets reach 90 in size" in found.warnings[0]
    assert found.details["per_output"]["stars"]["targets"]["max"] == 90.0
    assert PROBLEM.evaluate(wanted + 1, wanted, ["stars"], "test", settings()).warnings == ()
    assert PROBLEM.metadata(settings(), wanted.tolist()) == {"target_range": [[10.0, 90.0]]}


def test_targets_that_are_all_alike_are_refused() -> None:
    column = LabelColumn("score", "data.csv", ["2.5"] * 3, range(2, 5), "line")
    with pytest.raises(InputError, match=r"^All rows of data\.csv have 2\.5 in 'score': there is nothing to predict"):
        RegressionProblem().order(column, None)
