"""Numbers: squared error, and how well predictions correlate with the targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora.label_lists import SEPARATORS, read_list
from rmlora.training.ignored import IGNORED
from rmlora.training.label_column import LabelColumn
from rmlora.training.problem import FloatArray, Problem
from rmlora.training.split_evaluation import Evaluation
from rmlora.wording import counted

if TYPE_CHECKING:
    from torch import Tensor

    from rmlora.training.settings import TrainSettings

__all__ = ["RegressionProblem"]

_LARGEST = 1e18
"""Of a target's size: the squares of larger ones are not numbers of 32 bits, in which the loss is computed."""
_COUNTED = float(np.nextafter(np.float32(IGNORED), np.float32(0)))
"""The next number to :data:`IGNORED`, because the trainer does not count targets of that value."""


class RegressionProblem(Problem):
    """Targets are a number for every output."""

    name = "regression"
    best_metrics = ("pearson", "spearman", "mse", "mae", "loss")
    fewest_labels = 1

    def order(self, column: LabelColumn, given: Sequence[str] | None) -> tuple[str, ...]:
        """Return the names given, else the column's; ``name_0``, ``name_1``, … if cells hold lists."""
        if len(column.cells) > 1 and len(set(column.cells)) == 1:
            raise InputError(
                f"All rows of {column.source} have {column.cells[0][:60]} in '{column.name}': there is nothing to predict; check "
                "--label-column."
            )
        count = len(_parts(column.cells[0]))
        if given is not None:
            if len(given) != count:
                raise ConfigError(
                    f"--labels gives {counted(len(given), 'name')}, but '{column.name}' of {column.source} has "
                    f"{counted(count, 'number')} in a cell: give one name for each."
                )
            return tuple(given)
        return (column.name,) if count == 1 else tuple(f"{column.name}_{number}" for number in range(count))

    def encode(self, column: LabelColumn, labels: Sequence[str], *, given: bool) -> list[Any]:
        """Return for every row ``[outputs]`` numbers."""
        rows = [_numbers(cell, len(labels), column, row) for row, cell in enumerate(column.cells)]
        return [[_COUNTED if value == IGNORED else value for value in row] for row in rows]

    def present(self, targets: Sequence[Any], labels: Sequence[str]) -> set[int]:
        """Return all outputs."""
        return set(range(len(labels)))

    def loss(
        self, settings: TrainSettings, labels: Sequence[str], targets: Sequence[Any]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return torch's squared error; the mean is over rows and outputs, as in transformers."""
        from torch.nn.functional import mse_loss

        return lambda logits, wanted: mse_loss(logits, wanted.float(), reduction="sum")

    def metrics(self, logits: FloatArray, targets: npt.NDArray[Any], settings: TrainSettings) -> dict[str, float]:
        """Return both correlations, averaged over the outputs, and the mean squared and absolute errors."""
        from scipy.stats import pearsonr, spearmanr
        from sklearn.metrics import mean_absolute_error, mean_squared_error

        pairs = list(zip(logits.T, targets.T, strict=True))
        return {
            "pearson": float(np.mean([_correlation(pearsonr, *pair) for pair in pairs])),
            "spearman": float(np.mean([_correlation(spearmanr, *pair) for pair in pairs])),
            "mse": float(mean_squared_error(targets, logits)),
            "mae": float(mean_absolute_error(targets, logits)),
        }

    def evaluate(
        self, logits: FloatArray, targets: npt.NDArray[Any], labels: Sequence[str], split: str, settings: TrainSettings
    ) -> Evaluation:
        """Return the metrics, and for every output those and how its predictions and targets are distributed."""
        scores = self.metrics(logits, targets, settings)
        per_output = {
            label: {
                **self.metrics(logits[:, [at]], targets[:, [at]], settings),
                "targets": _spread(targets[:, at]),
                "predictions": _spread(logits[:, at]),
            }
            for at, label in enumerate(labels)
        }
        return Evaluation(scores, {"per_output": per_output}, tuple(_distrust(scores["mse"], targets, split)))

    def metadata(self, settings: TrainSettings, targets: Sequence[Any]) -> dict[str, Any]:
        """Return the range of the training targets, for each output."""
        values = np.asarray(targets)
        return {"target_range": np.stack([values.min(0), values.max(0)], axis=1).tolist()}


def _parts(cell: str) -> list[str]:
    """Return the items of a list, or the cell: marks between numbers are not read, since 1,5 may mean 1.5."""
    items = read_list(cell)
    return [cell] if items is None else [str(item) for item in items]


def _numbers(cell: str, outputs: int, column: LabelColumn, row: int) -> list[float]:
    try:
        values = [float(part) for part in _parts(cell)]
    except ValueError:
        if any(mark in cell for mark in SEPARATORS):
            raise InputError(
                f"{column.where(row)} has the label '{cell[:60]}': write decimals with a point (1.5), and several numbers as a list "
                "([1.5, 2])."
            ) from None
        raise InputError(
            f"{column.where(row)} has the label '{cell[:60]}', which is no number: correct it, check --label-column, or choose "
            "another --problem-type."
        ) from None
    if len(values) != outputs:
        raise InputError(
            f"{column.where(row)} has {counted(len(values), 'number')} in '{column.name}', but other rows have {outputs}."
        )
    if not all(abs(value) <= _LARGEST for value in values):
        raise InputError(
            f"{column.where(row)} has the label '{cell[:60]}': targets must be finite and below {_LARGEST:.0e} in size, so that their "
            "squares are numbers of 32 bits; divide large ones so that they are of the order of 1."
        )
    return values


def _correlation(function: Callable[..., Any], predictions: FloatArray, targets: FloatArray) -> float:
    """Return a correlation of SciPy's; 0 where either is constant, for which there is none."""
    if len(targets) < 2 or np.ptp(predictions) == 0 or np.ptp(targets) == 0:
        return 0.0
    value = float(function(predictions, targets).statistic)
    return value if np.isfinite(value) else 0.0


def _spread(values: FloatArray) -> dict[str, float]:
    found = {"min": values.min(), "max": values.max(), "mean": values.mean(), "std": values.std()}
    return {name: float(value) for name, value in found.items()}


def _distrust(error: float, targets: FloatArray, split: str) -> list[str]:
    """Return a sentence if the squared error is no smaller than that of always answering the mean."""
    variance = float(targets.var(0).mean())
    if variance == 0 or error < variance:
        return []
    largest = float(np.abs(targets).max())
    advice = (
        f"Targets reach {largest:.4g} in size: divide them so that they are of the order of 1, or train for more epochs."
        if largest > 20
        else "Train for more epochs, or check data and --learning-rate."
    )
    return [
        f"The {split} squared error, {error:.4g}, is not below what always answering the mean reaches ({variance:.4g}): the "
        f"adapter has learned little or nothing. {advice}"
    ]
