"""Gives checkpoints the permissions of the umask: the trainer's safetensors files can be read by their owner only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from rmlora.workplace import apply_umask

__all__ = ["CheckpointPermissions"]


class CheckpointPermissions(TrainerCallback):
    """Changes the permissions of every checkpoint when it is complete."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Apply the umask to the newest checkpoint."""
        newest = get_last_checkpoint(args.output_dir)
        if newest is not None and state.is_world_process_zero:
            apply_umask(Path(newest), Path(newest))
