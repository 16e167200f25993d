"""A progress bar and one line per evaluation, on the main process only."""

from __future__ import annotations

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
            figures = [
                f"{key.removeprefix('eval_')} {logs[key]:.4f}"
                for key in ("eval_loss", "eval_accuracy", "eval_macro_f1")
            ]
            self._console.print(f"  epoch {state.epoch or 0:4.1f}  " + "  ".join(figures))
        elif "loss" in logs and self._task is not None:
            penalty = f"  penalty {float(logs['orth_penalty']):.3f}" if "orth_penalty" in logs else ""
            self._bar.update(self._task, losses=f"loss {float(logs['loss']):.3f}{penalty}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar. Safe to call twice; call it when training ends in an error."""
        self._bar.stop()
