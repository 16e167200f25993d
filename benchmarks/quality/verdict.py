"""The first paragraph of the page: what the study found, in words that follow from the figures."""

from __future__ import annotations

from benchmarks.quality.comparison import Comparison, sign_test

__all__ = ["first_paragraph"]

GOAL = 0.8
"""Share of the cells in which RM-LoRA is to be ahead of plain LoRA."""


def first_paragraph(result: Comparison, masked: Comparison, *, planned: int) -> str:
    """Return the result, good or bad, with its figures.

    Args:
        result: RM-LoRA with its defaults against plain LoRA of the same rank.
        masked: RM-LoRA with a mask against plain LoRA that moves as many parameters in a step; may have no cells.
        planned: pairs of runs that the comparison has in the whole study; with fewer the result is called preliminary.
    """
    done = sum(len(cell.values) for cell in result.cells)
    reached = result.ahead >= GOAL * len(result.cells) and not result.count("worse")
    if done < planned:
        verdict = (
            f"**Preliminary: {done} of {planned} pairs of runs are done.** RM-LoRA with its default settings so far"
        )
    elif reached:
        verdict = "**RM-LoRA with its default settings generalizes better than plain LoRA.** It"
    else:
        verdict = f"**RM-LoRA with its default settings does not reliably generalize better than plain LoRA.** {WHY}It"
    text = (
        f"{verdict} has the higher mean test score {_result(result)} than LoRA of the same rank, which moves as many parameters "
        "in a step. A cell is a task with a number of training examples."
    )
    if masked.cells:
        text += (
            f" With half of its directions masked in every step, as the paper has it, it is ahead of LoRA that moves as many "
            f"parameters, of half the rank, {_result(masked)}."
        )
    return f"{text}\n"


WHY = ""
"""The reason, where the goal is not reached: written by a person who has looked at the runs."""


def _result(result: Comparison) -> str:
    probability = sign_test(result.ahead, result.behind)
    interval = f" ± {result.half_width:.1f}" if result.half_width != float("inf") else ""
    return (
        f"in {result.ahead} of {len(result.cells)} cells (mean difference {result.mean:+.1f}{interval} points, sign test p = "
        f"{probability:.2g}; clearly better in {result.count('better')}, clearly worse in {result.count('worse')})"
    )
