"""How many tokens a base can read, found by asking it: configurations say it in many ways, and some say it wrongly."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from rmlora.errors import InputError
from rmlora.inputs import Arrays, Inputs
from rmlora.longest_readable import longest_readable

__all__ = ["readable_length"]


def readable_length(model: Any, inputs: Inputs, processor: Any, wanted: int) -> int:
    """Return the tokens of the longest row that the model can compute, at most ``wanted``.

    Args:
        model: freshly loaded, on a CPU.
        inputs: of the task, whose rows are tokens.
        processor: the tokenizer of the base.
        wanted: number of tokens.
    """
    names = list(processor.model_input_names)
    try:
        row = inputs.rows(processor, inputs.sample(1), lengths=[None], names=names)[0]
    except InputError:  # a tokenizer that knows none of its characters
        return wanted
    sample = {name: row[name] for name in names}
    return longest_readable(partial(_computes, model, sample), inputs.tokens(sample), wanted)


def _computes(model: Any, sample: Arrays, tokens: int) -> bool:
    """Return True if the model computes a row of so many tokens, made of those of ``sample``."""
    import torch

    batch = {name: torch.from_numpy(np.resize(array, (1, tokens))) for name, array in sample.items()}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(**batch)
    except (ValueError, IndexError, RuntimeError):
        return False
    finally:
        model.train(was_training)
    return True
