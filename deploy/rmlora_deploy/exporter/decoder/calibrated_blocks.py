"""Rounds a language model's 4-bit weights by what they compute from the user's texts.

A builder rounds every number to the nearest point of its block's grid. Here the grids stay, and the points are chosen again for the
inputs that the products see when PyTorch reads the texts (:mod:`rmlora_converters.second_order_rounding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from rmlora.errors import ConfigError, InputError
from rmlora.tasks import Task
from rmlora.torch_models import load_task_model
from rmlora.training.data import Columns
from rmlora_converters.graph.locate.block_quantized import BlockQuantized, find_in_blocks
from rmlora_deploy.bundles.text_codec import TextCodec
from rmlora_deploy.verification.exchanges import read_exchanges

if TYPE_CHECKING:
    from torch import nn

__all__ = ["read_texts", "round_by_texts"]

_FEWEST_TOKENS = 4096
"""Tokens to round by; with fewer, the weights would fit these texts and no others."""
_MOST_TEXTS = 256
"""Texts that are read, evenly spaced in the data."""
_LONGEST_TEXT = 512
"""Tokens of each of them that are read."""
_MOST_NUMBERS = 1 << 28
"""Numbers of the moments that are held at a time; larger models read the texts several times."""
_BITS = 4


@dataclass(frozen=True)
class _Product:
    """A module and where its weight is in the graph."""

    module: nn.Module
    weight: Any
    """``[out, in]``, a view of the module's."""
    stored: BlockQuantized
    start: int


def read_texts(codec: TextCodec, source: str, columns: Columns, *, raw: bool) -> list[list[int]]:
    """Return the tokens of texts to round by: of questions with their answers, or of plain texts.

    Args:
        codec: tokenizer of the model.
        source: data of the user's.
        columns: names of its columns.
        raw: prompts are continued as they are, even if the model has a chat template.

    Raises:
        InputError: the data cannot be used, or is too little.
    """
    rows = read_exchanges(codec, source, columns, raw=raw)
    chosen = np.linspace(0, len(rows) - 1, min(_MOST_TEXTS, len(rows))).round().astype(int)
    texts = [(rows[number].asked + rows[number].answer)[:_LONGEST_TEXT] for number in chosen]
    if (count := sum(map(len, texts))) < _FEWEST_TOKENS:
        raise InputError(
            f"{source} has {count} tokens to round by, and at least {_FEWEST_TOKENS} are needed: give more texts, or leave "
            "--calibration out."
        )
    return texts


def round_by_texts(
    model: ir.Model,
    checkpoint: Path,
    texts: Sequence[Sequence[int]],
    *,
    task: Task,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None],
) -> tuple[int, int]:
    """Round the 4-bit weights of ``model`` again, in place; return how many were, and how many there are.

    Those of experts, for one, are not weights of linear modules, and stay as they are.

    Args:
        model: int4 graph.
        checkpoint: that it was built from.
        texts: tokens of each.
        task: that the checkpoint is loaded for.
        trust_remote_code: run code that comes with the model.
        on_progress: called with a line before every part of the work.

    Raises:
        ConfigError: no weight can be.
    """
    import torch

    weights = {name for name, value in model.graph.initializers.items() if _in_4_bits(value) is not None}
    torch_model = load_task_model(checkpoint, task, (), trust_remote_code=trust_remote_code).model.eval()
    products = list(_products(torch_model, model))
    if not products:
        raise ConfigError(
            "No linear module of this model has a weight in 4 bits in the graph: leave --calibration out."
        )
    groups = list(_groups(products))
    for number, group in enumerate(groups, 1):
        part = f", part {number} of {len(groups)}" if len(groups) > 1 else ""
        on_progress(f"reading {len(texts)} texts to round by{part}")
        moments = _moments(torch_model, group, texts)
        for product in group:
            outputs = slice(product.start, product.start + len(product.weight))
            with torch.inference_mode():
                weight = product.weight.float().numpy()
            product.stored.round_again(outputs, np.ascontiguousarray(weight), moments[product.module])
    return len({product.stored.name for product in products}), len(weights)


def _products(torch_model: nn.Module, model: ir.Model) -> Iterator[_Product]:
    """Yield the linear modules whose weight is in 4 bits in the graph."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for path, module in torch_model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        weight = module.weight.detach()
        weight = weight.T if isinstance(module, Conv1D) else weight
        for name, start in find_in_blocks(f"{path}.weight", weight.float().numpy(), model.graph.initializers):
            stored = _in_4_bits(model.graph.initializers[name])
            if stored is not None:
                yield _Product(module, weight, stored, start)


def _in_4_bits(value: ir.Value) -> BlockQuantized | None:
    stored = BlockQuantized.of(value)
    return stored if stored is not None and stored.bits == _BITS else None


def _groups(products: Sequence[_Product]) -> Iterator[list[_Product]]:
    """Yield the products in parts whose moments fit into memory together."""
    group: list[_Product] = []
    held = 0
    for product in products:
        numbers = int(product.weight.shape[1]) ** 2
        if group and held + numbers > _MOST_NUMBERS:
            yield group
            group, held = [], 0
        group.append(product)
        held += numbers
    if group:
        yield group


def _moments(
    torch_model: nn.Module, products: Sequence[_Product], texts: Sequence[Sequence[int]]
) -> dict[nn.Module, np.ndarray]:
    """Return module → the sum of ``x xᵀ`` over all tokens of ``texts``."""
    import torch

    sums = {item.module: torch.zeros(item.weight.shape[1], item.weight.shape[1]) for item in products}

    def see(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        sums[module].addmm_(rows.T, rows)

    hooks = [module.register_forward_pre_hook(see) for module in sums]
    try:
        with torch.inference_mode():
            for text in texts:
                torch_model(input_ids=torch.tensor([list(text)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {module: total.numpy() for module, total in sums.items()}
