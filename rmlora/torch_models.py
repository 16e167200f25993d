"""Loading PyTorch models for a task: the base alone, and the base with an adapter (torch, transformers, peft)."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rmlora.adapter import Adapter
from rmlora.adapter_task import complete_labels, task_of
from rmlora.checkpoint import Checkpoint
from rmlora.errors import AdapterError, CheckpointError, require
from rmlora.fingerprint import check_base
from rmlora.library_calls import library_call
from rmlora.outputs import problem_type_of
from rmlora.package import CONFIG_FILE, TENSORS_FILE, load_package, peft_tensors, save_package
from rmlora.patterns import check_selection
from rmlora.processors import refuse_own_code
from rmlora.quiet import quiet_transformers
from rmlora.renamed_modules import in_memory_names
from rmlora.scoring import ProblemType
from rmlora.stored_weights import stored_weights
from rmlora.tasks import Task
from rmlora.tensors import TensorFile
from rmlora.transformers_layout import config_for_class

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = [
    "TaskModel",
    "check_complete",
    "load_adapted",
    "load_task_model",
]


@dataclass(frozen=True)
class TaskModel:
    """A model with its task's head, and the modules for which the base has no weights."""

    model: PreTrainedModel
    new_modules: tuple[str, ...]
    """Paths of randomly initialized modules (head, pooler), which must be trained and saved."""


def load_task_model(
    base: Path,
    task: Task,
    labels: Sequence[str],
    *,
    problem_type: ProblemType | None = None,
    trust_remote_code: bool = False,
    **from_pretrained: Any,
) -> TaskModel:
    """Load ``base`` in float32, with a head of ``len(labels)`` outputs if the task has one.

    Args:
        base: a directory from :func:`rmlora.base.resolve_base`.
        task: what the model is for.
        labels: names in the order of the outputs.
        problem_type: kind of answer, for the model's configuration.
        trust_remote_code: run code that comes with the base; True only if the user asked for it.
        **from_pretrained: passed to transformers.

    Raises:
        CheckpointError: transformers cannot build the model for this task, or it reads images and the task is for texts.
    """
    for module in ("torch", "transformers"):
        require(module, "export")
    import torch
    import transformers

    auto = getattr(transformers, _auto_class(base, task))
    options = {
        # never unset: transformers would ask on the terminal, and run code of the base on a "y"
        "trust_remote_code": trust_remote_code,
        **task.outputs.head_options(labels, problem_type),
        "dtype": torch.float32,
        "output_loading_info": True,
        **from_pretrained,
    }

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"The base at {base} cannot be loaded for {task.name}: {reason}.")

    with library_call(refuse), quiet_transformers():  # new heads are reported by new_modules instead
        try:
            if auto.__name__ in _IMAGE_HALVES.values():
                whole = transformers.AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
                options["config"] = config_for_class(whole, auto)
            model, info = auto.from_pretrained(base, **options)
        except (ValueError, OSError) as error:
            refuse_own_code(error, base)
            raise
    if task.inputs.modality == "text" and model.main_input_name == "pixel_values":
        raise CheckpointError(
            f"The base at {base} ({type(model).__name__}) reads images, and {task.name} is for texts: pass --task "
            "image-classification or image-feature-extraction."
        )
    mismatched = {str(entry[0]) for entry in info.get("mismatched_keys", ())}
    new_tensors = {str(name) for name in info.get("missing_keys", ())} | mismatched
    task.inputs.prepare_model(model, base, trust_remote_code=trust_remote_code)
    return TaskModel(model, tuple(sorted({name.rpartition(".")[0] for name in new_tensors})))


def _auto_class(base: Path, task: Task) -> str:
    """Return the class that builds the model: of a model with two halves, only one makes vectors of texts, or of images."""
    config = Checkpoint(base).config
    if task.auto_class == "AutoModel" and task.inputs.modality == "image":
        names = [str(name) for name in config.get("architectures") or ()]
        if any(name.endswith("VisionModelWithProjection") for name in names):
            return names[0]
        return _IMAGE_HALVES.get(str(config.get("model_type")), task.auto_class)
    encoder_alone = any(str(name).endswith("EncoderModel") for name in config.get("architectures") or ())
    if task.auto_class == "AutoModel" and (encoder_alone or config.get("is_encoder_decoder")):
        from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

        if config.get("model_type") in MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES:
            return "AutoModelForTextEncoding"
    return task.auto_class


_IMAGE_HALVES = {
    "clip": "CLIPVisionModelWithProjection",
    "metaclip_2": "MetaClip2VisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip2": "Siglip2VisionModel",
}
"""Type of a model of images and texts → the class of its half for images, whose vectors are comparable with those of texts."""


def check_complete(loaded: TaskModel, adapter: Adapter, task: Task, base: Path) -> None:
    """Raise :class:`AdapterError` if neither ``base`` nor ``adapter`` has a module that outputs of ``task`` depend on."""
    needed = [module for module in loaded.new_modules if task.outputs.depends_on(module)]
    uncovered = [m for m in needed if not any(key.startswith(f"{m}.") for key in adapter.modules_to_save)]
    if uncovered:
        raise AdapterError(
            f"The base at {base} has no weights for '{uncovered[0]}' and neither has the adapter {adapter.source}: outputs "
            "would be random; train with that module in --modules-to-save."
        )


def load_adapted(
    base: Path,
    adapter_path: Path,
    *,
    task: str | None = None,
    labels: Sequence[str] | None = None,
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
) -> tuple[PeftModel, Adapter]:
    """Load base and adapter with PEFT, in evaluation mode.

    Args:
        base: directory of the base.
        adapter_path: directory of the adapter.
        task: task name; needed only if the adapter does not record one.
        labels: names in the order of the outputs; None takes those that adapter or base record.
        allow_base_mismatch: accept an adapter made for another base.
        trust_remote_code: run code that comes with the base; True only if the user asked for it.

    Returns:
        the PEFT model, and the adapter as :func:`rmlora.package.load_package` reads it.

    Raises:
        BaseMismatchError: the adapter was made for another base.
        AdapterError: the adapter does not fit the base.
        ConfigError: the task is not known.
    """
    require("peft", "export")
    from peft import PeftModel

    checkpoint = Checkpoint(base)
    read = load_package(adapter_path)
    weights = stored_weights(checkpoint, read)
    adapter = in_memory_names(read, weights)
    check_base(adapter, checkpoint, allow_mismatch=allow_base_mismatch)
    chosen = task_of(adapter, task)
    adapter = complete_labels(adapter, chosen, checkpoint.config, labels)
    loaded = load_task_model(
        base,
        chosen,
        adapter.labels or [],
        problem_type=problem_type_of(adapter, checkpoint.config),
        trust_remote_code=trust_remote_code,
    )
    check_complete(loaded, adapter, chosen, base)
    names = [name for name, _ in loaded.model.named_modules()]
    check_selection(adapter.peft_config, names, source=f"{adapter_path}/{CONFIG_FILE}")
    with quiet_transformers(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with (
            _as_peft_reads_it(adapter, read, adapter_path) as directory,
            library_call(
                lambda reason: AdapterError(f"The adapter {adapter_path} does not fit the base at {base}: {reason}.")
            ),
        ):
            model = PeftModel.from_pretrained(loaded.model, str(directory))
    for warning in caught:
        if "missing adapter keys" in str(warning.message).lower():
            raise AdapterError(f"The adapter {adapter_path} leaves part of the model unadapted: {warning.message}")
    _apply_rank_masks(model, adapter)
    _silence(model, weights.ineffective(adapter.modules))
    model.eval()
    return model, adapter


@contextmanager
def _as_peft_reads_it(adapter: Adapter, read: Adapter, path: Path) -> Iterator[Path]:
    """Yield a directory that PEFT reads as ``adapter``: ``path``, or a copy if its file has other names for the same tensors."""
    names = TensorFile(path / TENSORS_FILE).infos.keys()
    if adapter is read and peft_tensors(adapter).keys() <= names:
        yield path
        return
    with tempfile.TemporaryDirectory() as temporary:
        save_package(adapter, Path(temporary) / "adapter")
        yield Path(temporary) / "adapter"


def _apply_rank_masks(model: PeftModel, adapter: Adapter) -> None:
    """Zero the masked directions of A; PEFT does not know the rank mask."""
    import torch

    layers = dict(model.get_base_model().named_modules())
    for path, module in adapter.modules.items():
        if not hasattr(layers.get(path), "lora_A"):
            raise AdapterError(
                f"{adapter.source} stores an update of '{path}', but {CONFIG_FILE} does not list that module in "
                "target_modules, so PEFT leaves it out: the two files are not of the same adapter."
            )
        if module.rank_mask is None:
            continue
        layer = layers[module.peft_path or path]
        side = layer.lora_embedding_A if module.kind == "embedding" else layer.lora_A
        factor = side["default"]
        masked = torch.from_numpy(~module.rank_mask).nonzero().flatten()
        with torch.no_grad():
            getattr(factor, "weight", factor).index_fill_(0, masked, 0)


def _silence(model: PeftModel, modules: Sequence[str]) -> None:
    """Zero the updates of ``modules``, which have no effect in PyTorch as long as they are not merged: merged, they would."""
    import torch

    layers = dict(model.get_base_model().named_modules())
    with torch.no_grad():
        for path in modules:
            for factor in getattr(layers.get(path), "lora_B", {}).values():
                factor.weight.zero_()
