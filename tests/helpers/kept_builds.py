"""Keeps what ONNX Runtime GenAI's builder wrote: a build takes many seconds, and tests build the same few bases again and again."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.helpers.build_server import BuildServer

__all__ = ["KeptBuilds"]


class KeptBuilds:
    """Stands in for the module ``subprocess`` in :mod:`rmlora_deploy.exporter.decoder.genai_builder`.

    The first build of a checkpoint with some options is the real one. Later ones get copies of its files.
    """

    def __init__(self, directory: Path, server: BuildServer) -> None:
        self._directory = directory
        self._server = server

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the builder, or copy what it wrote for the same files and options; a build that fails is not kept."""
        source, target = (Path(command[command.index(flag) + 1]) for flag in ("--input", "--output"))
        kept = self._directory / _digest(
            source, [word for word in command if str(target) not in word and word != str(source)]
        )
        if kept.is_dir():
            shutil.copytree(kept, target, dirs_exist_ok=True)
            return subprocess.CompletedProcess(command, 0, "", "")
        module, *words = command[command.index("-m") + 1 :]
        code, stderr = self._server.run(module, words, options["env"])
        if code == 0:
            shutil.copytree(target, kept)
        return subprocess.CompletedProcess(command, code, "", stderr)


def _digest(directory: Path, words: list[str]) -> str:
    found = hashlib.sha256("\0".join(words).encode())
    for path in sorted(item for item in directory.rglob("*") if item.is_file()):
        found.update(str(path.relative_to(directory)).encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
