"""An ONNX Runtime IOBinding with the LoRA inputs already bound, so that a run passes only the model's own inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora_deploy.runtime.providers import run_error

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["BoundInputs"]

AnyArray = npt.NDArray[Any]


class BoundInputs:
    """An IOBinding with arrays bound to the LoRA inputs. One thread may run it at a time.

    The CPU provider uses the arrays without copying them, so later writes to them take effect in the next run. Other
    providers may copy them when they are bound.

    Args:
        session: the session to run.
        lora_inputs: LoRA input → array, in host memory or on a device.
        output: name of the output to return.
    """

    def __init__(
        self, session: ort.InferenceSession, lora_inputs: Mapping[str, AnyArray | ort.OrtValue], *, output: str
    ) -> None:
        import onnxruntime as ort

        self._session, self._output = session, output
        self._binding = session.io_binding()
        self._bound = {
            name: ort.OrtValue.ortvalue_from_numpy(array) if isinstance(array, np.ndarray) else array
            for name, array in lora_inputs.items()
        }
        """What is bound. ONNX Runtime reads the arrays' memory, which would be given back without this."""
        for name, value in self._bound.items():
            self._binding.bind_ortvalue_input(name, value)

    def run(self, inputs: Mapping[str, AnyArray]) -> AnyArray:
        """Return the output for ``inputs``.

        Raises:
            InputError: the graph cannot be run on them.
        """
        try:
            for name, array in inputs.items():
                self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
            self._binding.bind_output(self._output)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # noqa: BLE001 - see run_error
            raise run_error(error) from None
        return np.asarray(self._binding.get_outputs()[0].numpy())
