"""A session with its slots bound, so that a run only hands over the inputs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora_deploy.runtime.providers import run_error

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["BoundInputs", "DeviceArrays"]

AnyArray = npt.NDArray[Any]


class BoundInputs:
    """An IOBinding of ``session`` with slots bound to arrays; one run at a time.

    The CPU provider reads the arrays where they are, so what is written into them counts from the next run on. For others
    they may be copied when they are bound.
    """

    def __init__(
        self, session: ort.InferenceSession, lora_inputs: Mapping[str, AnyArray], *, output: str, device: str = "cpu"
    ) -> None:
        import onnxruntime as ort

        self._session, self._output = session, output
        self._binding = session.io_binding()
        for name, array in lora_inputs.items():
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, device, 0))

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


class DeviceArrays:
    """Bindings whose arrays lie on a device, the ones used last; for any number of threads.

    Args:
        rows: rows that all of them may hold together.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Hashable, ...], BoundInputs] = OrderedDict()

    def take(self, rows: tuple[Hashable, ...]) -> BoundInputs | None:
        """Take out the binding of these rows, for one run."""
        with self._lock:
            return self._kept.pop(rows, None)

    def put(self, rows: tuple[Hashable, ...], bound: BoundInputs) -> None:
        """Keep a binding of these rows, and let go of those used longest ago where there are too many."""
        with self._lock:
            self._kept[rows] = bound
            while len(self._kept) > 1 and sum(map(len, self._kept)) > self._rows:
                self._kept.popitem(last=False)
