"""Which of a classifier's scores says how well two texts go together."""

from __future__ import annotations

from collections.abc import Sequence

from rmlora.errors import ConfigError, some_of

__all__ = ["score_index"]

_TOGETHER = frozenset(
    (
        "1", "true", "yes", "relevant", "entailment", "duplicate", "paraphrase", "equivalent", "similar", "match", "positive",
    )
)  # fmt: skip
"""Names of labels, in lower case, that say that two texts go together."""


def score_index(labels: Sequence[str], label: str | None, *, name: str) -> int:
    """Return the index of the output whose result is the score of a pair.

    This is the only output of a model that has one, as rerankers do; else that of ``label``; else that of the only label whose
    name says that two texts go together.

    Args:
        labels: of the model.
        label: that the caller named.
        name: of the model.

    Raises:
        ConfigError: the model has no such label, or no single score.
    """
    if label is not None:
        if label not in labels:
            raise ConfigError(f"'{name}' has no label '{label}': it has {some_of(labels)}.")
        return list(labels).index(label)
    if len(labels) == 1:
        return 0
    together = [index for index, each in enumerate(labels) if each.lower() in _TOGETHER]
    if len(together) != 1:
        raise ConfigError(
            f"'{name}' has the labels {some_of(labels)}, and {'none' if not together else 'more than one'} of them is known to "
            "say how well two texts go together: name the one whose probability is the score with 'label'."
        )
    return together[0]
