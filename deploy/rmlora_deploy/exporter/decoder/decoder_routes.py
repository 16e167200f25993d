"""Two ways to a language model's graph: ONNX Runtime GenAI's builder where it can, else torch.onnx.

Both write the same files, with the same inputs and outputs; nothing after this asks which it was. The builder's graphs are faster,
because it fuses more of a layer into the operator of its attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rmlora.checkpoint import Checkpoint
from rmlora.errors import CheckpointError, ConfigError, is_installed
from rmlora.stored_weights import StoredWeights
from rmlora.tasks import Task
from rmlora_deploy.bundles.manifest import Precision
from rmlora_deploy.exporter.decoder.builder_checkpoint import builder_checkpoint, check_end_token
from rmlora_deploy.exporter.decoder.genai_architectures import BUILT, check_shared, check_split
from rmlora_deploy.exporter.decoder.genai_builder import INT4_RECIPE, build_decoder, builders_provider
from rmlora_deploy.exporter.decoder.trace_model import trace_model
from rmlora_deploy.exporter.decoder.traced_architectures import EXPERTS, NOT_EXPORTED, TRACED

__all__ = ["DecoderRoute", "choose_route"]

_ROTATIONS_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary embedding whose angles depend on how long a text is."""
_TRACED_FOR = "cpu"
"""Execution provider on which traced graphs were tried."""


@dataclass(frozen=True)
class DecoderRoute:
    """How the graph of a language model is made."""

    exporter: Literal["genai", "torch"]
    architecture: str
    """Model class."""
    precision: Precision
    provider: str
    """Execution provider that the graph is for."""

    @property
    def recipe(self) -> str | None:
        """How weights are rounded to int4; None in other precisions."""
        return INT4_RECIPE if self.precision == "int4" else None

    def check_branches(self, modules: Iterable[str], weights: StoredWeights, name: str) -> None:
        """Raise :class:`AdapterError` if the adapter ``name`` changes a module that gets no branch.

        Args:
            modules: paths of the modules that the adapter changes.
            weights: of the base.
            name: of the adapter.
        """
        if self.exporter == "genai":
            check_split(self.architecture, modules, name)
            if self.precision == "int4":
                check_shared(modules, weights, name)

    def check_checkpoint(self, checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> None:
        """Raise :class:`CheckpointError` if the base lacks what its graph needs."""
        if self.exporter == "genai":
            check_end_token(checkpoint, trust_remote_code=trust_remote_code)

    def make_graph(
        self,
        checkpoint: Path,
        output: Path,
        *,
        task: Task,
        on_progress: Callable[[str], None],
        trust_remote_code: bool = False,
    ) -> None:
        """Write graph, ``genai_config.json`` and tokenizer of the model in ``checkpoint`` to ``output``.

        Args:
            checkpoint: directory of the model.
            output: directory to create; its parent is for temporary files.
            task: that the model is loaded for.
            on_progress: called with a line before every step.
            trust_remote_code: run code that comes with the model.

        Raises:
            CheckpointError: the model cannot be built.
            InputError: the model cannot be traced.
        """
        if self.exporter == "genai":
            on_progress(f"building the graph in {self.precision}")
            source = builder_checkpoint(Checkpoint(checkpoint), output.with_name("source"))
            build_decoder(source, output, self.precision, provider=self.provider, trust_remote_code=trust_remote_code)
        else:
            on_progress("exporting with torch.onnx")
            trace_model(
                checkpoint,
                output,
                self.precision,
                task=task,
                on_progress=on_progress,
                trust_remote_code=trust_remote_code,
            )


def choose_route(config: Mapping[str, Any], source: object, precision: Precision, provider: str | None) -> DecoderRoute:
    """Return how the model that ``config`` describes is exported.

    Args:
        config: of the base (``config.json``).
        source: what the base is called, for the error.
        precision: of the weights.
        provider: execution provider that the graph is for; None takes the first that has this precision.

    Raises:
        CheckpointError: the model is not exported, or its class is not named.
        ConfigError: not in this precision, or not for this provider.
    """
    names = config.get("architectures") or []
    name = str(names[0]) if isinstance(names, list) and names else ""
    if not name:
        raise CheckpointError(
            f"{source} does not say of which class its model is: add 'architectures' to its config.json."
        )
    if name in BUILT and is_installed("onnxruntime_genai"):
        return DecoderRoute("genai", name, precision, builders_provider(precision, provider))
    if name not in (*TRACED, *BUILT):
        reason = NOT_EXPORTED.get(
            name, "ONNX Runtime GenAI's builder does not know it, and it has not been tried with torch.onnx"
        )
        raise CheckpointError(
            f"{source} is a {name}, which is not exported: {reason}. Exported are {', '.join(sorted((*BUILT, *TRACED)))}. Merge "
            "the adapter into its base with  rmlora-deploy merge  and run the result with an engine for language models."
        )
    _check_traced(name, config, precision, provider)
    return DecoderRoute("torch", name, precision, _TRACED_FOR)


def _check_traced(name: str, config: Mapping[str, Any], precision: Precision, provider: str | None) -> None:
    """Raise an error if torch.onnx's graph is not made for this configuration, in this precision or for this provider.

    Raises:
        CheckpointError: its positions depend on the length of the text.
        ConfigError: precision or provider.
    """
    if (rotation := _rotation(config)) in _ROTATIONS_BY_LENGTH:
        better = "install the extra genai, whose builder exports it" if name in BUILT else "choose another base"
        raise CheckpointError(
            f"The rotary embedding of this {name} ('{rotation}') changes with the length of the text, which torch.onnx cannot "
            f"trace: {better}."
        )
    if name in EXPERTS and precision in ("int8", "int4"):
        raise ConfigError(
            f"The experts of a {name} are one operator, whose weights are not rounded to {precision}: choose --precision fp32 or "
            "fp16."
        )
    if provider not in (None, _TRACED_FOR):
        better = "install the extra genai, whose builder makes graphs for it, or " if name in BUILT else ""
        raise ConfigError(
            f"The graph of a {name} is written by torch.onnx and was tried on --provider {_TRACED_FOR} only, not {provider}: "
            f"{better}leave --provider out."
        )


def _rotation(config: Mapping[str, Any]) -> str | None:
    """Return the kind of the rotary embedding that ``config.json`` names, in the words of any transformers; None if it names none."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    return str(found.get("rope_type", found.get("type"))) if isinstance(found, dict) else None
