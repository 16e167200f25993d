"""Resuming a killed run: check that settings, data and base are the same and find the last complete checkpoint."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmlora.errors import ConfigError, InputError
from rmlora.readable import is_readable_file
from rmlora.storage import atomic_directory, read_json, write_json
from rmlora.tensors import TensorFile
from rmlora.workplace import clean_abandoned

__all__ = [
    "SETTINGS_FILE",
    "check_run_base",
    "claim_run",
    "how_to_continue",
    "last_complete_checkpoint",
    "mark_finished",
    "run_is_finished",
]

SETTINGS_FILE = "settings.json"
_BASE_FILE, _FINISHED_FILE = "base.json", "finished.json"
_STATE_FILE = "trainer_state.json"
_DATA = "data"
"""Key of the data's digests in the identity of a run."""
_RUN_KEYS = frozenset({_DATA, "rmlora"})
"""Keys of the settings of every run: other programs also call their files ``settings.json``."""
_OF_A_RUN = re.compile(
    r"(settings|base|finished|parts)\.json|checkpoint-\d+|tensorboard|rehearsal|"
    r"\.((settings|base|finished|parts)\.json|new)\.partial-\w+|\.DS_Store"
)
"""What runs write into their directory, and what macOS writes into all that it shows."""


def claim_run(run_dir: Path, identity: dict[str, Any], *, resume: bool, overwrite: bool = False) -> Path | None:
    """Prepare ``run_dir`` and return the checkpoint to continue from, if any.

    Args:
        run_dir: directory of checkpoints and logs; created.
        identity: settings, and under ``data`` the digests of the data, that must be the same as in the run found there.
        resume: False starts over and deletes the run found there.
        overwrite: delete a finished run of another identity, whose package is to be replaced.

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
        if not before.keys() >= _RUN_KEYS:
            raise _holds_others(run_dir, SETTINGS_FILE)
        difference = _difference(before, identity)
        if difference is None:
            checkpoint = last_complete_checkpoint(run_dir)
            if checkpoint is not None:
                _find_best_again(checkpoint)
            return checkpoint
        if not run_is_finished(run_dir):
            raise ConfigError(
                f"{run_dir} holds an interrupted run with {difference}: repeat its settings and data to continue it, or start "
                "over with --no-resume."
            )
        if not overwrite:
            raise ConfigError(
                f"{run_dir} holds the checkpoints of a finished run with {difference}: choose another --run-dir, or delete "
                "them with --no-resume."
            )
    if not found and run_dir.is_dir() and any(run_dir.iterdir()):
        clean_abandoned(settings)  # of a run that was killed before it began
        if other := next(run_dir.iterdir(), None):
            raise _holds_others(run_dir, other.name)
    if found:
        if (name := _other_file(run_dir)) is not None:
            raise _holds_others(run_dir, name)
        with atomic_directory(run_dir, overwrite=True) as directory:
            write_json(directory / SETTINGS_FILE, identity)
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(settings, identity)
    return None


def _holds_others(run_dir: Path, name: str) -> ConfigError:
    return ConfigError(
        f"{run_dir} is to hold the checkpoints of this run, but holds other files ({name}): choose another --run-dir."
    )


def _other_file(run_dir: Path) -> str | None:
    """Return the name of something in ``run_dir`` that no run wrote; None if there is nothing."""
    names = sorted(path.name for path in run_dir.iterdir())
    other = next((name for name in names if not _OF_A_RUN.fullmatch(name)), None)
    if other is not None:
        return other
    try:
        found = read_json(run_dir / SETTINGS_FILE, what="Settings of the run")
    except InputError:  # damaged
        return SETTINGS_FILE if names == [SETTINGS_FILE] else None
    return None if isinstance(found, dict) and found.keys() >= _RUN_KEYS else SETTINGS_FILE


def _find_best_again(checkpoint: Path) -> None:
    """Let the state in ``checkpoint`` say where the best checkpoint is now: the run's directory may have been moved.

    The trainer would otherwise end with the weights of the last step, or with untrained ones.

    Raises:
        ConfigError: the best checkpoint is missing.
    """
    file = checkpoint / _STATE_FILE
    state = read_json(file, what="State of the interrupted run", finite=False)
    recorded, step = state.get("best_model_checkpoint"), state.get("best_global_step")
    if recorded is None or step is None:
        return
    best = checkpoint.parent / f"checkpoint-{step}"
    if not is_readable_file(best / "adapter_model.safetensors"):
        raise ConfigError(
            f"{checkpoint.parent} lacks {best.name}, the best checkpoint so far: put it back, or start over with --no-resume."
        )
    if recorded != str(best):
        write_json(file, {**state, "best_model_checkpoint": str(best)}, allow_nan=True)


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


def check_run_base(run_dir: Path, fingerprint: str) -> None:
    """Record the fingerprint of the base's adapted weights in ``run_dir``, or compare it with the recorded one.

    Raises:
        ConfigError: the run began on other weights.
    """
    file = run_dir / _BASE_FILE
    if not is_readable_file(file):
        write_json(file, fingerprint)
    elif read_json(file, what="Fingerprint of the run's base") != fingerprint:
        raise ConfigError(
            f"{run_dir} holds a run on other weights of the base, which have changed since: start over with --no-resume."
        )


def mark_finished(run_dir: Path, steps: int) -> None:
    """Record in ``run_dir`` that the package was written, after so many steps."""
    write_json(run_dir / _FINISHED_FILE, {"steps": steps})


def run_is_finished(run_dir: Path) -> bool:
    """Return True if the package of the run in ``run_dir`` was written."""
    return is_readable_file(run_dir / _FINISHED_FILE)


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
        if not isinstance(json.loads((checkpoint / _STATE_FILE).read_text(encoding="utf-8")), dict):
            return False
        TensorFile(checkpoint / "adapter_model.safetensors")
    except (OSError, ValueError, InputError):
        return False
    states = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    return len(states) > 2 and all(zipfile.is_zipfile(path) for path in states)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say in which setting or data two runs differ, with the values of both; None if they do not."""
    for key in sorted({*before, *now}, key=lambda key: (key == _DATA, key)):
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if key == _DATA:
            splits = [split for split in ("train", "validation", "test") if _item(old, split) != _item(new, split)]
            return f"other {' and '.join(splits)} data (the files have changed since)"
        if isinstance(old, dict) and isinstance(new, dict):
            inner = min(name for name in {*old, *new} if old.get(name) != new.get(name))
            key, old, new = inner, old.get(inner), new.get(inner)
        return f"another {key.replace('_', ' ')} ({_brief(old)}, now {_brief(new)})"
    return None


def _item(digests: Any, split: str) -> Any:
    return digests.get(split) if isinstance(digests, dict) else None


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
