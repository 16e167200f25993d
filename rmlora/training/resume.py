"""Resuming a killed run: check that the settings are the same and find the last complete checkpoint."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError, InputError
from rmlora.readable import is_readable_file
from rmlora.storage import atomic_directory, read_json, write_json
from rmlora.tensors import TensorFile
from rmlora.workplace import clean_abandoned

__all__ = ["SETTINGS_FILE", "claim_run", "how_to_continue", "last_complete_checkpoint"]

SETTINGS_FILE = "settings.json"


def claim_run(run_dir: Path, identity: dict[str, Any], *, resume: bool) -> Path | None:
    """Prepare ``run_dir`` and return the checkpoint to continue from, if any.

    Args:
        run_dir: directory of checkpoints and logs; created.
        identity: settings that must be the same as in the interrupted run.
        resume: False starts over and deletes the interrupted run.

    Raises:
        ConfigError: the directory belongs to a run with other settings, or holds files that are not of a run.
        OutputError: it cannot be written.
    """
    settings = run_dir / SETTINGS_FILE
    found = is_readable_file(settings)
    if found and resume:
        before = read_json(settings, what="Settings of the interrupted run")
        if not isinstance(before, dict):
            raise ConfigError(f"{settings} holds no settings: it is damaged, start over with --no-resume.")
        changed = sorted(key for key in {*before, *identity} if before.get(key) != identity.get(key))
        if changed:
            raise ConfigError(
                f"{run_dir} holds an interrupted run with another {changed[0].replace('_', ' ')} "
                f"({_brief(before.get(changed[0]))}, now {_brief(identity.get(changed[0]))}): repeat its settings to "
                "continue it, or start over with --no-resume."
            )
        return last_complete_checkpoint(run_dir)
    if not found and run_dir.is_dir() and any(run_dir.iterdir()):
        clean_abandoned(settings)  # of a run that was killed before it began
        if other := next(run_dir.iterdir(), None):
            raise ConfigError(
                f"{run_dir} is to hold the checkpoints of this run, but holds other files ({other.name}): choose another "
                "--run-dir."
            )
    if found:
        with atomic_directory(run_dir, overwrite=True) as directory:
            write_json(directory / SETTINGS_FILE, identity)
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(settings, identity)
    return None


def last_complete_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest complete checkpoint and delete incomplete newer ones.

    The trainer writes ``trainer_state.json`` last. The other files are checked too, because a crash of the machine may
    lose data that had not reached the disk.
    """
    steps = {
        int(match[1]): path
        for path in run_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    for _, path in sorted(steps.items(), reverse=True):
        if _is_complete(path):
            return path
        shutil.rmtree(path)
    return None


def how_to_continue(run_dir: Path) -> str:
    """Return the sentence for an interrupted run that says how it is continued."""
    steps = [int(path.name.rpartition("-")[2]) for path in run_dir.glob("checkpoint-*") if _is_complete(path)]
    if not steps:
        return "Interrupted before the first checkpoint: give the same command again to start over."
    return (
        f"Interrupted: give the same command again to continue at step {max(steps)}, or with --no-resume to start over; "
        f"the checkpoints are in {run_dir}."
    )


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        TensorFile(checkpoint / "adapter_model.safetensors")
    except (OSError, ValueError, InputError):
        return False
    states = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    return len(states) > 2 and all(zipfile.is_zipfile(path) for path in states)


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
