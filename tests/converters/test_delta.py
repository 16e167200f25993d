"""Updates are refused for weights of another shape, and square weights follow ``fan_in_fan_out``."""

from __future__ import annotations

import numpy as np
import pytest

from rmlora.adapter import LoraModule
from rmlora.errors import AdapterError
from rmlora_converters.delta import delta_rows


def test_a_weight_of_another_shape_is_refused() -> None:
    module = LoraModule("layer", "linear", np.ones((2, 5), np.float32), np.ones((3, 2), np.float32), 1.0)
    with pytest.raises(AdapterError, match=r"update of 'layer' has 5 inputs and 3 outputs, .* shape \[3, 6\]"):
        delta_rows(module, (3, 6))


@pytest.mark.parametrize("flag", [False, True])
def test_a_square_weight_follows_the_flag(flag: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(4, 2)).astype(np.float32)
    module = LoraModule("layer", "linear", a, b, 1.0, fan_in_fan_out=flag)
    np.testing.assert_allclose(delta_rows(module, (4, 4), 1, 3), ((b @ a).T if flag else b @ a)[1:3], rtol=1e-6)
