"""Runs ONNX Runtime GenAI's builder again and again: ``python -m tests.helpers.build_server MODULE``, with a job per line of stdin.

Almost all of a small build's time are imports. They are done once here; every build is a fork of this process.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["BuildServer"]


class BuildServer:
    """The process that builds; it is started by the first build."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, module: str, words: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
        """Run ``module`` as a program with the arguments ``words``; return its exit code and what it wrote to stderr."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, module], cwd=Path(__file__).parents[2], env=dict(env),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with tempfile.NamedTemporaryFile("r", errors="replace") as stderr:
            job = {"words": list(words), "env": dict(env), "stderr": stderr.name, "cwd": str(Path.cwd())}
            print(json.dumps(job), file=process.stdin, flush=True)
            return int(process.stdout.readline()), stderr.read()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None


def _serve(module: str) -> None:
    runpy.run_module(module, run_name="imported")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _build(module, **json.loads(line))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _build(module: str, words: Sequence[str], env: Mapping[str, str], stderr: str, cwd: str) -> None:
    """Run the builder as ``python -m`` would, with its messages in the file ``stderr``, and end this process.

    It ends at once, because threads that libraries would stop at its end were not forked.
    """
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for path, stream in ((os.devnull, sys.stdout), (stderr, sys.stderr)):
        os.dup2(os.open(path, os.O_WRONLY), stream.fileno())
    sys.argv = [module, *words]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
