"""One graph, many adapters, any row."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from converters.graph.base_head import base_head
from converters.graph.dedicated import dedicate
from converters.graph.file import load_model, save_model
from converters.graph.onnx_adapter import AdapterArrays, Layout
from converters.graph.slots import Slots, read_slots
from deploy.providers import create_session, get_provider
from deploy.runtime.bank import Bank, Loader, Resident
from deploy.runtime.binding import BoundSlots
from deploy.runtime.lane import Lane, Occupant
from deploy.runtime.requests import Chosen, RowAdapter, chosen_rows
from rmlora.errors import ConfigError, InputError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["AdapterSession"]

AnyArray = npt.NDArray[Any]

_RANKS = 8
"""Buffers hold ranks in steps of this."""


class AdapterSession:
    """Runs a graph with branches; every row of a batch may use its own adapter, rank and head.

    >>> session = AdapterSession(Path("model.onnx"))
    >>> session.load("spam", lambda: arrays)
    >>> logits = session.run(inputs, adapters=["spam", None, {"spam": 0.5}])

    Safe to use from any number of threads; adapters come and go while runs are under way.
    """

    def __init__(
        self,
        model: Path,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        bank: int = 64,
        rows: int = 32,
        lanes: int = 1,
    ) -> None:
        """Open ``model``.

        Args:
            model: a graph with slots (``rmlora-deploy export --mode branches``).
            provider: execution provider.
            threads: threads of one run.
            bank: adapters kept in memory.
            rows: most rows of a batch that mixes adapters; memory for that many is taken when they come.
            lanes: such batches that may run at the same time.

        Raises:
            InputError: the file cannot be read or has no slots.
            ProviderError: the provider is absent or does not start.
        """
        self._session = create_session(model, provider, threads=threads, memory_pattern=False)
        self._model, self._provider, self._threads = model, provider, threads
        self._dedicated: dict[int, ort.InferenceSession] = {}
        """Number of a resident adapter → a graph of its own."""
        self._device = _device(provider)
        self.slots: Slots = read_slots(self._session.get_modelmeta().custom_metadata_map, where=str(model))
        self._bank = Bank(bank)
        self._rows = rows
        self._outputs = [item.name for item in self._session.get_outputs()]
        self._inputs = [item.name for item in self._session.get_inputs()]
        self._base_mixes = True
        """Whether rows of the base can stand among others: a quantised head of its own cannot be fed to them."""
        self._defaults = self._read_defaults(model)
        self._required = {slot: _required(slot, default) for slot, default in self._defaults.items()}
        self._known: WeakSet[Layout] = WeakSet()
        """Layouts of adapter files whose arrays fit the slots."""
        self._heads = [head.module for head in self.slots.heads]
        self._fresh = next((head.module for head in self.slots.heads if not head.in_base), None)
        self._lanes = threading.BoundedSemaphore(lanes)
        self._free: list[Lane] = []
        self._free_lock = threading.Lock()
        self._nobody = Resident("", {})
        """What a row without an adapter uses: no slot is fed."""

    # -- adapters ---------------------------------------------------------------------------------------------------

    def load(self, name: str, loader: Loader) -> None:
        """Register an adapter under ``name``.

        Args:
            name: what rows call it.
            loader: returns its arrays by slot (:func:`converters.graph.slot_arrays.slot_arrays`); called when a row needs
                them and they are not in memory.

        Raises:
            ConfigError: the name is taken.
        """
        self._bank.register(name, lambda: self._checked(name, loader()))

    def unload(self, name: str) -> None:
        """Forget an adapter; runs under way end with it.

        Raises:
            InputError: it is not known.
        """
        resident = self._bank.unregister(name)
        if resident is not None:
            self._dedicated.pop(resident.number, None)

    def pin(self, name: str, *, pinned: bool = True) -> None:
        """Keep an adapter in memory, or no longer, its own graph included; errors as :meth:`Bank.pin`."""
        resident = self._bank.pin(name, pinned=pinned)
        if not pinned and resident is not None:
            self._dedicated.pop(resident.number, None)

    def dedicate(self, name: str | None) -> None:
        """Give an adapter, or the base (None), a graph of its own with the update in its weights, and pin it.

        Batches that use it alone at full strength then cost what a merged model costs, for the memory of one more model.
        Building it takes about as long as opening the session.

        Raises:
            InputError: the adapter is not known.
            ConfigError: the base is quantised, so nothing can be merged into it; or no more adapters can be pinned.
        """
        if name is not None:
            self._bank.pin(name)
        resident = self._bank.get(name) if name is not None else self._nobody
        model = load_model(self._model)
        dedicate(model, self.slots, resident.arrays)
        with tempfile.TemporaryDirectory() as directory:
            save_model(model, path := Path(directory) / "model.onnx")
            session = create_session(path, self._provider, threads=self._threads)
        self._dedicated[resident.number] = session

    @property
    def bank(self) -> Bank:
        """What is known and in memory."""
        return self._bank

    @property
    def slot_types(self) -> dict[str, np.dtype[Any]]:
        """Slot → its type in the graph."""
        return {name: default.dtype for name, default in self._defaults.items()}

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, AnyArray], adapters: RowAdapter | Sequence[RowAdapter] = None) -> list[AnyArray]:
        """Return one array for every row: the first output, cut to the labels of the row's own head.

        Args:
            inputs: the graph's inputs, batch first.
            adapters: one choice for all rows or one for each (:data:`RowAdapter`).

        Raises:
            InputError: an adapter is not known, or the graph does not take these inputs.
            ConfigError: choices do not fit the rows.
        """
        rows = self._rows_of(inputs)
        choices = chosen_rows(adapters, rows)
        if self._fresh is not None and None in choices:
            raise InputError(f"The base has no trained '{self._fresh}' of its own: name an adapter for every row.")
        residents = {c.name: self._bank.get(c.name) for c in choices if c is not None}
        if len(set(choices)) == 1:
            output = self._run_alike(inputs, choices[0], residents)
        else:
            output = self._run_mixed(inputs, choices, residents)
        widths = [self._labels(residents[c.name] if c is not None else None) for c in choices]
        return [row if width is None else row[..., :width] for row, width in zip(output, widths, strict=True)]

    def _run_alike(
        self, inputs: Mapping[str, AnyArray], choice: Chosen | None, residents: Mapping[str, Resident]
    ) -> AnyArray:
        """Run a batch of one adapter, whose arrays are bound as they lie in the bank."""
        resident = residents[choice.name] if choice is not None else self._nobody
        own = self._dedicated.get(resident.number)
        if own is not None and (choice is None or choice.strength == 1.0):
            return BoundSlots(own, {}, output=self._outputs[0], device=self._device).run(inputs)
        if choice is not None and choice.strength != 1.0:
            return self._bind(_scaled(resident.arrays, choice.strength)).run(inputs)
        try:
            bound = resident.bound.pop()
        except IndexError:  # the others are in use by other threads
            bound = self._bind(resident.arrays)
        output = bound.run(inputs)
        resident.bound.append(bound)
        return output

    def _run_mixed(
        self, inputs: Mapping[str, AnyArray], choices: Sequence[Chosen | None], residents: Mapping[str, Resident]
    ) -> AnyArray:
        """Run a batch in which every row has its place in a lane; rows are moved to their places and back."""
        rows = len(choices)
        if rows > self._rows:
            raise ConfigError(
                f"A batch that mixes adapters may have {self._rows} rows, not {rows}: split it, or open the session "
                "with more rows."
            )
        if None in choices and not self._base_mixes:
            raise ConfigError(
                "The base's own head is quantised, so its rows cannot stand among those of adapters: run them in a batch "
                "of their own."
            )
        occupants = [Occupant(residents[c.name], c.strength) if c is not None else Occupant(None) for c in choices]
        with self._lane(occupants) as lane:
            places = lane.seat(occupants)
            if rows not in lane.bound:
                lane.bound[rows] = self._bind({name: array[:rows] for name, array in lane.arrays.items()})
            lane.bound[rows].refresh(lane.copies)
            order = np.argsort(places)
            output = lane.bound[rows].run({name: np.asarray(value)[order] for name, value in inputs.items()})
            return np.asarray(output[places])

    def _bind(self, arrays: Mapping[str, AnyArray]) -> BoundSlots:
        return BoundSlots(self._session, arrays, output=self._outputs[0], device=self._device)

    @contextmanager
    def _lane(self, occupants: Sequence[Occupant]) -> Iterator[Lane]:
        """Yield a lane that holds the largest rank and heads of this batch, for this run alone."""
        rank = max((item.resident.rank for item in occupants if item.resident is not None), default=0)
        labels = {head: max(self._width(item.resident, head) for item in occupants) for head in self._heads}
        with self._lanes:
            lane = self._fitting(len(occupants), rank, labels)
            try:
                yield lane
            finally:
                with self._free_lock:
                    self._free.append(lane)

    def _fitting(self, rows: int, rank: int, labels: Mapping[str, int]) -> Lane:
        with self._free_lock:
            lane = self._free.pop() if self._free else None
        fits = lane is not None and lane.rows >= rows and lane.rank >= rank
        if lane is not None and fits and all(lane.labels[head] >= width for head, width in labels.items()):
            return lane
        rows, rank = min(self._rows, 1 << (rows - 1).bit_length()), -(-rank // _RANKS) * _RANKS
        known = lane.labels if lane is not None else {head: self._width(None, head) for head in self._heads}
        labels = {head: max(width, known[head]) for head, width in labels.items()}
        if lane is not None:  # it only grows
            rows, rank = max(rows, lane.rows), max(rank, lane.rank)
        return Lane(self._defaults, rows, rank, labels)

    # -- checks -----------------------------------------------------------------------------------------------------

    def _rows_of(self, inputs: Mapping[str, AnyArray]) -> int:
        missing = [name for name in self._inputs if name not in inputs]
        extra = [name for name in inputs if name not in self._inputs]
        if missing or extra:
            wrong = f"lack '{missing[0]}'" if missing else f"have '{extra[0]}', which it does not take"
            raise InputError(f"The inputs {wrong}: the graph takes {', '.join(self._inputs)}.")
        return int(np.asarray(inputs[self._inputs[0]]).shape[0])

    def _checked(self, name: str, arrays: Mapping[str, AnyArray]) -> Mapping[str, AnyArray]:
        layout = arrays.layout if isinstance(arrays, AdapterArrays) else None
        if layout is not None and layout in self._known:
            return arrays
        unknown = sorted(set(arrays) - set(self._defaults))
        if unknown:
            raise InputError(
                f"Adapter '{name}' has '{unknown[0]}', for which the graph has no slot: it is of another graph."
            )
        for slot, array in arrays.items():
            dtype, axes, axis, size = self._required[slot]
            if array.dtype != dtype or array.ndim != axes or (axis is not None and array.shape[axis] != size):
                default = self._defaults[slot]
                raise InputError(
                    f"Adapter '{name}' has '{slot}' as {array.dtype} {list(array.shape)}, the graph takes {default.dtype} "
                    f"{list(default.shape)} (rows, ranks and labels may differ): it is of another graph."
                )
        if layout is not None:
            self._known.add(layout)
        return arrays

    def _labels(self, resident: Resident | None) -> int | None:
        return self._width(resident, self._heads[-1]) if self._heads else None

    def _width(self, resident: Resident | None, head: str) -> int:
        name = f"{head}.bias"
        given = resident.arrays.get(name) if resident is not None else None
        return int((self._defaults[name] if given is None else given).shape[-1])

    def _read_defaults(self, model: Path) -> dict[str, AnyArray]:
        """Return what a row of the base is fed in a mixed batch, ``rows`` = 1."""
        graph = load_model(model)
        initializers = graph.graph.initializers
        defaults: dict[str, AnyArray] = {}
        for name in self.slots.names:
            value = initializers.get(name)
            if value is None or value.const_value is None:
                raise InputError(f"{model} has no slot '{name}', which it records: export it again.")
            defaults[name] = np.array(value.const_value.numpy())
        for head in self.slots.heads:
            own = base_head(graph, head)
            defaults.update(own or {})
            self._base_mixes &= own is not None
        return defaults


def _required(slot: str, default: AnyArray) -> tuple[np.dtype[Any], int, int | None, int]:
    """Return what an adapter's array must have: type, number of axes, and the axis with a fixed size, if any, and the size."""
    axis = {"lora_A": 1, "lora_B": 2, "weight": 1}.get(slot.rpartition(".")[2])
    return default.dtype, default.ndim, axis, default.shape[axis] if axis is not None else 0


def _scaled(arrays: Mapping[str, AnyArray], strength: float) -> dict[str, AnyArray]:
    """Return the arrays with the update times ``strength``."""
    return {
        name: array * array.dtype.type(strength) if name.endswith(".lora_B") else array
        for name, array in arrays.items()
    }


def _device(provider: str) -> str:
    """Return where inputs are bound: on the device where the provider computes."""
    return "cuda" if get_provider(provider).name in ("cuda", "tensorrt") else "cpu"
