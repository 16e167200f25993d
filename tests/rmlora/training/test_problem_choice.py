"""What a label column holds is decided by cells that can mean one thing only; otherwise the flag is named."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rmlora.errors import ConfigError
from rmlora.training.label_column import LabelColumn
from rmlora.training.problem_choice import choose_problem

ONE, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def column(cells: Sequence[str], declared: tuple[str, ...] | None = None) -> LabelColumn:
    return LabelColumn("label", "data.csv", list(cells), range(2, len(cells) + 2), "line", declared)


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (["ham", "spam"], ONE),
        (["0", "1", "1"], ONE),
        (["1", "2", "3", "4", "5"], ONE),  # stars
        ([str(number % 77) for number in range(154)], ONE),  # numbered labels
        (["0.5", "1", "-2e-1"], NUMBER),
        (["4.5", "nan"], ONE),
        (["9" * 400, "1.5"], ONE),
        (["½", "1"], ONE),
        (['["a", "b"]', "[]"], SEVERAL),
        (["['a', 'b']", "['a']"], SEVERAL),
        (["[0, 2]", "[1]"], SEVERAL),
        (["a|b", "b", "a"], SEVERAL),
        (["a|b", "b|c", "a|c"], SEVERAL),
        (["science|tech", "sports"], ONE),
        (["no, thanks", "yes"], ONE),
        (["[unknown", "b"], ONE),
    ],
)
def test_cells_that_mean_one_thing(cells: list[str], problem: str) -> None:
    found, note = choose_problem(None, column(cells), None)
    assert found.name == problem
    assert (note is not None) == (problem != ONE or len(set(cells)) > 20)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (['["a"]', "b"], "has lists in 1 of 2 rows: pass --problem-type multi_label_classification"),
        (["[0.5, 1]", "[1, 2]"], "has lists of numbers: pass --problem-type regression"),
        ([str(number * 3) for number in range(40)], "has 40 different whole numbers: pass --problem-type regression"),
        (["0.5", "1.5", "abc"], "holds numbers that are not whole, but Line 4 of data.csv has 'abc': correct it"),
        (["0.5", "1.5", "Infinity"], "has 'Infinity': correct it"),
        (["1,5", "2"], "has cells like '1,5': write decimals with a point"),
        (["a, b", "b", "a"], "has cells like 'a, b', whose parts are labels of other rows: pass --problem-type"),
        (["a;b", "b;c", "c;a"], "has cells like 'a;b'"),
    ],
)
def test_cells_that_may_mean_two_things_are_asked_about(cells: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match="^'label' of data.csv ") as raised:
        choose_problem(None, column(cells), None)
    assert message in str(raised.value)
    for problem in (ONE, SEVERAL, NUMBER):
        assert choose_problem(problem, column(cells), None)[0].name == problem  # type: ignore[arg-type]


def test_names_of_labels_say_that_numbers_are_no_measure() -> None:
    assert choose_problem(None, column(["0.5", "1.5"]), ["0.5", "1.5"])[0].name == ONE
    assert choose_problem(None, column(["a|b", "a", "b"], declared=("a", "b", "a|b")), None)[0].name == ONE
