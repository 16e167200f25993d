"""The models that the tables of speeds measure: a trained adapter of MiniLM, merged and exported by us and by the peers.

Everything is made once and kept in the work directory. A peer's model that cannot be made has a reason in place of a path.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import minilm
from benchmarks.branches import export_bundles
from benchmarks.contest import Contestant, ContestantError, run_worker, worker
from benchmarks.demo import PROJECTIONS
from benchmarks.peers import missing, python_of
from benchmarks.realdata import write_splits
from rmlora.storage import atomic_directory

__all__ = ["LABELS", "LENGTH", "Made", "SpeedModels", "command", "mixed_bundles", "processor_flags"]

LABELS, LENGTH, TRAINING_ROWS = ("ham", "spam"), 64, 1200


@dataclass(frozen=True)
class Made:
    """A model on disk, or why there is none."""

    path: Path
    missing: str | None = None


class SpeedModels:
    """Makes the models in ``work``, each when it is first asked for."""

    def __init__(self, work: Path) -> None:
        self.work = work
        work.mkdir(parents=True, exist_ok=True)

    def adapter(self) -> Path:
        """Train an RM-LoRA adapter that tells spam from ham, and return it."""
        data, path = self.splits(), self.work / "spam"
        if not path.is_dir():
            targets = [part for name in PROJECTIONS for part in ("--target-modules", name)]
            command(
                "train", "--base", minilm(), "--train", data / "train.jsonl", "--validation", data / "validation.jsonl",
                "--output", path, "--epochs", "2", "--max-length", str(LENGTH), *targets,
            )  # fmt: skip
        return path

    def checkpoint(self) -> Path:
        """Merge the adapter into an ordinary checkpoint, which is what every peer starts from."""
        path = self.work / "checkpoint"
        if not path.is_dir():
            command("merge", minilm(), self.adapter(), "--output", path)
        return path

    def bundle(self, precision: str = "fp32") -> Path:
        """Export a merged bundle of ours."""
        path = self.work / f"bundle-{precision}"
        if not path.is_dir():
            data = ("--data", self.splits() / "validation.jsonl")
            command("export", minilm(), "--adapter", self.adapter(), "--output", path, "--precision", precision, *data)
        return path

    def texts(self, split: str) -> Path:
        """Tokenize a split of the real texts; the test split also gets PyTorch's logits, which every row is compared with."""
        path = self.work / f"{split}.npz"
        if not path.is_file():
            np.savez(path, **_tokenized(self.checkpoint(), self.splits() / f"{split}.jsonl", logits=split == "test"))
        return path

    def optimum(self, kind: str) -> Made:
        """Export with Optimum: ``plain``, ``o3`` or ``int8``."""
        flags = processor_flags()
        preset = next((name for name in ("avx512_vnni", "avx512f") if name in flags), "avx2").removesuffix("f")
        job = {"checkpoint": str(self.checkpoint()), "instructions": preset}
        directory = self._by_peer("optimum", "export_optimum", "optimum", job)
        file = {"plain": "model.onnx", "o3": "model_optimized.onnx", "int8": "model_quantized.onnx"}[kind]
        return Made(directory.path / kind / file, directory.missing)

    def openvino_int8(self) -> Made:
        """Quantize Optimum's export with NNCF on 100 validation texts."""
        plain = self.optimum("plain")
        if plain.missing is not None:
            return plain
        job = {"model": str(plain.path), "texts": str(self.texts("validation"))}
        directory = self._by_peer("openvino", "export_openvino", "openvino-int8", job, file="model.xml")
        return Made(directory.path / "model.xml", directory.missing)

    def ctranslate2(self) -> Made:
        """Convert the checkpoint to CTranslate2; ``head.npz`` lies beside the encoder's directory."""
        job = {"checkpoint": str(self.checkpoint()), "head": "head.npz"}
        directory = self._by_peer("ctranslate2", "export_ctranslate2", "ctranslate2", job, file="encoder")
        return Made(directory.path, directory.missing)

    def _by_peer(self, peer: str, module: str, name: str, job: Mapping[str, Any], *, file: str = "") -> Made:
        """Let a peer's worker write a directory, or ``file`` in it; paths of the job that are relative are in there too."""
        path = self.work / name
        reason = missing(peer)
        if reason is not None or path.is_dir():
            return Made(path, reason)
        try:
            with atomic_directory(path) as directory:
                placed = {"output": str(directory / file), **job}
                if "head" in placed:
                    placed["head"] = str(directory / placed["head"])
                run_worker(Contestant(name, worker(module, python=python_of(peer)), placed))
        except ContestantError as error:
            return Made(path, f"{peer} could not make the model: {error}")
        return Made(path)

    def splits(self, dataset: str = "sms") -> Path:
        """Write the splits of a dataset, and return their directory."""
        return write_splits(dataset, self.work / dataset, limit=TRAINING_ROWS)


def mixed_bundles(work: Path) -> Path:
    """Export a graph with branches and a merged one, with the random adapters of ``benchmarks.branches``."""
    path = work / "mixed"
    if not path.is_dir():
        with atomic_directory(path) as directory:
            export_bundles(directory)
    return path


def command(*words: str | Path) -> None:
    """Run a command of ours, quietly.

    Raises:
        SystemExit: it failed; its error has been printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "rmlora_deploy", *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        sys.exit(f"rmlora-deploy {words[0]} failed")


def processor_flags() -> frozenset[str]:
    """Return the instruction sets of the processor, as Linux names them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _tokenized(checkpoint: Path, table: Path, *, logits: bool) -> dict[str, Any]:
    """Return token ids, mask and labels of a table of texts, and the checkpoint's logits in PyTorch."""
    import json

    from transformers import AutoTokenizer

    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    encoded = tokenizer(
        [row["text"] for row in rows], truncation=True, max_length=LENGTH, padding="max_length", return_tensors="np"
    )
    arrays = {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    arrays["labels"] = np.array([LABELS.index(row["label"]) for row in rows])
    if logits:
        arrays["logits"] = _torch_logits(checkpoint, arrays)
    return arrays


def _torch_logits(checkpoint: Path, arrays: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        parts = [
            model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits.numpy()
            for ids, mask in zip(
                np.array_split(arrays["input_ids"], 16), np.array_split(arrays["attention_mask"], 16), strict=True
            )
        ]
    return np.concatenate(parts)
