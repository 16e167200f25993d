"""One graph, many adapters, any row."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.errors import ConfigError, InputError
from rmlora_converters.graph.contract.lora_inputs import LoraInputs, read_lora_inputs
from rmlora_converters.graph.files.model_file import load_model, save_model, to_bytes
from rmlora_converters.graph.files.onnx_adapter import AdapterArrays, Layout
from rmlora_converters.graph.passes.base_head import base_head
from rmlora_converters.graph.passes.gather_adapters import ADAPTER_INDICES, gather_adapters
from rmlora_converters.graph.passes.specialize import specialize
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterChoice, AdapterName, AdapterRef, resolve_choices
from rmlora_deploy.runtime.adapters.cache import AdapterCache, CachedAdapter, Loader
from rmlora_deploy.runtime.adapters.rank_buckets import BASE, RankBucket, RankBuckets
from rmlora_deploy.runtime.binding import BoundInputs, DeviceArrays
from rmlora_deploy.runtime.providers import create_session, get_provider

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["AdapterSession"]

AnyArray = npt.NDArray[Any]

_BASE = 0
"""The base's number among those of resident adapters."""


class AdapterSession:
    """Runs a graph with branches; every row of a batch may use its own adapter, rank and head.

    >>> session = AdapterSession(Path("model.onnx"))
    >>> session.register("spam", lambda: arrays)
    >>> logits = session.run(inputs, adapters=["spam", None, {"spam": 0.5}])

    Safe to use from any number of threads; adapters come and go while runs are under way.
    """

    def __init__(
        self,
        model: Path,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        max_active_adapters: int = 64,
        rows: int = 32,
        max_concurrent_runs: int = 1,
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
        graph = load_model(model)
        self.lora_inputs: LoraInputs = read_lora_inputs(graph.metadata_props, where=str(model))
        self._base_mixes = True
        """Whether rows of the base can stand among others: a quantized head of its own cannot be fed to them."""
        self._defaults = self._read_defaults(graph, model)
        gather_adapters(graph, self.lora_inputs)
        self._session = create_session(
            to_bytes(graph), provider, threads=threads, memory_pattern=False, made_from=model
        )
        self._model, self._provider, self._threads = model, provider, threads
        self._specialized: dict[int, ort.InferenceSession] = {}
        """Number of a resident adapter, or of the base → a graph of its own."""
        self._device = _device(provider)
        self._in_place = get_provider(provider).name == "cpu"
        """Whether a run reads arrays where they lie; other providers may copy them when they are bound."""
        self._cache = AdapterCache(
            max_active_adapters, RankBuckets(self._defaults, max_active_adapters + rows * max_concurrent_runs)
        )
        self._rows = rows
        self._outputs = [item.name for item in self._session.get_outputs()]
        self._inputs = [item.name for item in self._session.get_inputs() if item.name != ADAPTER_INDICES]
        self._required = {slot: _required(slot, default) for slot, default in self._defaults.items()}
        self._pairs = [((slot.lora_A, 2), (slot.lora_B, 1)) for slot in self.lora_inputs.modules]
        self._pairs += [((head.weight, -1), (head.bias, -1)) for head in self.lora_inputs.heads]
        """Slots that come together, and the axis of each that both have in common: a module's rank, a head's labels."""
        self._known: WeakSet[Layout] = WeakSet()
        """Layouts of adapter files whose arrays fit the slots."""
        self._heads = [head.module for head in self.lora_inputs.heads]
        self._fresh = next((head.module for head in self.lora_inputs.heads if not head.in_base), None)
        self._lanes = threading.BoundedSemaphore(max_concurrent_runs)
        self._unfed: list[BoundInputs] = []
        """Bindings without slots that no run uses at the moment."""
        self._sent = DeviceArrays(max_active_adapters + rows * max_concurrent_runs)
        """What lies on the device."""

    # -- adapters ---------------------------------------------------------------------------------------------------

    def register(self, name: AdapterName, loader: Loader) -> None:
        """Register an adapter under ``name``.

        Args:
            name: what rows call it.
            loader: returns its arrays by slot (:func:`rmlora_converters.graph.contract.adapter_arrays.adapter_arrays`); called when a row needs
                them and they are not in memory.

        Raises:
            ConfigError: the name is taken.
        """
        self._cache.register(name, lambda: self._checked(name, loader()))

    def unload(self, name: AdapterName) -> None:
        """Forget an adapter; runs under way end with it.

        Raises:
            InputError: it is not known.
        """
        resident = self._cache.unregister(name)
        if resident is not None:
            self._specialized.pop(resident.number, None)

    def pin(self, name: AdapterName, *, pinned: bool = True) -> None:
        """Keep an adapter in memory, or no longer, its own graph included; errors as :meth:`AdapterCache.pin`."""
        resident = self._cache.pin(name, pinned=pinned)
        if not pinned and resident is not None:
            self._specialized.pop(resident.number, None)

    def prefetch(self, adapters: Sequence[AdapterChoice]) -> None:
        """Start to read the adapters of rows that will come, so that their run need not wait; return at once.

        Args:
            adapters: one choice for each row. Those that are not known are left to the run, which says so.
        """
        for chosen in resolve_choices(adapters, len(adapters)):
            if chosen is not None:
                self._cache.prefetch(chosen)

    def specialize(self, name: AdapterName | None) -> None:
        """Give an adapter, or the base (None), a graph of its own with the update in its weights, and pin it.

        Batches that use it alone at full strength then cost what a merged model costs, for the memory of one more model.
        Building it takes about as long as opening the session.

        Raises:
            InputError: the adapter is not known.
            ConfigError: the base is quantized, so nothing can be merged into it; or no more adapters can be pinned.
        """
        if name is None:
            self._specialized[_BASE] = self._open_specialized({})
            return
        self._cache.pin(name)
        with self._cache.held([AdapterRef(name)]) as held:
            (resident,) = held.values()
            self._specialized[resident.number] = self._open_specialized(resident.loader())

    def _open_specialized(self, arrays: Mapping[str, AnyArray]) -> ort.InferenceSession:
        model = load_model(self._model)
        specialize(model, self.lora_inputs, arrays)
        with tempfile.TemporaryDirectory() as directory:
            save_model(model, path := Path(directory) / "model.onnx")
            return create_session(path, self._provider, threads=self._threads)

    @property
    def cache(self) -> AdapterCache:
        """What is known and in memory."""
        return self._cache

    @property
    def input_types(self) -> dict[str, np.dtype[Any]]:
        """Slot → its type in the graph."""
        return {name: default.dtype for name, default in self._defaults.items()}

    # -- running ----------------------------------------------------------------------------------------------------

    def run(
        self, inputs: Mapping[str, AnyArray], adapters: AdapterChoice | Sequence[AdapterChoice] = None
    ) -> list[AnyArray]:
        """Return one array for every row: the first output, cut to the labels of the row's own head.

        Args:
            inputs: the graph's inputs, batch first.
            adapters: one choice for all rows or one for each (:data:`AdapterChoice`).

        Raises:
            InputError: an adapter is not known, or the graph does not take these inputs.
            ConfigError: choices do not fit the rows.
        """
        rows = self._rows_of(inputs)
        choices = resolve_choices(adapters, rows)
        if self._fresh is not None and None in choices:
            raise InputError(f"The base has no trained '{self._fresh}' of its own: name an adapter for every row.")
        if len(set(choices)) == 1:
            return self._run_held(inputs, choices)
        if rows > self._rows:
            raise ConfigError(
                f"A batch that mixes adapters may have {self._rows} rows, not {rows}: split it, or open the session "
                "with more rows."
            )
        with self._lanes:
            return self._run_held(inputs, choices)

    def _run_held(self, inputs: Mapping[str, AnyArray], choices: Sequence[AdapterRef | None]) -> list[AnyArray]:
        """Run a batch while its adapters stay in memory; rows whose adapters lie on different shelves run apart."""
        with self._cache.held(choice for choice in choices if choice is not None) as held:
            users = [held[choice] if choice is not None else None for choice in choices]
            groups = self._groups(users)
            if len(groups) == 1:
                (shelf,) = groups
                return self._run_group(shelf, inputs, users)
            answers: dict[int, AnyArray] = {}
            for shelf, rows in groups.items():
                part = {name: np.asarray(value)[rows] for name, value in inputs.items()}
                answers.update(zip(rows, self._run_group(shelf, part, [users[row] for row in rows]), strict=True))
            return [answers[row] for row in range(len(users))]

    def _groups(self, users: Sequence[CachedAdapter | None]) -> dict[RankBucket | None, list[int]]:
        """Return the rows of each shelf, which are computed together; those of the base are with the first, or with None."""
        groups: dict[RankBucket | None, list[int]] = {}
        first = next((user.shelf for user in users if user is not None), None) if self._base_mixes else None
        for row, user in enumerate(users):
            groups.setdefault(user.shelf if user is not None else first, []).append(row)
        return groups

    def _run_group(
        self, shelf: RankBucket | None, inputs: Mapping[str, AnyArray], users: Sequence[CachedAdapter | None]
    ) -> list[AnyArray]:
        """Run rows of one shelf, or of the base alone, and return their answers, each with the labels of its own head."""
        alike = len(set(users)) == 1
        own = self._specialized.get(_number(users[0])) if alike else None
        if own is not None:
            output = BoundInputs(own, {}, output=self._outputs[0], device=self._device).run(inputs)
        elif shelf is None:
            output = self._run_bound(self._unfed, {}, {**inputs, ADAPTER_INDICES: np.zeros(1, np.int64)})
        else:
            output = self._run_placed(shelf, users[:1] if alike else users, inputs)
        widths = [self._labels(user) for user in users]
        return [row if width is None else row[..., :width] for row, width in zip(output, widths, strict=True)]

    def _run_placed(
        self, shelf: RankBucket, users: Sequence[CachedAdapter | None], inputs: Mapping[str, AnyArray]
    ) -> AnyArray:
        places = np.array([user.place if user is not None else BASE for user in users], np.int64)
        if self._in_place:
            return self._run_bound(shelf.bound, shelf.arrays, {**inputs, ADAPTER_INDICES: places})
        key = tuple(map(_number, users))
        bound = self._sent.take(key) or self._bind({name: array[places] for name, array in shelf.arrays.items()})
        output = bound.run({**inputs, ADAPTER_INDICES: np.arange(len(users))})
        self._sent.put(key, bound)
        return output

    def _run_bound(
        self, idle: list[BoundInputs], arrays: Mapping[str, AnyArray], inputs: Mapping[str, AnyArray]
    ) -> AnyArray:
        """Run with one of the ``idle`` bindings of ``arrays``, or another where other threads use them all."""
        try:
            bound = idle.pop()
        except IndexError:
            bound = self._bind(arrays)
        output = bound.run(inputs)
        idle.append(bound)
        return output

    def _bind(self, arrays: Mapping[str, AnyArray]) -> BoundInputs:
        return BoundInputs(self._session, arrays, output=self._outputs[0], device=self._device)

    # -- checks -----------------------------------------------------------------------------------------------------

    def _rows_of(self, inputs: Mapping[str, AnyArray]) -> int:
        missing = [name for name in self._inputs if name not in inputs]
        extra = [name for name in inputs if name not in self._inputs]
        if missing or extra:
            wrong = f"lack '{missing[0]}'" if missing else f"have '{extra[0]}', which it does not take"
            raise InputError(f"The inputs {wrong}: the graph takes {', '.join(self._inputs)}.")
        return int(np.asarray(inputs[self._inputs[0]]).shape[0])

    def _checked(self, name: AdapterName, arrays: Mapping[str, AnyArray]) -> Mapping[str, AnyArray]:
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
            sizes_fit = array.ndim == axes and array.shape[0] == 1 and (axis is None or array.shape[axis] == size)
            if array.dtype != dtype or not sizes_fit:
                default = self._defaults[slot]
                raise InputError(
                    f"Adapter '{name}' has '{slot}' as {array.dtype} {list(array.shape)}, the graph takes {default.dtype} "
                    f"{list(default.shape)} (ranks and labels may differ): it is of another graph."
                )
        for (first, axis), (second, other) in self._pairs:
            sizes = {
                arrays[slot].shape[at] if slot in arrays else None for slot, at in ((first, axis), (second, other))
            }
            if len(sizes) > 1:
                raise InputError(
                    f"Adapter '{name}' has '{first}' and '{second}' that do not belong together, or only one of them: add it "
                    "again."
                )
        if layout is not None:
            self._known.add(layout)
        return arrays

    def _labels(self, user: CachedAdapter | None) -> int | None:
        """Return the outputs of a row's own last head; None where the answer is not cut: the base's own head gave it."""
        if not self._heads:
            return None
        head = self._heads[-1]
        own = user.labels.get(head) if user is not None else None
        return own or self._defaults[f"{head}.bias"].shape[-1] or None

    def _read_defaults(self, graph: ir.Model, model: Path) -> dict[str, AnyArray]:
        """Return what a row of the base is fed in a mixed batch, ``rows`` = 1."""
        initializers = graph.graph.initializers
        defaults: dict[str, AnyArray] = {}
        for name in self.lora_inputs.names:
            value = initializers.get(name)
            if value is None or value.const_value is None:
                raise InputError(f"{model} has no slot '{name}', which it records: export it again.")
            defaults[name] = np.array(value.const_value.numpy())
        for head in self.lora_inputs.heads:
            own = base_head(graph, head)
            defaults.update(own or {})
            self._base_mixes &= own is not None
        return defaults


def _required(slot: str, default: AnyArray) -> tuple[np.dtype[Any], int, int | None, int]:
    """Return what an adapter's array must have: type, number of axes, and the axis with a fixed size, if any, and the size."""
    axis = {"lora_A": 1, "lora_B": 2, "weight": 1}.get(slot.rpartition(".")[2])
    return default.dtype, default.ndim, axis, default.shape[axis] if axis is not None else 0


def _number(user: CachedAdapter | None) -> int:
    return user.number if user is not None else _BASE


def _device(provider: str) -> str:
    """Return where inputs are bound: on the device where the provider computes."""
    return "cuda" if get_provider(provider).name in ("cuda", "tensorrt") else "cpu"
