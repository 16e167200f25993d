"""The first paragraph of the page: what the study found, in words that follow from the figures."""

from __future__ import annotations

from benchmarks.quality.comparison import Comparison, sign_test

__all__ = ["first_paragraph"]

GOAL = 0.8
"""Share of the cells in which RM-LoRA is to be ahead of plain LoRA at equal moving budget."""


def first_paragraph(at_budget: Comparison, at_rank: Comparison) -> str:
    """Return the result, good or bad, with its figures."""
    reached = at_budget.ahead >= GOAL * len(at_budget.cells) and not at_rank.count("worse")
    verdict = (
        "**RM-LoRA with its default settings generalizes better than plain LoRA that moves as many parameters in a step**"
        if reached
        else "**RM-LoRA with its default settings does not reliably generalize better than plain LoRA**"
    )
    return (
        f"{verdict}: {_result(at_budget)} against LoRA of rank 4 (equal moving budget), and {_result(at_rank)} against LoRA "
        f"of rank 8 (equal rank). {'' if reached else WHY}\n"
    )


WHY = ""
"""The reason, where the goal is not reached: written by a person who has looked at the runs."""


def _result(result: Comparison) -> str:
    cells = len(result.cells)
    probability = sign_test(result.ahead, result.behind)
    return (
        f"its mean test accuracy over seeds is higher in {result.ahead} of {cells} cells (a cell is a task with a number of "
        f"training examples; mean difference {result.mean:+.2f} ± {result.half_width:.2f} points, sign test p = "
        f"{probability:.2g}; clearly better in {result.count('better')}, clearly worse in {result.count('worse')})"
    )
