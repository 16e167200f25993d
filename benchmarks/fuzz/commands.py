"""The commands that are fuzzed: the command line itself, in this process, on every kind of file, and what it prints."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from benchmarks.fuzz.formats import change_onnx, change_safetensors
from benchmarks.fuzz.mutations import HOSTILE, change_json, change_small_file
from rmlora.errors import InputError
from rmlora_deploy.cli import main

__all__ = ["FILES", "BadOutputError", "change_any", "run_command"]

_ADAPTER = (
    "inspect adapter", "inspect adapter --json", "inspect adapter --all --base base", "inspect adapter --compare second",
    "merge base adapter --output out/merged", "merge base adapter --json --output out/merged --allow-base-mismatch",
    "mix adapter second --output out/mixed --allow-base-mismatch", "compress adapter --rank 1 --refactor --output out/small",
    "adapter add out/bundle new=adapter", "adapter add out/bundle new=adapter --allow-base-mismatch",
)  # fmt: skip
_BASE = (
    "merge base adapter --output out/merged", "merge base adapter --output out/merged --allow-base-mismatch",
    "inspect adapter --base base", "merge base adapter --onnx graph/model.onnx --no-verify --output out/graph",
    "export base --mode branches --adapter one=adapter --onnx graph/model.onnx --no-verify --output out/new",
)  # fmt: skip
_BUNDLE = (
    "predict bundle TEXT", "predict bundle TEXT TEXT --adapter one", "predict bundle TEXT --json", "inspect bundle", "inspect bundle --json",
    "adapter list bundle", "adapter list bundle --json", "verify bundle --reference-only --no-write", "predict bundle --file others/texts.txt",
    "adapter remove out/bundle one", "predict vectors TEXT",
)  # fmt: skip
_GRAPH = (
    "merge base adapter --onnx graph/FILE --no-verify --output out/graph",
    "export base --mode branches --adapter one=adapter --onnx graph/FILE --no-verify --output out/new",
)
_TEXTS = ("predict bundle --file others/texts.txt", "predict bundle --file others/texts.txt --json --adapter one")

FILES: dict[str, Sequence[str]] = {
    **dict.fromkeys(("adapter/adapter_config.json", "adapter/rmlora.json", "adapter/adapter_model.safetensors"), _ADAPTER),
    **dict.fromkeys(("base/config.json", "base/model.safetensors.index.json", "base/model-00001-of-00002.safetensors"), _BASE),
    **dict.fromkeys(("base/tokenizer.json", "base/tokenizer_config.json"), _BASE[-1:]),
    **dict.fromkeys(("bundle/manifest.json", "bundle/config.json", "bundle/tokenizer_config.json", "bundle/model.onnx"), _BUNDLE),
    "bundle/reference.safetensors": ("verify bundle --reference-only --no-write", "verify bundle --reference-only --no-write --json"),
    "vectors/manifest.json": ("predict vectors TEXT", "predict vectors TEXT --json", "inspect vectors", "verify vectors --reference-only --no-write"),
    **dict.fromkeys(("graph/model.onnx", "graph/external.onnx"), _GRAPH),
    "others/texts.txt": _TEXTS,
}  # fmt: skip
"""File of the seeds → the commands that read it; TEXT stands for a text, FILE for the file's name."""

_CODES = (0, 2, 3, 4, 5, 6, 7, 8)
"""The exit codes that the help lists."""


class BadOutputError(Exception):
    """A command printed something else than one sentence about what is wrong, or a result."""


def change_any(rng: random.Random, content: bytes) -> bytes:
    """Change a file of any of the kinds, recognized by its content."""
    if content[:1] in (b"{", b"["):
        return change_json(rng, content)
    if content[8:9] == b"{":
        return change_safetensors(rng, content)
    if content[:1] == b"\x08":
        return change_onnx(rng, content)
    return change_small_file(rng, content)


def run_command(directory: Path, file: str, rng: random.Random) -> None:
    """Run one of the commands that read ``file``, and check exit code and output."""
    text = rng.choice(
        ("w1 w2", "[bold]w1[/x]", "\udcff", "é\u202e", *(item for item in HOSTILE if isinstance(item, str)))
    )
    status = (directory / file).lstat() if os.path.lexists(directory / file) else None
    copied = status is not None and stat.S_ISREG(status.st_mode) and status.st_size < 1 << 20
    command, *given = rng.choice([line for line in FILES[file] if copied or "out/bundle" not in line]).split()
    words = [command, *(_word(word, directory, file, text) for word in given)]
    (directory / "out").mkdir(exist_ok=True)
    if "out/bundle" in " ".join(words):
        shutil.copytree(directory / "bundle", directory / "out/bundle")
    stdout, stderr, code = _stream(), _stream(), 0
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    _check(words, code, _written(stdout), _written(stderr))


def _stream() -> io.TextIOWrapper:
    """Return a stream like those of a process, which takes only what UTF-8 can hold."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _written(stream: io.TextIOWrapper) -> str:
    content = stream.buffer
    assert isinstance(content, io.BytesIO)
    return content.getvalue().decode()


def _word(word: str, directory: Path, file: str, text: str) -> str:
    """Return a word of a command line, with paths in ``directory``."""
    if word == "TEXT":
        return text if not text.startswith("-") else "w1"
    name, equals, path = word.rpartition("=")
    path = path.replace("FILE", file.rpartition("/")[2])
    if path.partition("/")[0] in ("adapter", "base", "bundle", "vectors", "graph", "others", "out", "second"):
        path = str(directory / path)
    return name + equals + path


def _check(words: Sequence[str], code: int, stdout: str, stderr: str) -> None:
    """Check that the output is a result, or one sentence on stderr and an exit code that says so.

    Raises:
        InputError: it is such a sentence.
        BadOutputError: it is neither.
    """
    said = f"{' '.join(words)[:200]} ended with {code} and said {stderr[-300:]!r}"
    if code not in _CODES or "Traceback" in stderr + stdout:
        raise BadOutputError(said)
    errors = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    if len(errors) != (code != 0):
        raise BadOutputError(f"{len(errors)} errors: {said}")
    if errors:
        raise InputError(errors[0].removeprefix("Error: "))  # refused, as it should be
    if code == 0 and "--json" in words:
        json.loads(stdout)
