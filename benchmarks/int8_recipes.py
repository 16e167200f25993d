"""The int8 graphs that ``benchmarks.int8`` compares: each recipe applied to a classifier and to an encoder of vectors.

Recipes are calibrated on the validation texts. All is made once and kept in the work directory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.assets import minilm
from benchmarks.random_adapters import save_random_adapter
from benchmarks.speed_models import SpeedModels, command
from benchmarks.worker import run_batches
from rmlora.storage import atomic_directory
from rmlora_converters.graph.files.model_file import load_model
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import WeightBits
from rmlora_deploy.exporter.calibration import CalibrationData
from rmlora_deploy.exporter.int8 import save_in_int8
from rmlora_deploy.runtime.graph_logits import graph_logits

__all__ = ["ONNXRUNTIME", "OURS", "Int8Models"]

Recipe = Callable[[Path, Path, CalibrationData], None]
"""Writes the float32 graph of the first path to the second in int8."""

_RUNTIME_SAMPLES = 100
"""Texts that onnxruntime is calibrated on, as many as NNCF."""


def _ours(bits: WeightBits = 8, *, calibrated: bool = True) -> Recipe:
    def save(graph: Path, target: Path, data: CalibrationData) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            save_in_int8(load_model(graph), target, data if calibrated else None, scratch=Path(scratch), bits=bits)

    return save


def _quantize_dynamic(graph: Path, target: Path, data: CalibrationData) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(graph, target, extra_options={"MatMulConstBOnly": True}, **_runtime_settings())


def _quantize_static(graph: Path, target: Path, data: CalibrationData) -> None:
    """Calibrate on the smallest and largest numbers, which is onnxruntime's default."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        def __init__(self) -> None:
            self._rest = iter(data.batches[:_RUNTIME_SAMPLES])

        def get_next(self) -> Any:
            return next(self._rest, None)

    quantize_static(graph, target, Reader(), **_runtime_settings())


def _runtime_settings() -> dict[str, Any]:
    from onnxruntime.quantization import QuantType

    return {"per_channel": True, "weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul"]}


OURS: dict[str, Recipe] = {
    "ours, int8": _ours(),
    "ours, int8 in 7 bits": _ours(7),
    "ours, int8 without data": _ours(calibrated=False),
}
ONNXRUNTIME: dict[str, Recipe] = {
    "onnxruntime, quantize_dynamic": _quantize_dynamic,
    "onnxruntime, quantize_static": _quantize_static,
}


class Int8Models:
    """Makes the graphs of the recipes in the work directory of ``models``, each when it is first asked for."""

    def __init__(self, models: SpeedModels) -> None:
        self.models = models
        self.work = models.work / "int8"
        self.work.mkdir(exist_ok=True)

    def graphs(self, recipe: str) -> tuple[Path, Path]:
        """Return the classifier and the encoder of vectors that a recipe made."""
        directory = self.work / recipe.replace(", ", "-").replace(" ", "-")
        names = ("classifier.onnx", "vectors.onnx")
        if not directory.is_dir():
            bundles = (Bundle.open(self.models.bundle()), Bundle.open(self.vectors_bundle()))
            texts = (self._texts("validation", "sms"), self._texts("validation", "sms", "trec"))
            with atomic_directory(directory) as made:
                for name, bundle, inputs in zip(names, bundles, texts, strict=True):
                    data = CalibrationData.of("validation", bundle.preprocessor(), inputs, bundle.task.outputs)
                    (OURS | ONNXRUNTIME)[recipe](bundle.model_path, made / name, data)
        classifier, vectors = (directory / name for name in names)
        return classifier, vectors

    def vectors_bundle(self) -> Path:
        """Export MiniLM with a random adapter as an encoder of vectors, in float32."""
        path, adapter = self.work / "vectors", self.work / "adapter"
        if not path.is_dir():
            save_random_adapter(minilm(), "feature-extraction", adapter, rank=8, seed=8)
            command("export", minilm(), "--adapter", adapter, "--output", path)
        return path

    def vectors(self) -> Path:
        """Compute the float32 vectors of every second test text, and return them with the token ids."""
        path = self.work / "vectors.npz"
        if not path.is_file():
            texts = sorted(self._texts("test", "sms", "trec")[::2], key=len)  # batches of texts alike pad little
            bundle = Bundle.open(self.vectors_bundle())
            inputs = bundle.preprocessor()(texts)
            np.savez(path, vectors=run_batches(graph_logits(bundle.session()), inputs), **inputs)
        return path

    def _texts(self, split: str, *datasets: str) -> list[str]:
        files = [self.models.splits(name) / f"{split}.jsonl" for name in datasets]
        return [json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]
