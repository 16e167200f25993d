"""The commands that a kill campaign kills: what is there before, what they write, and how to tell old, new and damaged apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rmlora.checkpoint import Checkpoint
from rmlora.package import TENSORS_FILE, load_package
from rmlora.storage import sha256_file
from rmlora_converters.graph.files.model_file import load_model
from rmlora_deploy.bundles.bundle import Bundle
from tests.helpers.branch_graphs import make_adapter, make_base
from tests.helpers.cli import text_base, text_data
from tests.helpers.exports import export

__all__ = ["CASES", "Case", "identity_of", "make_inputs", "names_in"]

TRAIN = ("--rank", "4", "--alpha", "4", "--batch-size", "8", "--epochs", "2", "--save-steps", "3")


def make_inputs(inputs: Path) -> None:
    """Write what the commands read: tiny bases, adapters, a graph and sentences."""
    inputs.mkdir(parents=True)
    make_base("bert", inputs)
    for rank, label in ((2, "one"), (4, "two"), (6, "three")):
        make_adapter("bert", inputs, label, rank=rank)
    export("bert", inputs / "graph.onnx", optimized=False)
    shutil.copyfile(inputs / "base" / "config.json", inputs / "config.json")  # read as the graph's
    text_base(inputs / "encoder")
    text_data(inputs / "train.jsonl", rows=24)


def _package(path: Path) -> object:
    load_package(path)
    return sha256_file(path / TENSORS_FILE)


def _checkpoint(path: Path) -> object:
    found = Checkpoint(path)
    return found.config, sorted(sha256_file(shard.path) for shard in found.shards.values())


def _graph(path: Path) -> object:
    load_model(path / "graph.onnx")
    return sha256_file(path / "graph.onnx")


def _bundle(path: Path) -> object:
    bundle = Bundle.open(path)
    merged = bundle.manifest.adapter.sha256 if bundle.manifest.adapter is not None else None
    return bundle.mode, merged, sorted((name, entry.sha256) for name, entry in bundle.adapters.items())


@dataclass(frozen=True)
class Case:
    """A command that is killed. ``{in}`` stands for the inputs and ``{out}`` for the result."""

    name: str
    words: Sequence[str]
    identity: Callable[[Path], object]
    """Returns what tells one result from another; raises if the result is not complete."""
    before: Sequence[str] = ()
    """Command that makes the old result; none if there is none."""
    undo: Sequence[str] = ()
    """Command to run, in place of the same command, if the killed one was complete already."""
    weight: int = 4
    """How often it is chosen, compared with the others: less if it takes long."""

    def again(self, *, complete: bool) -> Sequence[str]:
        """Return the command to run after a kill."""
        if not complete:
            return self.words
        return self.undo or (self.words if "--overwrite" in self.words else [*self.words, "--overwrite"])


_VERIFIED = ("export", "{in}/base", "--mode", "branches", "--onnx", "{in}/graph.onnx", "-a", "one={in}/one")
_BRANCHES = (*_VERIFIED, "--no-verify")
_ADD, _REMOVE = ("adapter", "add", "{out}", "two={in}/two"), ("adapter", "remove", "{out}", "two")
_VERIFY = ("verify", "{out}", "--reference-only")
_TO, _OVER = ("-o", "{out}"), ("-o", "{out}", "--overwrite")


def _merge(adapter: str, *more: str) -> tuple[str, ...]:
    return ("merge", "{in}/base", f"{{in}}/{adapter}", *more)


def _export(adapter: str) -> tuple[str, ...]:
    return ("export", "{in}/base", "--adapter", f"{{in}}/{adapter}", "--no-verify")


def _train(seed: int) -> tuple[str, ...]:
    return ("train", "--base", "{in}/encoder", "--train", "{in}/train.jsonl", *TRAIN, "--seed", str(seed))


def _mix(first: str) -> tuple[str, ...]:
    return ("mix", f"{{in}}/{first}", "{in}/three", "--head-from", "{in}/three")


_ONNX = ("--onnx", "{in}/graph.onnx", "--no-verify")

CASES = (
    Case("merge", [*_merge("one"), *_TO], _checkpoint),
    Case("merge --overwrite", [*_merge("one"), *_OVER], _checkpoint, [*_merge("two"), *_TO]),
    Case("merge --onnx", [*_merge("one", *_ONNX), *_TO], _graph),
    Case("merge --onnx --overwrite", [*_merge("one", *_ONNX), *_OVER], _graph, [*_merge("two", *_ONNX), *_TO]),
    Case("compress", ["compress", "{in}/two", "--rank", "2", *_TO], _package),
    Case("compress --overwrite", ["compress", "{in}/two", "--rank", "2", *_OVER], _package, ["compress", "{in}/three", "--rank", "2", *_TO]),
    Case("mix --overwrite", [*_mix("one"), *_OVER], _package, [*_mix("two"), *_TO]),
    Case("adapter add", _ADD, _bundle, [*_BRANCHES, *_TO], _REMOVE, weight=8),
    Case("adapter remove", _REMOVE, _bundle, [*_BRANCHES, "-a", "two={in}/two", *_TO], _ADD, weight=8),
    Case("verify", _VERIFY, _bundle, [*_VERIFIED, *_TO], _VERIFY),
    Case("export --mode branches", [*_BRANCHES, *_TO], _bundle, weight=3),
    Case("export --mode branches --overwrite", [*_BRANCHES, "-a", "two={in}/two", *_OVER], _bundle, [*_BRANCHES, *_TO], weight=3),
    Case("export", [*_export("one"), *_TO], _bundle, weight=1),
    Case("export --overwrite", [*_export("one"), *_OVER], _bundle, [*_export("two"), *_TO], weight=1),
    Case("train", [*_train(1), *_TO], _package, weight=2),
    Case("train --overwrite", [*_train(1), *_OVER, "--no-resume"], _package, [*_train(2), *_TO], weight=2),
)  # fmt: skip


def names_in(directory: Path) -> set[str]:
    """Return the names of all files and directories in a result, relative to it."""
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")} if directory.is_dir() else set()


def identity_of(case: Case, path: Path) -> str | None:
    """Return the identity of the result at ``path``; None if there is nothing, and ``damaged: …`` if it is not complete."""
    if not path.exists():
        return None
    try:
        return json.dumps(case.identity(path), sort_keys=True)
    except Exception as error:  # noqa: BLE001 - whatever an incomplete result leads its reader into
        return f"damaged: {error}"
