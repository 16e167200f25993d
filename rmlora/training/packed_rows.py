"""Batches of token rows without padding between them: several examples share a row and do not see each other (torch)."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from rmlora.errors import ConfigError
from rmlora.training.ignored import IGNORED
from rmlora.training.language_rows import LanguageRows, Row, padded

__all__ = ["PackedRows", "check_packing"]

_PROBES = ((5, 9, 7, 4, 8), (6, 5, 4), (7, 9, 9, 5))
"""Token ids of rows that are computed alone and packed."""


class PackedRows(LanguageRows):
    """The same rows, one example each; the collator puts short ones of a batch end to end.

    A batch is as wide as its longest example, and shorter examples share rows of that width. So the batches, their loss and
    its gradient are those of :class:`LanguageRows`, computed on fewer rows. The positions begin anew with every example, by
    which transformers tells them apart and lets none attend to another.
    """

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return int64 ``input_ids``, ``position_ids`` and ``labels``, each ``[rows, tokens]``; padding is an example too."""
        lengths = [len(row["input_ids"]) for row in rows]
        width = max(lengths)
        bins = [[rows[index] for index in bin_] for bin_ in _bins(lengths, width)]
        positions = [[place for row in bin_ for place in range(len(row["input_ids"]))] for bin_ in bins]
        return {
            "input_ids": padded([_joined(bin_, "input_ids") for bin_ in bins], self._padding),
            "position_ids": torch.tensor([[*row, *range(width - len(row))] for row in positions]),
            "labels": padded([_joined(bin_, "labels") for bin_ in bins], IGNORED),
        }


def check_packing(model: Any, base: str) -> None:
    """Compute rows alone and packed; they must give the same.

    Args:
        model: that is to be trained.
        base: what the user calls it.

    Raises:
        ConfigError: what the model says of a row depends on the rows packed with it.
    """
    rows = [{"input_ids": list(ids), "labels": [IGNORED] * len(ids)} for ids in _PROBES]
    longest = {"input_ids": [token for ids in _PROBES for token in ids], "labels": [IGNORED] * sum(map(len, _PROBES))}
    if not _keeps_apart(model, rows, longest):
        raise ConfigError(
            f"{type(model).__name__} of {base} does not keep packed examples apart: what it computes for one depends on those before "
            "it in the row, so packing would train something else. Leave --packing out; --group-by-length also saves padding."
        )


def _keeps_apart(model: Any, rows: Sequence[Row], longest: Row) -> bool:
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    batch = PackedRows.of(rows, 0).collate([*rows, longest])
    packed = next(row for row in range(len(batch["input_ids"])) if int((batch["position_ids"][row] == 0).sum()) > 1)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[
                packed
            ]
            begin = 0
            while begin < together.shape[0]:
                later = (batch["position_ids"][packed, begin + 1 :] == 0).nonzero()
                end = begin + 1 + int(later[0]) if len(later) else together.shape[0]
                alone = model(input_ids=batch["input_ids"][packed : packed + 1, begin:end], use_cache=False).logits[0]
                if not torch.allclose(together[begin:end], alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max())):
                    return False
                begin = end
    finally:
        model.train(was_training)
    return True


def _joined(rows: Sequence[Row], key: str) -> list[int]:
    return [value for row in rows for value in row[key]]


def _bins(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return the examples of each row: each goes, longest first, into the fullest row that has room for it."""
    bins: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        fitting = [place for place, room in enumerate(free) if room >= lengths[index]]
        if not fitting:
            bins.append([])
            free.append(size)
            fitting = [len(bins) - 1]
        place = min(fitting, key=free.__getitem__)
        bins[place].append(index)
        free[place] -= lengths[index]
    return bins
