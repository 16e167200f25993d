"""Choosing the checkpoint to package: the best metric and, among equal ones, the lowest loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import Trainer

__all__ = ["BestCheckpointTrainer"]


class BestCheckpointTrainer(Trainer):
    """A trainer for which an equal metric with a lower loss is better.

    transformers keeps the earliest of equal evaluations: on easy data the first epoch that gets every row right, however
    unsure it is of them.
    """

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any = None) -> bool:
        if super()._determine_best_metric(metrics, trial):
            return True
        best = _at(self.state.log_history, self.state.best_global_step)
        value = metrics.get(f"eval_{self.args.metric_for_best_model}")
        if best is None or value != self.state.best_metric or not metrics["eval_loss"] < best["eval_loss"]:
            return False
        self.state.best_global_step = self.state.global_step
        return True


def _at(log_history: Sequence[Mapping[str, Any]], step: int | None) -> Mapping[str, Any] | None:
    return next((entry for entry in log_history if entry.get("step") == step and "eval_loss" in entry), None)
