"""How an image model makes one vector of an image: it is asked once, as configurations do not say it (torch)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rmlora.errors import CheckpointError, ConfigError
from rmlora.image_vector import pooled_output
from rmlora.library_calls import library_call
from rmlora.pooling import Pooling, PoolingMode
from rmlora.tasks import Task
from rmlora.torch_models import TaskModel

__all__ = ["model_pooling"]

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
"""What transformers' models call the parameter of the class token, which is the first."""


def model_pooling(
    loaded: TaskModel, base: Path, task: Task, processor: Any, *, mode: PoolingMode | None, saved: Collection[str] = ()
) -> PoolingMode:
    """Return ``mode`` or, if it is None, the best that the model has: its own pooling, else the class token, else the mean.

    Its own pooling counts only if all of it was trained: a classifier's checkpoint lacks the pooler that transformers then
    makes up.

    Args:
        loaded: the model.
        base: its directory, for error messages.
        task: whose inputs the model is tried on.
        processor: of the base.
        mode: the user's choice.
        saved: names of the tensors that adapters bring whole.

    Raises:
        CheckpointError: the model makes no vectors of images alone, or makes others of the same image each time.
        ConfigError: it does not have the user's choice.
    """
    output = _answer(loaded.model, base, task, processor)
    modes = _modes(loaded, output, task, saved)
    if not modes:
        raise CheckpointError(f"The base at {base} ({type(loaded.model).__name__}) returns no vectors of images.")
    if mode is None:
        return modes[0]
    if mode not in modes:
        raise ConfigError(
            f"The base at {base} does not have --pooling {mode}: {_LACKING.get(mode, 'it has no token vectors')}. "
            f"Choose {' or '.join(modes)}."
        )
    return mode


_LACKING = {
    "pooler": "it pools no vector itself, or has no trained weights for that",
    "cls": "it has no class token",
}


def _answer(model: Any, base: Path, task: Task, processor: Any) -> Any:
    """Return what the model answers to a sample image."""
    import torch

    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(
            f"The base at {base} ({type(model).__name__}) makes no vectors of images alone ({reason}): give an image encoder."
        )

    rows = task.inputs.rows(processor, task.inputs.sample(1), lengths=[None], names=["pixel_values"])
    inputs = {name: torch.from_numpy(array) for name, array in task.inputs.collate(processor, rows).items()}
    model.eval()
    with torch.inference_mode(), library_call(refuse):
        output, again = model(**inputs), model(**inputs)
    if not isinstance(output, Mapping):
        raise refuse("its outputs have no names")
    for one, other in zip(output.values(), again.values(), strict=True):
        is_number = isinstance(one, torch.Tensor) and one.is_floating_point()
        if is_number and not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise CheckpointError(
                f"The base at {base} ({type(model).__name__}) answers the same image differently each time, as models do that hide "
                "a part of it by chance: it is made to be trained further, and its vectors are of no use."
            )
    return output


def _modes(loaded: TaskModel, output: Any, task: Task, saved: Collection[str]) -> list[PoolingMode]:
    """Return the ways of pooling that the model has, the best first."""
    own = Pooling("pooler")
    random = [
        module
        for module in loaded.new_modules
        if not task.outputs.depends_on(module)
        and task.outputs.depends_on(module, own)
        and not any(name.startswith(f"{module}.") for name in saved)
    ]
    hidden = output.get("last_hidden_state")
    names = {name.rpartition(".")[2] for name, _ in loaded.model.named_parameters()}
    found: dict[PoolingMode, bool] = {
        "pooler": pooled_output(output) is not None and not random,
        "cls": hidden is not None and hidden.ndim == 3 and not names.isdisjoint(_CLASS_TOKENS),
        "mean": hidden is not None and hidden.ndim in (3, 4),
    }
    return [mode for mode, has in found.items() if has]
