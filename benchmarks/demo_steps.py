"""The steps of a demo: each is a command that a user would type, printed and run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

__all__ = ["run", "title"]


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*words: str | Path) -> None:
    """Print a command and run it; if it fails, the demo ends with its exit code."""
    shown = [str(word) for word in words]
    print(f"\n$ rmlora-deploy {shlex.join(shown)}", flush=True)
    finished = subprocess.run([sys.executable, "-m", "rmlora_deploy", *shown], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)
