"""Progress of training and one line per evaluation, on the main process only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rmlora.progress_display import ProgressDisplay
from rmlora.training.result import metric_name, metrics_in

__all__ = ["TrainingProgress"]


class TrainingProgress(TrainerCallback):
    """Show steps, loss and penalty during training, and one line of metrics after every evaluation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._display = ProgressDisplay(console, "training")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start, at the current step if the run was resumed; then show its earlier evaluations too."""
        for entry in state.log_history if state.global_step else ():
            self._show_evaluation(entry, entry.get("epoch"))
        self._display.__enter__()
        self._display.start_at(state.global_step)
        self._display.update(total=state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
        self._display.update(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss beside the steps, or print a finished evaluation as a line."""
        logs = logs or {}
        if "eval_loss" in logs:
            self._show_evaluation(logs, state.epoch)
        elif "loss" in logs:
            penalty = f", penalty {float(logs['orth_penalty']):.3f}" if "orth_penalty" in logs else ""
            self._display.update(detail=f"loss {float(logs['loss']):.3f}{penalty}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop."""
        self.close()

    def close(self) -> None:
        """Stop showing progress. Safe to call twice; call it when training ends in an error."""
        self._display.close()

    def _show_evaluation(self, logs: Mapping[str, Any], epoch: float | None) -> None:
        """Print the figures of a finished evaluation; do nothing for another log entry."""
        if metrics := metrics_in(logs):
            figures = "  ".join(f"{metric_name(name)} {value:.4f}" for name, value in metrics.items())
            self._console.print(f"  epoch {epoch or 0:4.1f}  {figures}")
