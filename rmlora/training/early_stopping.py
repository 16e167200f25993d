"""Ending a run that no longer gets better: transformers' callback, which here also counts on when a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

from rmlora.training.result import evaluations_without_gain

__all__ = ["EarlyStopping", "restore_stopped"]


class EarlyStopping(EarlyStoppingCallback):
    """Stop after so many evaluations in a row without a better metric.

    transformers' callback begins to count anew in a resumed run; this one counts the evaluations before it too.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the evaluations of earlier parts of the run."""
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        self.early_stopping_patience_counter = _without_gain(state.log_history, args)


def restore_stopped(trainer: Trainer, checkpoint: Path | None, patience: int | None) -> bool:
    """Restore state and best weights of a run that had stopped early at ``checkpoint``; return False if it had not.

    The trainer itself would take one more step before it stops again.
    """
    if checkpoint is None or patience is None:
        return False
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if _without_gain(state.log_history, trainer.args) < patience:
        return False
    trainer.state = state
    trainer._load_best_model()
    return True


def _without_gain(log_history: Sequence[Mapping[str, Any]], args: TrainingArguments) -> int:
    values = [entry[f"eval_{args.metric_for_best_model}"] for entry in log_history if "eval_loss" in entry]
    return evaluations_without_gain(values, lower_is_better=not args.greater_is_better)
