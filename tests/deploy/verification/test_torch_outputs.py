"""What PyTorch cannot compute is one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from rmlora.errors import InputError
from rmlora.tasks import get_task
from rmlora_deploy.verification.torch_outputs import torch_output
from tests.helpers.models import build


def test_a_text_longer_than_the_base_reads_is_refused() -> None:
    outputs = get_task("text-classification").outputs
    model = build("bert")
    fits = {name: np.full((1, 40), 3) for name in ("input_ids", "attention_mask")}
    assert torch_output(model, fits, outputs).shape == (1, 3)
    long = {name: np.full((1, 41), 3) for name in fits}
    with pytest.raises(InputError, match="PyTorch cannot compute the inputs .* or a text longer than it reads"):
        torch_output(model, long, outputs)
