"""A progress bar and one line per evaluation, on the main process only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

__all__ = ["RichProgress"]


class RichProgress(TrainerCallback):
    """Show steps, loss and penalty during training, and one line of metrics after every evaluation."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar, at the current step if the run was resumed."""
        for entry in state.log_history if state.global_step else ():  # a resumed run shows its whole
            self._show_evaluation(entry, entry.get("epoch"))
        self._task = self._bar.add_task("training", total=state.max_steps, completed=state.global_step, losses="")
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss next to the bar, or print a finished evaluation as a line."""
        logs = logs or {}
        if "eval_loss" in logs:
            self._show_evaluation(logs, state.epoch)
        elif "loss" in logs and self._task is not None:
            penalty = f"  penalty {float(logs['orth_penalty']):.3f}" if "orth_penalty" in logs else ""
            self._bar.update(self._task, losses=f"loss {float(logs['loss']):.3f}{penalty}")

    def _show_evaluation(self, logs: Mapping[str, Any], epoch: float | None) -> None:
        """Print the figures of a finished evaluation; do nothing for another log entry."""
        if "eval_loss" in logs:
            names = ("eval_loss", "eval_accuracy", "eval_macro_f1")
            figures = "  ".join(f"{key.removeprefix('eval_').replace('_', ' ')} {logs[key]:.4f}" for key in names)
            self._console.print(f"  epoch {epoch or 0:4.1f}  {figures}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar. Safe to call twice; call it when training ends in an error."""
        self._bar.stop()
