"""The graph contract, version 1: the inputs through which a graph with branches takes its adapters.

For a module ``<path>`` the graph computes ``y' = y + (x · A) · B`` with two optional inputs:

=================== ====================== =====================================
input               shape                  default
=================== ====================== =====================================
``<path>.lora_A``   ``[rows, in, rank]``   ``[1, in, 0]``
``<path>.lora_B``   ``[rows, rank, out]``  ``[1, 0, out]``, scale folded in
``<path>.weight``   ``[rows, in, labels]`` ``[1, in, 0]`` (a head)
``<path>.bias``     ``[rows, labels]``     ``[1, 0]``
=================== ====================== =====================================

``rows`` is 1 (one adapter for the whole batch) or the batch size (one adapter per row). An empty head means that the
base's own head computes the output. All inputs are initializers that an input of the same name overrides (ONNX IR 4), so
without any input the graph computes the base, and onnxruntime's own ``LoraAdapter`` can feed one adapter. The list of LoRA
inputs is in the model's ``metadata_props``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pydantic import TypeAdapter, ValidationError

from rmlora.adapter import ModuleKind
from rmlora.errors import InputError
from rmlora.json_files import parse_json
from rmlora_converters.graph.locate.weights import WeightLocation

__all__ = ["CONTRACT_VERSION", "BranchInputs", "HeadInputs", "LoraInputs", "has_lora_inputs", "read_lora_inputs"]

CONTRACT_VERSION = 1
_KEY = "rmlora.slots"  # part of the file format, so it keeps the name that LoRA inputs had when version 1 was published


@dataclass(frozen=True)
class BranchInputs:
    """The inputs of one module with a branch."""

    module: str
    kind: ModuleKind
    fan_in: int
    """Rows of ``lora_A``: the module's inputs, those of one patch for a convolution, or the tokens of an embedding."""
    fan_out: int
    weight: str = ""
    """Initializer with the base's weight. A quantizer may have renamed it since."""
    transposed: bool = False
    """True if the weight is stored ``[in, out]``."""
    start: int = 0
    """First output of the module in the initializer, which may pack the weights of several modules."""

    @property
    def location(self) -> WeightLocation:
        """Location of the base's weight."""
        outputs = self.fan_in if self.kind == "embedding" else self.fan_out
        return WeightLocation(
            f"{self.module}.weight", self.weight, self.transposed, self.start, self.start + outputs, "name"
        )

    @property
    def lora_A(self) -> str:  # noqa: N802 - PEFT's name
        """Name of the input for the first factor."""
        return f"{self.module}.lora_A"

    @property
    def lora_B(self) -> str:  # noqa: N802 - PEFT's name
        """Name of the input for the second factor."""
        return f"{self.module}.lora_B"


@dataclass(frozen=True)
class HeadInputs:
    """The inputs of one head: a linear module that adapters replace, each with its own number of labels."""

    module: str
    fan_in: int
    in_base: bool = True
    """True if the base has trained weights for it. Otherwise its default output is noise, and every row needs an adapter."""

    @property
    def weight(self) -> str:
        """Name of the input for the weight."""
        return f"{self.module}.weight"

    @property
    def bias(self) -> str:
        """Name of the input for the bias."""
        return f"{self.module}.bias"


@dataclass(frozen=True)
class LoraInputs:
    """All inputs that a graph takes for its adapters, in the order of execution."""

    modules: tuple[BranchInputs, ...]
    heads: tuple[HeadInputs, ...] = ()
    base_weights: Mapping[str, str] = field(default_factory=dict)
    """Module path → digest of the base's weight (:mod:`rmlora.fingerprint`); empty if unknown."""
    absent: tuple[str, ...] = ()
    """Parameters that adapters may change and the graph does not have; mostly because no output depends on them."""

    @property
    def names(self) -> list[str]:
        """Names of all inputs."""
        factors = [name for branch in self.modules for name in (branch.lora_A, branch.lora_B)]
        return factors + [name for head in self.heads for name in (head.weight, head.bias)]

    def to_props(self) -> dict[str, str]:
        """Return the entries for the model's ``metadata_props``."""
        return {_KEY: json.dumps({"version": CONTRACT_VERSION, **asdict(self)})}


def has_lora_inputs(props: Mapping[str, str]) -> bool:
    """Return True if the graph with this ``metadata_props`` has LoRA inputs."""
    return _KEY in props


def read_lora_inputs(props: Mapping[str, str], *, where: str) -> LoraInputs:
    """Read what :meth:`LoraInputs.to_props` wrote.

    Raises:
        InputError: the graph has no LoRA inputs, or follows another version of the contract.
    """
    if not has_lora_inputs(props):
        raise InputError(f"{where} has no LoRA inputs: make it with  rmlora-deploy export --mode branches.")
    value = parse_json(props[_KEY], where=f"The list of LoRA inputs in {where}")
    version = value.pop("version", None) if isinstance(value, dict) else None
    if version is None:
        raise InputError(f"The list of LoRA inputs in {where} is damaged: export it again.")
    if version != CONTRACT_VERSION:
        raise InputError(
            f"{where} follows version {version} of the graph contract, this program {CONTRACT_VERSION}: export it again."
        )
    try:
        found = _ADAPTER.validate_python(value)
    except ValidationError:
        raise InputError(f"The list of LoRA inputs in {where} is damaged: export it again.") from None
    if len(set(found.names)) < len(found.names):
        raise InputError(f"The list of LoRA inputs in {where} names one twice: export it again.")
    return found


_ADAPTER = TypeAdapter(LoraInputs)
"""Checks the types of all fields; ``absent`` is not in the first graphs of version 1."""
