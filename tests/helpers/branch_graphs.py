"""Graphs of tiny models with branches, and adapters of several ranks for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from peft import LoraConfig, PeftModel

from rmlora.adapter import Adapter
from rmlora.checkpoint import Checkpoint
from rmlora.package import load_package, write_metadata
from rmlora_converters.graph.contract.adapter_arrays import adapter_arrays
from rmlora_converters.graph.contract.lora_inputs import LoraInputs
from rmlora_converters.graph.files.model_file import load_model, save_model
from rmlora_converters.graph.locate.targets import find_targets
from rmlora_converters.graph.passes.insert_branches import insert_branches
from rmlora_converters.graph.passes.open_attention import open_attention_per_projection
from rmlora_deploy.runtime import AdapterSession
from tests.helpers.bundles import make_sources
from tests.helpers.exports import with_bias
from tests.helpers.models import ARCHITECTURES, adapt, build, lora_config, output, save_adapter, save_base

FLOAT = np.dtype(np.float32)
LABELS = {"one": ["no", "yes"], "two": ["red", "green", "blue"], "three": ["a", "b", "c", "d", "e"]}
"""Adapter → its labels."""


@dataclass(frozen=True)
class Branched:
    """A graph with branches and its adapters."""

    name: str
    path: Path
    lora_inputs: LoraInputs
    adapters: dict[str, Path]

    def arrays(self, adapter: str) -> dict[str, np.ndarray]:
        """Return the arrays of an adapter's LoRA inputs."""
        return adapter_arrays(
            load_package(self.adapters[adapter]), self.lora_inputs, dict.fromkeys(self.lora_inputs.names, FLOAT)
        )

    def session(self, **options: Any) -> AdapterSession:
        """Open the graph with all its adapters."""
        session = AdapterSession(self.path, **options)
        for name in self.adapters:
            session.register(name, partial(self.arrays, name))
        return session

    def inputs(self, batch: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
        """Return a batch of the graph's inputs."""
        taken = {value.name for value in load_model(self.path).graph.inputs}
        made = ARCHITECTURES[self.name].inputs(batch=batch, seed=seed)
        return {key: value.numpy() for key, value in made.items() if key in taken}

    def expected(self, adapter: str, batch: int = 3, seed: int = 0) -> np.ndarray:
        """Return PEFT's output for :meth:`inputs`."""
        model = PeftModel.from_pretrained(build(self.name), self.adapters[adapter]).eval()
        return output(model, ARCHITECTURES[self.name].inputs(batch=batch, seed=seed)).numpy()


def make_adapters(name: str, directory: Path, configs: dict[str, LoraConfig]) -> dict[str, Path]:
    """Save a random adapter for each configuration."""
    made = {}
    for number, (label, config) in enumerate(configs.items()):
        torch.manual_seed(number)
        made[label] = save_adapter(adapt(build(name), config, size=0.3, seed=number), directory / label)
    return made


def make_branched(
    name: str, graph: Path, directory: Path, adapters: dict[str, Path], *, by_name: bool = False
) -> Branched:
    """Insert branches for ``adapters`` into the file ``graph``; ``by_name`` finds the weights by name alone."""
    base = save_base(with_bias(name), directory / "branch-base")
    model = ir.load(graph)
    ir.external_data.load_to_model(model)
    loaded: list[Adapter] = [load_package(path) for path in adapters.values()]
    open_attention_per_projection(model)
    lora_inputs = insert_branches(
        model, find_targets(model, loaded, None if by_name else Checkpoint(base)), base_weights={}
    )
    path = directory / "branches.onnx"
    save_model(model, path)
    return Branched(name, path, lora_inputs, adapters)


def make_base(name: str, directory: Path) -> Path:
    """Save a tiny base with a head and its processor."""
    make_sources(name, directory)
    return save_base(with_bias(name), directory / "base")


def make_adapter(name: str, directory: Path, label: str, *, rank: int = 4, **metadata: Any) -> Path:
    """Save a random adapter with the labels of :data:`LABELS`; its head has as many outputs."""
    model, labels = ARCHITECTURES[name].build(), LABELS[label]
    head_name = ARCHITECTURES[name].head or ""
    head = getattr(model, head_name)
    for parent, part_name in [(model, head_name), *((head, child) for child, _ in head.named_children())]:
        part = getattr(parent, part_name)
        if getattr(part, "out_features", 0) == 3:
            setattr(parent, part_name, torch.nn.Linear(part.in_features, len(labels), bias=part.bias is not None))
    model.config.num_labels = len(labels)
    adapter = save_adapter(adapt(model, lora_config(name, r=rank), size=0.3, seed=rank), directory / label)
    write_metadata(adapter, {"task": ARCHITECTURES[name].task, "labels": labels, **metadata})
    return adapter
