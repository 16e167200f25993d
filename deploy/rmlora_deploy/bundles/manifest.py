"""``manifest.json`` as typed values, read, checked and migrated in one place.

=========== ==================================================================================================
version     what changed
=========== ==================================================================================================
3           ``function_to_apply`` says what scores mean; earlier reports of a verification are kept
2           no absolute paths; keys in American spelling
1           the first: keys ``optimisation``, ``normalise``, ``first_departure``; sources as absolute paths
=========== ==================================================================================================
"""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from rmlora.errors import InputError
from rmlora.json_files import check_values
from rmlora.pooling import Pooling, PoolingMode
from rmlora.scoring import FunctionToApply, problem_type_in, scoring_of
from rmlora.storage import read_json
from rmlora.text_pair import InputForm
from rmlora_deploy.bundles.report import Comparison, VerificationReport

__all__ = [
    "ADAPTER_NAME",
    "FORMAT_VERSION",
    "PRECISIONS",
    "Activations",
    "AdapterEntry",
    "AdapterSource",
    "BaseEntry",
    "DecoderEntry",
    "Layer",
    "Manifest",
    "Mode",
    "ModelEntry",
    "Optimization",
    "PoolingEntry",
    "Precision",
    "PromptFormat",
    "QuantizationEntry",
    "TensorEntry",
    "WeightBits",
    "parse_manifest",
    "read_manifest",
]

FORMAT_VERSION = 3

Mode = Literal["merged", "branches"]
Precision = Literal["fp32", "fp16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PromptFormat = Literal["chat", "raw"]
"""A prompt is the user's message of a chat, or a text to continue as it is."""
Activations = Literal["static", "dynamic"]
"""Rounded to a grid fixed at export, or to the range of every batch."""
WeightBits = Literal[7, 8]
"""Bits of an int8 weight that are used."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; fields that were never set are left out."""
        return self.model_dump(mode="json", exclude_unset=True)


ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What names an adapter: part of paths, URLs and lines of a log."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def _last_part(path: str) -> str:
    """Return the last part of a path of any system, so that nothing is looked for where a manifest says."""
    return PureWindowsPath(path).name or path


_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Amount = Annotated[int, Field(ge=0, lt=2**62)]


class TensorEntry(_Entry):
    """An input or output of the graph."""

    name: str
    dtype: str | None
    """ONNX's name of the element type."""
    shape: list[int | str]
    """Size of each axis, or the name of one that varies."""


class ModelEntry(_Entry):
    """The graph."""

    files: dict[str, str]
    """File → SHA-256."""
    bytes: _Amount
    opset: _Amount
    operators: dict[str, _Amount]
    """Operator → number of nodes, the most frequent first."""
    inputs: Annotated[list[TensorEntry], Field(min_length=1)]
    """The required inputs; LoRA inputs are optional and not listed."""
    outputs: Annotated[list[TensorEntry], Field(min_length=1)]


class Optimization(_Entry):
    """How far the graph was optimized."""

    level: str
    """``ort-fusions``, ``folded``, ``as given``, ``as built`` by the GenAI builder, or ``norms fused`` in a traced language model."""
    reason: str | None = None
    """Why it was not optimized further; None if it was."""


class QuantizationEntry(_Entry):
    """How the products of a merged int8 graph are rounded."""

    weight_bits: WeightBits
    activations: Activations
    calibrated_on: str | None = None
    """Last part of the name of the data that the grids were measured on; None if dynamic."""
    samples: _Amount = 0
    """Inputs of that data that were run."""
    products: _Amount
    """Products in 8 bits."""
    balanced: _Amount = 0
    """Inputs of products whose channels are balanced."""
    kept_in_float: list[str] = Field(default_factory=list)
    """Products that stay float32 because 8 bits were too coarse for them, the worst first; not the head, which always does."""
    held_out_error: dict[Activations, float] | None = None
    """Mean error of the output, relative to float32's, on inputs that were held out of the calibration."""
    reason: str | None = None
    """Why the ranges of every batch are used although data was given; None if they are not, or there was none."""
    stored_inputs_error: Comparison | None = None
    """Difference from the stored outputs when the bundle was verified on other inputs; None if it was verified on the stored."""


class DecoderEntry(_Entry):
    """A language model: how it was built, and how much text it holds."""

    built_for: str
    """Execution provider that the graph was built for."""
    recipe: str | None = None
    """How the weights are rounded, if there are several ways: the builder's name for it."""
    context_length: Annotated[int, Field(ge=1, lt=2**31)]
    """Tokens of the longest text, prompt and answer together."""
    chat: bool
    """True if a prompt becomes the user's message of a chat."""


class PoolingEntry(_Entry):
    """How a text's token vectors are pooled into one."""

    mode: PoolingMode
    normalize: bool
    source: Literal["chosen", "adapter", "base", "default"]
    """Where the choice came from: the user, files of the adapters, files of the base, or no one."""

    @property
    def pooling(self) -> Pooling:
        """The pooling itself."""
        return Pooling(self.mode, self.normalize)


class Layer(_Entry):
    """A module and the graph's tensor that holds its output."""

    module: str
    tensor: str


class BaseEntry(_Entry):
    """The base model."""

    source: str
    """Name on the hub, or the last part of the directory's path, whatever path a manifest holds."""
    revision: str | None = None
    fingerprint: str
    hub: bool = False
    """True if ``source`` can be fetched from the hub."""

    @model_validator(mode="after")
    def _no_path(self) -> Self:
        if self.hub and not _HUB_NAME.fullmatch(self.source):
            raise ValueError(f"'{self.source}' is not a name on the hub")
        if not self.hub and (name := _last_part(self.source)) != self.source:
            self.source = name
        return self


class AdapterSource(_Entry):
    """An adapter package that the bundle was made from."""

    source: Annotated[str, AfterValidator(_last_part)]
    """The last part of the directory's path, whatever path a manifest holds."""
    sha256: str
    """SHA-256 of the package's tensor file."""
    modules: _Amount
    parameters: _Amount
    rmlora: dict[str, Any] | None = None
    """RM-LoRA settings; None for an adapter that was not trained with this toolkit."""
    metrics: dict[str, Any] | None = None
    input_form: InputForm | None = None
    """What it was trained on, single texts or pairs; None if the adapter does not record it, as in older bundles."""
    no_answer: bool | None = None
    """True if it learned that a question may have no answer in its context; None if the adapter does not record it."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Probability from which a label applies, where several may; None is one half."""
    prompt_format: PromptFormat | None = None
    """How a language model was asked in training; None if the adapter does not record it, as in older bundles."""
    end_tokens: list[_Token] = Field(default_factory=list)
    """Tokens that end its answers, besides those that end the base's."""


class AdapterEntry(AdapterSource):
    """An adapter of a bundle with branches."""

    file: str
    """Arrays for the graph's LoRA inputs, in onnxruntime's adapter format."""
    files: dict[str, str]
    """File → SHA-256 of every file of this adapter."""
    bytes: _Amount
    rank: _Amount
    """The largest rank of its modules."""
    labels: list[str]
    function_to_apply: FunctionToApply | None = None
    """What turns its scores into answers, as in transformers' pipelines; None for vectors."""
    max_length: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    """Tokens that texts are cut to."""
    reference: str | None = None
    """File with PyTorch's outputs with this adapter, on the bundle's reference inputs."""


class Manifest(_Entry):
    """What a bundle is, what it was made from, and what verification measured."""

    format_version: Literal[3] = 3
    created_by: str = ""
    tools: dict[str, str | None] = Field(default_factory=dict)
    """Package → version, for every package that takes part in an export."""
    mode: Mode = "merged"
    task: str
    labels: list[str]
    """In the order of the scores; with branches, the labels of the base's own head."""
    function_to_apply: FunctionToApply | None = None
    """What turns scores into answers, as in transformers' pipelines; None for vectors, and for a base without a head."""
    pooling: PoolingEntry | None = None
    max_length: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    precision: Precision
    quantization: QuantizationEntry | None = None
    """Of a merged int8 graph; None for any other."""
    decoder: DecoderEntry | None = None
    """Of a language model; None for any other."""
    exporter: str | None = None
    optimization: Optimization | None = None
    base: BaseEntry | None = None
    adapter: AdapterSource | None = None
    """The adapter merged into the weights; None with branches."""
    layers: list[Layer] = Field(default_factory=list)
    """Modules and their tensors, in the order of execution."""
    adapters: dict[str, AdapterEntry] = Field(default_factory=dict)
    """Name → adapter of a bundle with branches."""
    model: ModelEntry
    files: dict[str, str] = Field(default_factory=dict)
    """Every other file → SHA-256."""
    seconds: float | None = None
    """Time the export took."""
    verification: VerificationReport | None = None
    """The latest report."""
    earlier_verifications: list[VerificationReport] = Field(default_factory=list)
    """Reports before the latest, newest first: a few of each kind (:func:`rmlora_deploy.bundles.report.keep_reports`)."""

    @field_validator("adapters")
    @classmethod
    def _can_be_named(cls, adapters: dict[str, AdapterEntry]) -> dict[str, AdapterEntry]:
        if (wrong := next((name for name in adapters if not ADAPTER_NAME.fullmatch(name)), None)) is not None:
            raise ValueError(f"{wrong!r} cannot name an adapter")
        return adapters

    @property
    def threshold(self) -> float | None:
        """Probability from which a label of the graph's own head applies, where several may; None is one half."""
        return self.adapter.threshold if self.adapter is not None else None

    @property
    def verifications(self) -> list[VerificationReport]:
        """All reports that are kept, newest first."""
        return [*([self.verification] if self.verification is not None else []), *self.earlier_verifications]

    @verifications.setter
    def verifications(self, reports: list[VerificationReport]) -> None:
        self.verification = reports[0] if reports else None
        self.earlier_verifications = reports[1:]


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest, of this format version or an older one.

    Raises:
        InputError: the file is missing, is not JSON, has an unknown version, or has a wrong or missing key.
    """
    value, config = read_json(path, what="Bundle manifest"), path.with_name("config.json")
    old = isinstance(value, dict) and value.get("format_version") in (1, 2)
    known = read_json(config, what="Model configuration", finite=False) if old and config.is_file() else {}
    return parse_manifest(value, where=str(path), config=known)


def parse_manifest(value: Any, *, where: str, config: Any = None) -> Manifest:
    """Return the manifest in ``value``, migrated to this format version.

    Args:
        value: content of the file.
        where: the file, for error messages.
        config: content of the bundle's ``config.json``, which says what the scores of an old bundle mean.

    Raises:
        InputError: as those of :func:`read_manifest`.
    """
    version = value.get("format_version") if isinstance(value, dict) else None
    if version == 1 and isinstance(value, dict):
        value, version = _from_version_1(value), 2
    if version == 2:
        value = _from_version_2(value, config if isinstance(config, dict) else {})
    elif version != FORMAT_VERSION:
        raise InputError(f"{where} has format version {version}, this program reads {FORMAT_VERSION}: export again.")
    return check_values(Manifest, value, where=where, advice="the manifest is damaged, export again")


def _from_version_1(value: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of version 1 with the keys of version 2."""
    new = {_SPELLING.get(key, key): item for key, item in value.items()} | {"format_version": 2}
    if isinstance(pooling := new.get("pooling"), dict):
        new["pooling"] = {_SPELLING.get(key, key): item for key, item in pooling.items()}
    if isinstance(report := new.get("verification"), dict):
        new["verification"] = {_SPELLING.get(key, key): item for key, item in report.items()}
    if isinstance(base := new.get("base"), dict) and "source" in base:
        new["base"] = {**base, "hub": not Path(str(base["source"])).is_absolute()}
    return new


def _from_version_2(value: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest of version 2 with the keys of version 3.

    What scores mean follows from the base's configuration and the number of labels, as in transformers' pipelines.
    """
    problem = problem_type_in(config)

    def completed(entry: dict[str, Any]) -> dict[str, Any]:
        labels = entry.get("labels")
        if not isinstance(labels, list) or not labels:  # vectors, a base without a head, or a damaged entry
            return entry
        return {**entry, "function_to_apply": scoring_of(problem, len(labels)).function}

    new = {**completed(value), "format_version": FORMAT_VERSION}
    if isinstance(adapters := new.get("adapters"), dict):
        new["adapters"] = {
            name: completed(entry) if isinstance(entry, dict) else entry for name, entry in adapters.items()
        }
    return new


_SPELLING = {"optimisation": "optimization", "normalise": "normalize", "first_departure": "first_mismatch"}
