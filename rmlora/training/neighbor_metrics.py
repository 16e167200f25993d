"""How well vectors of labeled rows find rows of the same label."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["recall_at_1"]


def recall_at_1(vectors: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Return the share of rows whose most similar other row has the same label, by cosine.

    Metric learning calls this Recall@1; it is the accuracy of the nearest neighbor, measured by leaving each row out.

    Args:
        vectors: ``[rows, width]``; at least two.
        labels: of the rows.
    """
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    found = NearestNeighbors(n_neighbors=1).fit(normalize(np.asarray(vectors, np.float64)))
    nearest = found.kneighbors(return_distance=False)[:, 0]  # without rows to ask for, none is its own neighbor
    return float((labels[nearest] == labels).mean())
