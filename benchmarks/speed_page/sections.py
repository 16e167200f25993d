"""The sections of the page, in order; ``benchmarks.speed`` runs their commands."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

__all__ = ["SECTIONS", "Section"]


@dataclass(frozen=True)
class Section:
    """One table, or a few of the same command."""

    title: str
    module: str
    """Its command is ``python -m benchmarks.<module>``."""
    results: tuple[str, ...]
    """Names of the results files."""
    text: str = ""

    @property
    def command(self) -> str:
        """The command that measures it."""
        return f"python -m benchmarks.{self.module}"


_ALL = (
    Section(
        "Training step",
        "training_step",
        ("training_step",),
        "One optimizer step of a transformers `Trainer` on MiniLM, 32 × 64 tokens, rank 8 on all 36 projections. All methods "
        "but *full* train the same adapter and head; the floor is the model with only its head in training.",
    ),
    Section(
        "Merging",
        "merge_speed",
        ("merge_speed",),
        "An adapter merged into a bfloat16 checkpoint, beside copying the checkpoint.",
    ),
    Section(
        "From adapter to first answer",
        "first_answer",
        ("first_answer",),
        "The time from a PEFT adapter directory to the first answer with it, in a process that already runs and from nothing, "
        "process start included.",
    ),
    Section(
        "One encoder",
        "encoder_speed",
        ("encoder_speed", "encoder_speed_cuda", "encoder_speed_tensorrt"),
        "MiniLM-L6 (22.7 M parameters) with an adapter merged in. Every engine starts from the same merged checkpoint, and "
        "classifies the same messages of the test set afterwards: accuracy, and the difference of its logits from PyTorch's.",
    ),
    Section(
        "int8: speed and accuracy",
        "int8",
        ("int8",),
        "The same classifier made int8 by several recipes: what each gains in speed, and what it costs. Accuracy is that on the "
        "messages of the test set, and the error is the difference of the logits from PyTorch's. Cosines are between a text's "
        "vectors in int8 and in float32, from a second graph that returns vectors, made by the same recipe.",
    ),
    Section(
        "Other execution providers",
        "provider_speed",
        ("provider_speed",),
        "The same graphs on execution providers other than ONNX Runtime's own.",
    ),
    Section(
        "Eight adapters in one batch",
        "mixed_adapters",
        ("mixed_adapters",),
        "A batch of 8 rows, each with an adapter of its own of rank 8 on all 36 projections. The time includes all that a "
        "caller waits for: looking up adapters, binding inputs, sorting rows.",
    ),
    Section(
        "A language model",
        "generation_speed",
        ("generation_speed",),
        "SmolLM2-135M with adapters of rank 8 on all 210 projections, weights in int8, on the processor.",
    ),
    Section(
        "Servers",
        "server_speed",
        ("server_embeddings", "server_classification"),
        "16 clients in a closed loop, one text of a real message in each request, over HTTP on the same machine. Server and "
        "clients share the two cores.",
    ),
    Section(
        "A server on a shared machine",
        "shared_machine",
        ("shared_machine",),
        "Requests per second of a server alone and beside busy programs of normal priority.",
    ),
    Section(
        "How costs grow",
        "growth",
        ("growth_rows", "growth_tokens", "growth_rank", "growth_adapters", "growth_size", "growth_threads"),
        "One figure along one axis at a time, everything else as above.",
    ),
)

SECTIONS = tuple(section for section in _ALL if find_spec(f"benchmarks.{section.module}") is not None)
"""Those whose command is in this tree."""
