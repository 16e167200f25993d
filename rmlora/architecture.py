"""Which transformers class an adapter was trained on, as far as the adapter and the base's configuration say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rmlora.adapter import Adapter
from rmlora.tasks import TASKS

__all__ = ["architecture_candidates"]

_AUTO_CLASSES = {
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
"""PEFT's task types that are no task of this toolkit → the Auto class of the model."""


def architecture_candidates(config: Mapping[str, Any], adapter: Adapter | None = None) -> list[str]:
    """Return names of transformers classes, the likeliest first.

    Args:
        config: content of the base's ``config.json``.
        adapter: without one, only the class that the base was saved from is named.
    """
    own = next((str(name) for name in config.get("architectures") or ()), None)
    found: list[str | None] = []
    if adapter is not None:
        found.append(adapter.metadata.get("architecture"))
        found.append((adapter.peft_config.get("auto_mapping") or {}).get("base_model_class"))
        task = TASKS.get(adapter.task or "")
        auto = task.auto_class if task else _AUTO_CLASSES.get(str(adapter.peft_config.get("task_type")))
        if auto == "AutoModel" and (own or "").endswith("Model"):
            found.append(own)  # T5's encoder alone is also a model without a head
        found.append(auto)
    return list(dict.fromkeys(str(name) for name in [*found, own] if name))
