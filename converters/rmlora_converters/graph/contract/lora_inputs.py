"""The graph contract, version 1: what a graph with branches takes for its adapters.

For a module ``<path>`` the graph computes ``y' = y + (x · A) · B`` with two optional inputs:

=================== ====================== =====================================
input               shape                  default
=================== ====================== =====================================
``<path>.lora_A``   ``[rows, in, rank]``   ``[1, in, 0]``
``<path>.lora_B``   ``[rows, rank, out]``  ``[1, 0, out]``, scale folded in
``<path>.weight``   ``[rows, in, labels]`` ``[1, in, 0]`` (a head, saved whole)
``<path>.bias``     ``[rows, labels]``     ``[1, 0]``
=================== ====================== =====================================

``rows`` is 1, one adapter for the whole batch, or the batch, one for every row. While a head is empty the base's own
answers. All are initializers that an input of
the same name overrides (ONNX IR 4), so a graph to which nothing is fed is the base, and onnxruntime's own
``LoraAdapter`` feeds one adapter. The list of slots stands in the model's ``metadata_props``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from rmlora.adapter import ModuleKind
from rmlora.errors import InputError
from rmlora_converters.graph.locate.weights import WeightLocation

__all__ = ["CONTRACT_VERSION", "BranchInputs", "HeadInputs", "LoraInputs", "read_lora_inputs"]

CONTRACT_VERSION = 1
_KEY = "rmlora.slots"


@dataclass(frozen=True)
class BranchInputs:
    """A module with a branch."""

    module: str
    kind: ModuleKind
    fan_in: int
    """Rows of ``A``: inputs, for a convolution those of one patch, for an embedding the tokens."""
    fan_out: int
    weight: str = ""
    """Initializer that holds the base's weight, unless a quantizer renamed it since."""
    transposed: bool = False
    """It is stored ``[in, out]``."""
    start: int = 0
    """First output of the module in it; weights that read the same input may be packed."""

    @property
    def location(self) -> WeightLocation:
        """Where the base's weight lies."""
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
    """A linear module that adapters bring whole, each with as many outputs (labels) as it has."""

    module: str
    fan_in: int
    in_base: bool = True
    """Whether the base has trained weights there; else the default is noise, and every row needs an adapter."""

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
    """Everything a graph takes for its adapters, in the order of execution."""

    modules: tuple[BranchInputs, ...]
    heads: tuple[HeadInputs, ...] = ()
    base_weights: Mapping[str, str] = field(default_factory=dict)
    """Module path → digest of the base's weight there (:mod:`rmlora.fingerprint`); empty when not known."""

    @property
    def names(self) -> list[str]:
        """Names of all inputs."""
        branches = [name for slot in self.modules for name in (slot.lora_A, slot.lora_B)]
        return branches + [name for head in self.heads for name in (head.weight, head.bias)]

    def to_props(self) -> dict[str, str]:
        """Return the entries for the model's ``metadata_props``."""
        return {_KEY: json.dumps({"version": CONTRACT_VERSION, **asdict(self)})}


def read_lora_inputs(props: Mapping[str, str], *, where: str) -> LoraInputs:
    """Read what :meth:`LoraInputs.to_props` wrote.

    Raises:
        InputError: the graph has no slots, or of another version.
    """
    if _KEY not in props:
        raise InputError(f"{where} has no slots for adapters: make it with  rmlora-deploy export --mode branches.")
    try:
        value = json.loads(props[_KEY])
        version = value.pop("version")
        if version != CONTRACT_VERSION:
            raise InputError(
                f"{where} follows version {version} of the graph contract, this program {CONTRACT_VERSION}."
            )
        return LoraInputs(
            tuple(BranchInputs(**item) for item in value["modules"]),
            tuple(HeadInputs(**item) for item in value["heads"]),
            value["base_weights"],
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"The slots recorded in {where} are damaged: export it again.") from None
