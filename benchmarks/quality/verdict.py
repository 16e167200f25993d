"""The first paragraph of the page: what the study found, in words that follow from the figures."""

from __future__ import annotations

from benchmarks.quality.comparison import Comparison, sign_test

__all__ = ["first_paragraph"]

GOAL = 0.8
"""Share of the cells in which RM-LoRA is to be ahead of plain LoRA at equal moving budget."""


def first_paragraph(at_budget: Comparison, at_rank: Comparison, *, planned: int) -> str:
    """Return the result, good or bad, with its figures.

    Args:
        at_budget: RM-LoRA against plain LoRA of equal moving budget.
        at_rank: against plain LoRA of equal rank.
        planned: pairs of runs that each comparison has in the whole study; with fewer the result is called preliminary.
    """
    done = min(sum(len(cell.values) for cell in item.cells) for item in (at_budget, at_rank))
    reached = at_budget.ahead >= GOAL * len(at_budget.cells) and not at_rank.count("worse")
    if done < planned:
        verdict = (
            f"**Preliminary: {done} of {planned} pairs of runs are done.** RM-LoRA with its default settings so far"
        )
    elif reached:
        verdict = (
            "**RM-LoRA with its default settings generalizes better than plain LoRA that moves as many parameters in a "
            "step.** It"
        )
    else:
        verdict = f"**RM-LoRA with its default settings does not reliably generalize better than plain LoRA.** {WHY}It"
    return (
        f"{verdict} has the higher mean test score {_result(at_budget)} against LoRA of rank 4 (equal moving budget), and "
        f"{_result(at_rank)} against LoRA of rank 8 (equal rank). A cell is a task with a number of training examples.\n"
    )


WHY = ""
"""The reason, where the goal is not reached: written by a person who has looked at the runs."""


def _result(result: Comparison) -> str:
    probability = sign_test(result.ahead, result.behind)
    interval = f" ± {result.half_width:.1f}" if result.half_width != float("inf") else ""
    return (
        f"in {result.ahead} of {len(result.cells)} cells (mean difference {result.mean:+.1f}{interval} points, sign test p = "
        f"{probability:.2g}; clearly better in {result.count('better')}, clearly worse in {result.count('worse')})"
    )
