"""A session with its slots bound, so that a run only hands over the inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deploy.providers import run_error

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["BoundSlots"]

AnyArray = npt.NDArray[Any]


class BoundSlots:
    """An IOBinding of ``session`` with slots bound to arrays; one run at a time.

    On the CPU the arrays are read where they are, so what is written into them counts from the next run on. On a
    device they are copied there, once, and again by :meth:`refresh`.
    """

    def __init__(
        self, session: ort.InferenceSession, slots: Mapping[str, AnyArray], *, output: str, device: str = "cpu"
    ) -> None:
        import onnxruntime as ort

        self._session, self._output, self._device = session, output, device
        self._binding = session.io_binding()
        self._arrays = slots
        self._version = 0
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in slots.items()}
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)

    def refresh(self, version: int) -> None:
        """Bring the arrays' contents to the device, unless those of this version are there."""
        if version != self._version and self._device != "cpu":
            for name, value in self._values.items():
                value.update_inplace(self._arrays[name])
        self._version = version

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
