"""Every label of a row with its score, the best first, as text-embeddings-inference and Hugging Face's API write it."""

from __future__ import annotations

from typing import Any

import numpy as np

from rmlora_deploy.inference.prediction import to_results
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.waiting_rows import Answer

__all__ = ["ranked_labels"]


def ranked_labels(model: ServedModel, logits: Answer, *, raw: bool = False) -> list[dict[str, Any]]:
    """Return the labels of a classifier by their probabilities, or by its outputs as they are (``raw``)."""
    results, _ = to_results(logits, model.labels, model.runner.bundle, model.function_to_apply)
    values = np.asarray(logits, np.float64) if raw else results
    order = np.argsort(-values, kind="stable")
    return [{"score": float(values[index]), "label": model.labels[index]} for index in order]
