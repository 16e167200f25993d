"""The steps of a demo: each is a command that a user would type, printed and run."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["demo_parser", "empty_directory", "run", "title"]


def demo_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all demos have.

    Args:
        description: what the demo shows.
        name: of its work directory in ``build`` and, with ``_`` for ``-``, of its results.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("build", name), help="directory to work in (default %(default)s)"
    )
    results = f"benchmarks/results/{name.replace('-', '_')}.json"
    parser.add_argument("--record", action="store_true", help=f"write the figures to {results} too")
    return parser


def empty_directory(path: Path) -> Path:
    """Delete what an earlier demo left at ``path``, and make the directory."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


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
