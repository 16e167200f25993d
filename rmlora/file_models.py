"""The files of adapters and bases as typed values: which keys are read, and of which type they must be.

Keys that are not listed are kept and not checked. Numbers and truth values are not made out of texts, as other tools would
not do so either.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from rmlora.text_pair import InputForm

__all__ = [
    "AdapterConfig",
    "BaseConfig",
    "CheckpointIndex",
    "ImageProcessorConfig",
    "PackageMetadata",
    "PoolingMode",
    "SentenceModule",
    "TokenizerConfig",
]


def _whole(value: Any) -> Any:
    """Return a whole number that a tool wrote with a decimal point as ``int``."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_Integer = Annotated[int, BeforeValidator(_whole)]
_Count = Annotated[_Integer, Field(ge=1, lt=2**31)]
_Number = Annotated[FiniteFloat, Field(ge=-1e30, le=1e30)]


class _File(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class AdapterConfig(_File):
    """What is read of PEFT's ``adapter_config.json``."""

    peft_type: str | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    r: _Count | None = None
    lora_alpha: _Number | None = None
    use_rslora: bool | None = None
    fan_in_fan_out: bool | None = None
    rank_pattern: dict[str, _Count] | None = None
    alpha_pattern: dict[str, _Number] | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: str | list[str] | None = None
    layers_pattern: str | list[str] | None = None
    layers_to_transform: _Integer | list[_Integer] | None = None
    init_lora_weights: bool | str | None = None
    bias: str | None = None
    auto_mapping: dict[str, str | None] | None = None


class _TrainingSettings(_File):
    max_length: _Count | None = None


class _Training(_File):
    settings: _TrainingSettings = _TrainingSettings()


class _Settings(_File):
    """Settings of the method (:class:`rmlora.config.RMLoRAConfig`), as far as they are shown."""

    rank: _Count
    active_rank: _Count
    alpha: _Number
    orth_weight: _Number
    decorrelation: _Number = 0.0
    mask_sharing: str
    mask_mode: str


def _texts(value: Any) -> Any:
    """Return labels as texts; packages written by hand name them by numbers too."""
    return (
        [str(item) if isinstance(item, (int, float)) else item for item in value] if isinstance(value, list) else value
    )


PoolingMode = Literal["mean", "cls", "last", "pooler"]
"""What makes the vector of a text or an image (:class:`rmlora.pooling.Pooling`)."""


class _Pooling(_File):
    mode: PoolingMode
    normalize: bool


class PackageMetadata(_File):
    """What is read of ``rmlora.json``."""

    format_version: int | None = None
    task: str | None = None
    labels: Annotated[list[str] | None, BeforeValidator(_texts)] = None
    problem_type: str | None = None
    target_range: list[Annotated[list[_Number], Field(min_length=2, max_length=2)]] | None = None
    architecture: str | None = None
    base_model: str | None = None
    base_fingerprint: str | None = None
    base_weights: dict[str, str] | None = None
    rank_mask: dict[str, list[bool]] | None = None
    rmlora: _Settings | None = None
    metrics: dict[str, Any] | None = None
    training: _Training | None = None
    input_form: InputForm | None = None
    no_answer: bool | None = None
    threshold: Annotated[_Number, Field(gt=0, lt=1)] | None = None
    pooling: _Pooling | None = None
    dimensions: _Count | None = None
    max_length: _Count | None = None
    trained_on: str | None = None
    prompt_format: Literal["chat", "raw"] | None = None
    base_precision: Literal["nf4"] | None = None
    end_tokens: list[Annotated[_Integer, Field(ge=0, lt=2**31)]] | None = None
    tensors_sha256: str | None = None


def _numbered(value: Any) -> Any:
    """Check that ``id2label`` numbers its labels; transformers makes whole numbers of the keys and texts of the values."""
    if isinstance(value, dict):
        for key, label in value.items():
            if not key.removeprefix("-").isdecimal() or len(key) > 9:
                raise ValueError(f"its keys must be whole numbers, '{key[:20]}' is none")
            if isinstance(label, (dict, list)):
                raise ValueError("its values must be names")
    return value


_MOST_LAYERS, _MOST_EXPERTS = 1024, 1 << 16
"""More than any published model has. A configuration with a billion would keep torch busy for days."""


_NO_COUNT = re.compile("per_layer|(min|max|bit)_depth")
"""Names of sizes of layers, and of distances and colors in images."""


def _countable(value: Any, depth: int = 0) -> Any:
    """Check that a configuration, those of its parts included, asks for no absurd number of layers or experts."""
    if isinstance(value, dict) and depth < 4:
        for key, item in value.items():
            name, numbers = str(key).lower(), item if isinstance(item, list) else [item]
            counts_layers = name.endswith(("layers", "layer", "depth", "depths")) and not _NO_COUNT.search(name)
            most = _MOST_LAYERS if counts_layers else None
            most = _MOST_EXPERTS if name.endswith("experts") else most
            if most and any(isinstance(number, (int, float)) and number > most for number in numbers):
                raise ValueError(f"its '{name[:60]}' is more than {most}")
            _countable(item, depth + 1)
    return value


class BaseConfig(_File):
    """What is read of a base's ``config.json`` without transformers, and what would keep transformers busy for ever."""

    model_type: str | None = None
    architectures: list[str] | None = None
    id2label: Annotated[dict[str, Any] | None, BeforeValidator(_numbered)] = None
    tie_word_embeddings: bool | None = None
    problem_type: str | None = None
    vocab_size: _Integer | list[_Integer] | None = None
    num_labels: Annotated[_Integer, Field(ge=0, le=1_000_000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_countable(cls, value: Any) -> Any:
        return _countable(value)


class CheckpointIndex(_File):
    """What is read of ``model.safetensors.index.json``."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


class TokenizerConfig(_File):
    """What is checked of ``tokenizer_config.json``."""

    tokenizer_class: str | None = None
    model_max_length: int | FiniteFloat | None = None
    padding_side: Literal["left", "right"] | None = None
    truncation_side: Literal["left", "right"] | None = None
    model_input_names: list[str] | None = None
    fast_tokenizer_files: list[str] | None = None
    added_tokens_decoder: dict[str, dict[str, Any]] | None = None
    pad_token: str | dict[str, Any] | None = None
    eos_token: str | dict[str, Any] | None = None
    unk_token: str | dict[str, Any] | None = None
    auto_map: dict[str, Any] | list[Any] | None = None


_Side = Annotated[_Integer, Field(ge=1, le=4096)]
"""Pixels of one side of the images that a processor makes."""


class _Size(_File):
    height: _Side | None = None
    width: _Side | None = None
    shortest_edge: _Side | None = None


class ImageProcessorConfig(_File):
    """What is checked of ``preprocessor_config.json``."""

    image_processor_type: str | None = None
    size: _Side | _Size | Annotated[list[_Side], Field(min_length=1, max_length=2)] | None = None
    crop_size: _Side | _Size | Annotated[list[_Side], Field(min_length=1, max_length=2)] | None = None
    do_resize: bool | None = None
    do_center_crop: bool | None = None
    do_rescale: bool | None = None
    do_normalize: bool | None = None
    image_mean: float | list[FiniteFloat] | None = None
    image_std: float | list[FiniteFloat] | None = None
    rescale_factor: FiniteFloat | None = None
    resample: _Integer | None = None

    @model_validator(mode="before")
    @classmethod
    def _sides_are_sides(cls, value: Any) -> Any:
        """Leave the sizes of processors like Qwen2-VL's unchecked: they are numbers of pixels under the names of sides."""
        counts_pixels = isinstance(value, dict) and "merge_size" in value
        return {key: item for key, item in value.items() if key != "size"} if counts_pixels else value


class SentenceModule(_File):
    """One entry of sentence-transformers' ``modules.json``."""

    type: str
    path: str
