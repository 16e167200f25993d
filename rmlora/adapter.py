"""A LoRA adapter in memory: factors, scale and rank mask per module, and the tensors saved in full.

Plain numpy, no torch. :mod:`rmlora.package` reads and writes adapters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rmlora.errors import AdapterError
from rmlora.pooling import Pooling
from rmlora.tasks import recorded_task
from rmlora.text_pair import InputForm

__all__ = ["Adapter", "LoraModule", "ModuleKind"]

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float32]
ModuleKind = Literal["linear", "embedding", "conv"]


@dataclass(frozen=True)
class LoraModule:
    """The update of one module, ``scale · B A`` in PEFT's shapes.

    ========== ===================== ==================
    kind       ``lora_A``            ``lora_B``
    ========== ===================== ==================
    linear     ``[rank, in]``        ``[out, rank]``
    embedding  ``[rank, tokens]``    ``[width, rank]``
    conv       ``[rank, in, *k]``    ``[out, rank, 1…]``
    ========== ===================== ==================
    """

    path: str
    """Path of the torch module in the base model."""
    kind: ModuleKind
    lora_A: Array  # noqa: N815 - PEFT's name
    lora_B: Array  # noqa: N815 - PEFT's name
    scale: float
    fan_in_fan_out: bool = False
    """True if the base stores this weight as ``[in, out]``; used only for square weights, where the shape cannot tell."""
    rank_mask: npt.NDArray[np.bool_] | None = None
    """``[rank]``, False for directions that contribute nothing; None keeps all."""
    leaf: str = "weight"
    """Name of the parameter that the update changes; ``in_proj_weight`` in ``nn.MultiheadAttention``."""
    peft_path: str = ""
    """Path in PEFT's file, if it is another one than ``path``."""

    def __post_init__(self) -> None:
        rank = self.lora_A.shape[0]
        if self.kind == "conv" and self.lora_B.ndim > 2 and self.lora_B.shape[1] and rank > self.lora_B.shape[1]:
            groups = rank // self.lora_B.shape[1]
            raise AdapterError(
                f"'{self.path}' is a convolution with {groups} groups: PEFT's update of it reads the channels of all groups, so no "
                "weight of the base can hold it; train without this module."
            )
        if self.lora_A.ndim < 2 or self.lora_B.ndim < 2 or self.lora_B.shape[1] != rank:
            raise AdapterError(
                f"The factors of '{self.path}' do not fit together: lora_A is {self.lora_A.shape}, lora_B is "
                f"{self.lora_B.shape}; the adapter file is damaged or mixes two adapters."
            )
        if self.rank_mask is not None and self.rank_mask.shape != (rank,):
            raise AdapterError(
                f"The rank mask of '{self.path}' has {self.rank_mask.size} entries for rank {rank}: "
                "rmlora.json is damaged."
            )

    @property
    def parameter(self) -> str:
        """Path of the parameter that the update changes."""
        return f"{self.path}.{self.leaf}"

    @property
    def rank(self) -> int:
        """Number of stored directions, masked ones included."""
        return int(self.lora_A.shape[0])

    @property
    def active_rank(self) -> int:
        """Number of directions that are not masked."""
        return self.rank if self.rank_mask is None else int(self.rank_mask.sum())

    @cached_property
    def A(self) -> FloatArray:  # noqa: N802 - the paper's symbol
        """``[active rank, in]`` float32: A without masked directions, trailing axes flattened."""
        factor = self.lora_A if self.rank_mask is None else self.lora_A[self.rank_mask]
        return np.ascontiguousarray(factor.reshape(factor.shape[0], math.prod(factor.shape[1:])), dtype=np.float32)

    @cached_property
    def B(self) -> FloatArray:  # noqa: N802 - the paper's symbol
        """``[out, active rank]`` float32: B without masked directions, not scaled."""
        factor = self.lora_B.reshape(self.lora_B.shape[0], self.rank)
        factor = factor if self.rank_mask is None else factor[:, self.rank_mask]
        return np.ascontiguousarray(factor, dtype=np.float32)


@dataclass(frozen=True)
class Adapter:
    """One adapter: updates by module path, tensors saved in full by parameter path, and their origin."""

    modules: Mapping[str, LoraModule]
    """Module path → its update."""
    modules_to_save: Mapping[str, Array] = field(default_factory=dict)
    """Parameter path (``classifier.weight``) → tensor that replaces the base's, or that the base lacks."""
    peft_config: Mapping[str, Any] = field(default_factory=dict)
    """Content of ``adapter_config.json``."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Content of ``rmlora.json``, see :mod:`rmlora.package`; empty for an adapter of another tool."""
    source: str = "adapter"
    """Where it was read from, for error messages."""

    @property
    def parameters(self) -> int:
        """Number of elements of all factors, masked directions included, modules_to_save not."""
        return sum(module.lora_A.size + module.lora_B.size for module in self.modules.values())

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the base it was trained on; None if not recorded."""
        value = self.metadata.get("base_fingerprint")
        return str(value) if value else None

    @property
    def base_weights(self) -> Mapping[str, str]:
        """Module path → digest of the base's weight (:mod:`rmlora.fingerprint`); empty if not recorded."""
        return dict(self.metadata.get("base_weights") or {})

    @property
    def task(self) -> str | None:
        """Task name (``text-classification``, …) that the package or PEFT's configuration records; None if neither does."""
        value = self.metadata.get("task") or recorded_task(self.peft_config)
        return str(value) if value else None

    @property
    def problem_type(self) -> str | None:
        """What kind of answer it gives, in transformers' words (:mod:`rmlora.scoring`); None if not recorded."""
        value = self.metadata.get("problem_type")
        return str(value) if value else None

    @property
    def labels(self) -> list[str] | None:
        """Label names in the order of the head's outputs; None if not recorded."""
        value = self.metadata.get("labels")
        return [str(label) for label in value] if value else None

    @property
    def input_form(self) -> InputForm | None:
        """What it was trained on, single texts or pairs; None if that is not recorded, or for images."""
        value: InputForm | None = self.metadata.get("input_form")
        return value

    @property
    def no_answer(self) -> bool | None:
        """True if it learned that a question may have no answer in its context; None if that is not recorded."""
        value = self.metadata.get("no_answer")
        return None if value is None else bool(value)

    @property
    def threshold(self) -> float | None:
        """Probability from which a label applies, where several may; None if that is not recorded."""
        value = self.metadata.get("threshold")
        return None if value is None else float(value)

    @property
    def pooling(self) -> Pooling | None:
        """How its token vectors were pooled in training; None if that is not recorded, or for other tasks."""
        value = self.metadata.get("pooling")
        return Pooling(value["mode"], value["normalize"]) if value else None

    @property
    def trained_length(self) -> int | None:
        """Tokens that texts were cut to in training; None if that is not recorded."""
        settings = (self.metadata.get("training") or {}).get("settings", {})
        length = self.metadata.get("max_length") or settings.get("max_length")
        return int(length) if length else None

    @property
    def prompt_format(self) -> Literal["chat", "raw"] | None:
        """How a language model was asked in training: by its chat template, or with the text as it stands; None if not recorded."""
        value: Literal["chat", "raw"] | None = self.metadata.get("prompt_format")
        return value

    @property
    def end_tokens(self) -> list[int]:
        """Tokens that end an answer of a language model; empty if not recorded."""
        return [int(token) for token in self.metadata.get("end_tokens") or ()]

    @property
    def base_precision(self) -> str | None:
        """``nf4`` if the base was rounded to 4 bits in training; None if it was used as it is, or that is not recorded."""
        value = self.metadata.get("base_precision")
        return str(value) if value else None
