"""One vector per image: what an image model itself pools, its class token, or the mean over all tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rmlora.errors import AdapterError
from rmlora.outputs import PooledVector
from rmlora.pooling import Pooling

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.adapter import Adapter

__all__ = ["POOLED_OUTPUTS", "ImageVector", "pooled_output"]

POOLED_OUTPUTS = ("image_embeds", "pooler_output")
"""What transformers' models call the vectors that they pool themselves; CLIP's are projected to where texts are too."""


class ImageVector(PooledVector):
    """One vector per image. Images have no padding, so all tokens of a row count."""

    pooling_modes = ("pooler", "cls", "mean")
    train_defaults: ClassVar[Mapping[str, Any]] = {"group_by_length": False}
    train_settings = frozenset({"label_column", "pooling", "normalize"})
    best_metrics = ("recall_at_1", "loss")

    def check_adapter(self, adapter: Adapter, task: str) -> None:
        """Refuse an adapter with a classifier head, or of a whole model of images and texts."""
        super().check_adapter(adapter, task)
        if module := next((path for path in adapter.modules if path.startswith("text_model.")), None):
            raise AdapterError(
                f"{adapter.source} changes '{module}', so it was made for both halves of a model of images and texts: {task} takes "
                "adapters of the half for images, such as CLIPVisionModelWithProjection or SiglipVisionModel."
            )

    def of_model(self, output: Any, inputs: Mapping[str, Tensor], pooling: Pooling | None) -> Tensor:
        """Return the vectors: the model's own, the class token, or the mean of all tokens, the class token among them."""
        import torch

        chosen = pooling or Pooling("pooler")
        if chosen.mode == "pooler":
            vectors = output[pooled_output(output)].float().flatten(1)
        else:
            hidden = output.last_hidden_state.float()
            if hidden.ndim == 4:  # a feature map [rows, channels, height, width]
                hidden = hidden.flatten(2).transpose(1, 2)
            vectors = hidden[:, 0] if chosen.mode == "cls" else hidden.mean(1)
        return torch.nn.functional.normalize(vectors, dim=1) if chosen.normalize else vectors


def pooled_output(output: Mapping[str, Any]) -> str | None:
    """Return the name of the vectors that a model has pooled itself; None if it has not."""
    return next((name for name in POOLED_OUTPUTS if output.get(name) is not None), None)
