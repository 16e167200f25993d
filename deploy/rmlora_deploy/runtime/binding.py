"""ONNX Runtime IOBindings with the LoRA inputs already bound, so that a run passes only the model's own inputs."""

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
    """An IOBinding with arrays bound to the LoRA inputs. One thread may run it at a time.

    The CPU provider uses the arrays without copying them, so later writes to them take effect in the next run. Other
    providers may copy them when they are bound.

    Args:
        session: the session to run.
        lora_inputs: LoRA input → array.
        output: name of the output to return.
        device: where the arrays are bound: ``cpu`` or ``cuda``.
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
    """The most recently used bindings whose arrays were copied to a device. Safe to use from any number of threads.

    Args:
        rows: total rows of all bindings that are kept.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._lock = threading.Lock()
        self._bindings: OrderedDict[tuple[Hashable, ...], BoundInputs] = OrderedDict()

    def take(self, adapters: tuple[Hashable, ...]) -> BoundInputs | None:
        """Remove and return the binding for one adapter per row; None if there is none that no run is using."""
        with self._lock:
            return self._bindings.pop(adapters, None)

    def put(self, adapters: tuple[Hashable, ...], binding: BoundInputs) -> None:
        """Keep a binding for the next run with these adapters, and drop the least recently used ones beyond the limit."""
        with self._lock:
            self._bindings[adapters] = binding
            while len(self._bindings) > 1 and sum(map(len, self._bindings)) > self._rows:
                self._bindings.popitem(last=False)
