"""A session in which every row of a batch may use a different adapter."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rmlora.errors import ConfigError, InputError
from rmlora_converters.graph.contract.lora_inputs import LoraInputs, read_lora_inputs
from rmlora_converters.graph.files.model_file import load_model, to_bytes
from rmlora_converters.graph.locate.id_limits import check_ids, id_limits
from rmlora_converters.graph.passes.base_head import base_head
from rmlora_converters.graph.passes.gather_adapters import ADAPTER_INDICES, gather_adapters, require_lora_inputs
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterChoice, AdapterName, AdapterRef, resolve_choices
from rmlora_deploy.runtime.adapters.array_layout import ArrayCheck
from rmlora_deploy.runtime.adapters.cache import AdapterCache, CachedAdapter
from rmlora_deploy.runtime.adapters.device_bucket import DeviceBucket
from rmlora_deploy.runtime.adapters.loaders import Loader
from rmlora_deploy.runtime.adapters.rank_buckets import BASE_INDEX, RankBucket, RankBuckets, base_arrays
from rmlora_deploy.runtime.binding import BoundInputs
from rmlora_deploy.runtime.graph_logits import check_output
from rmlora_deploy.runtime.providers import create_session, get_provider
from rmlora_deploy.runtime.specialized import Specializer

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["AdapterSession"]

AnyArray = npt.NDArray[Any]

_BASE_SERIAL = 0
"""Stands for the base model where cached adapters are told apart by serial number."""


class AdapterSession:
    """Runs a graph with branches; every row of a batch may use its own adapter, rank and head.

    Any number of adapters can be registered; they are read when a row first needs them, and the most recently used stay in
    memory. All methods may be called from any number of threads, and adapters may come and go while batches run.

    Example:
        >>> session = AdapterSession(Path("bundle/model.onnx"), max_active_adapters=64)            # doctest: +SKIP
        >>> for name in ("spam", "tone"):                                                          # doctest: +SKIP
        ...     session.register(name, partial(read_onnx_adapter, Path(f"bundle/adapters/{name}.onnx_adapter")))
        >>> inputs = {"input_ids": ids, "attention_mask": mask}                                    # doctest: +SKIP
        >>> session.run(inputs, "spam")                        # every row uses "spam"             # doctest: +SKIP
        >>> session.run(inputs, ["spam", None, {"tone": 0.5}])  # one choice per row               # doctest: +SKIP
        >>> session.prefetch(["tone"])                         # read it in the background         # doctest: +SKIP
        >>> session.specialize("spam")                         # as fast as a merged model         # doctest: +SKIP
        >>> session.unload("tone")                                                                 # doctest: +SKIP

    ``Bundle.open("bundle").adapter_session()`` opens the graph of a bundle and registers all its adapters.
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
            model: a graph with branches (``rmlora-deploy export --mode branches``).
            provider: execution provider.
            threads: intra-op threads of one run; None lets ONNX Runtime choose.
            max_active_adapters: adapters kept in memory. One that is used at two strengths counts twice.
            rows: maximum rows of a batch that mixes adapters.
            max_concurrent_runs: batches that mix adapters and may run at the same time; others wait.

        Raises:
            InputError: the file cannot be read or has no LoRA inputs.
            ConfigError: ``max_active_adapters`` is less than one.
            ProviderError: the provider is not available or does not start.
        """
        self._specializer = Specializer(model, provider, threads=threads)
        graph = load_model(model)
        self.lora_inputs: LoraInputs = read_lora_inputs(graph.metadata_props, where=str(model))
        self._base_mixes = True
        """True if base-model rows can be mixed with adapter rows in one batch; a quantized head of the base's cannot be fed
        to them."""
        self._defaults = self._read_defaults(graph, model)
        chosen = get_provider(provider)
        self._id_limits = id_limits(graph) if chosen.name != "cpu" else {}
        """Input → number of ids, on providers that do not refuse what is outside."""
        gather_adapters(graph, self.lora_inputs)
        if not chosen.runs_nodes:
            require_lora_inputs(graph, self.lora_inputs)
        self._base_arrays = {} if chosen.runs_nodes else base_arrays(self._defaults)
        """What is fed for base rows alone; nothing if the graph's defaults count."""
        self._session = create_session(
            to_bytes(graph), provider, threads=threads, memory_pattern=False, made_from=model
        )
        self._specialized: dict[int, ort.InferenceSession] = {}
        """Serial of a cached adapter, or of the base → a session with a graph of its own."""
        self._zero_copy = chosen.name == "cpu"
        """True if a run uses the buckets' arrays as they are; other providers may copy what is bound."""
        self._device = chosen.device
        self._device_buckets: dict[RankBucket, DeviceBucket] = {}
        """Bucket → its copy on the device, for providers that compute on one."""
        self._device_lock = threading.Lock()
        most_in_use = max_active_adapters + rows * max_concurrent_runs
        self._cache = AdapterCache(max_active_adapters, RankBuckets(self._defaults, most_in_use))
        self._check_arrays = ArrayCheck(self.lora_inputs, self._defaults)
        self._max_rows = rows
        self._mixed_runs = threading.BoundedSemaphore(max_concurrent_runs)
        self._output = self._session.get_outputs()[0].name
        added = {ADAPTER_INDICES, *self.lora_inputs.names}
        self._inputs = [item.name for item in self._session.get_inputs() if item.name not in added]
        heads = self.lora_inputs.heads
        self._last_head = heads[-1].module if heads else None
        self._untrained_head = next((head.module for head in heads if not head.in_base), None)
        self._idle_base_bindings: list[BoundInputs] = []
        """Bindings without LoRA inputs that no run is using."""

    # -- adapters ---------------------------------------------------------------------------------------------------

    def register(self, name: AdapterName, loader: Loader) -> None:
        """Make an adapter known as ``name``; nothing is read yet.

        Args:
            name: what callers of :meth:`run` choose it by.
            loader: returns its arrays by LoRA input, such as ``partial(read_onnx_adapter, path)``. It is called whenever a row
                needs the adapter and it is not in memory, possibly from several threads.

        Raises:
            ConfigError: the name is taken or empty.
        """
        self._cache.register(name, lambda: self._check_arrays(name, loader()))

    def unload(self, name: AdapterName) -> None:
        """Forget an adapter and free its memory. Batches that are running finish with it; later ones are refused.

        Raises:
            InputError: it is not registered.
        """
        adapter = self._cache.unregister(name)
        if adapter is not None:
            self._specialized.pop(adapter.serial, None)

    def pin(self, name: AdapterName, *, pinned: bool = True) -> None:
        """Keep an adapter in memory once it was read, however long it is not used.

        It is read when it is first used; call :meth:`prefetch` to read it now.

        Args:
            name: a registered adapter.
            pinned: False undoes it, and also drops the graph that :meth:`specialize` made for the adapter.

        Raises:
            InputError: the adapter is not registered.
            ConfigError: no room would be left for other adapters.
        """
        adapter = self._cache.pin(name, pinned=pinned)
        if not pinned and adapter is not None:
            self._specialized.pop(adapter.serial, None)

    def prefetch(self, adapters: Sequence[AdapterChoice]) -> None:
        """Start reading the adapters of rows that will come soon, and return at once.

        A run that starts before an adapter is read waits for it. Prefetched adapters that no batch has used yet fill at most
        half of the memory; further ones are read by their run.

        Args:
            adapters: one choice per row. Unknown adapters are ignored here; the run reports them.

        Raises:
            ConfigError: a choice has the wrong form.
        """
        for ref in resolve_choices(adapters, len(adapters)):
            if ref is not None:
                self._cache.prefetch(ref)

    def specialize(self, name: AdapterName | None) -> None:
        """Build a graph with the adapter merged into its weights, and pin the adapter.

        Batches whose rows all use this adapter at full strength then cost what a merged model costs. The price is the memory
        of one more model. Building it takes about as long as opening the session; meanwhile other threads go on.

        Args:
            name: a registered adapter; None builds a graph of the base model without branches.

        Raises:
            InputError: the adapter is not registered or cannot be read.
            ChangedFileError: the graph's files have changed since the session was opened.
            ConfigError: the base is quantized, so that nothing can be merged into it; or no more adapters can be pinned.
        """
        if name is None:
            self._specialized[_BASE_SERIAL] = self._specializer.open(self.lora_inputs, {})
            return
        self._cache.pin(name)
        with self._cache.held([AdapterRef(name)]) as held:
            (adapter,) = held.values()
            self._specialized[adapter.serial] = self._specializer.open(self.lora_inputs, adapter.loader())

    @property
    def cache(self) -> AdapterCache:
        """The adapter cache: what is registered and what is in memory."""
        return self._cache

    @property
    def untrained_head(self) -> str | None:
        """Module path of a head that the base has no trained weights for; then every row needs an adapter. None if there is none."""
        return self._untrained_head

    @property
    def input_types(self) -> dict[str, np.dtype[Any]]:
        """LoRA input → its type in the graph."""
        return {name: default.dtype for name, default in self._defaults.items()}

    # -- running ----------------------------------------------------------------------------------------------------

    def run(
        self, inputs: Mapping[str, AnyArray], adapters: AdapterChoice | Sequence[AdapterChoice] = None
    ) -> list[AnyArray]:
        """Return one array per row: the graph's first output, cut to the labels of the row's own head.

        Rows whose adapters are in different rank buckets are computed one bucket after the other.

        Args:
            inputs: the graph's own inputs, ``[rows, …]``.
            adapters: one choice for all rows, or a sequence with one per row: a name, ``{name: strength}``, an
                :class:`~rmlora_deploy.runtime.AdapterRef`, or None for the base model.

        Raises:
            InputError: an adapter is not registered or cannot be used, or the graph cannot be run on these inputs.
            ConfigError: the choices do not fit the rows, or more rows than the session's ``rows`` mix adapters.
        """
        rows = self._count_rows(inputs)
        check_ids(inputs, self._id_limits)
        refs = resolve_choices(adapters, rows)
        if self._untrained_head is not None and None in refs:
            raise InputError(
                f"The base has no trained '{self._untrained_head}' of its own: name an adapter for every row."
            )
        mixed = len(set(refs)) != 1
        if mixed and rows > self._max_rows:
            raise ConfigError(
                f"A batch that mixes adapters may have {self._max_rows} rows, not {rows}: split it, or open the session "
                "with more rows."
            )
        with (
            self._mixed_runs if mixed else nullcontext(),
            self._cache.held(ref for ref in refs if ref is not None) as held,
        ):
            users = [held[ref] if ref is not None else None for ref in refs]
            groups = self._group_by_bucket(users)
            if len(groups) == 1:
                (bucket,) = groups
                return self._run_group(bucket, inputs, users)
            outputs: dict[int, AnyArray] = {}
            for bucket, members in groups.items():
                part = {name: np.asarray(array)[members] for name, array in inputs.items()}
                outputs.update(
                    zip(members, self._run_group(bucket, part, [users[row] for row in members]), strict=True)
                )
            return [outputs[row] for row in range(rows)]

    def _run_group(
        self, bucket: RankBucket | None, inputs: Mapping[str, AnyArray], users: Sequence[CachedAdapter | None]
    ) -> list[AnyArray]:
        """Run rows that share a rank bucket, or base rows alone (None); cut each output to the labels of its own head."""
        alike = len(set(users)) == 1
        specialized = self._specialized.get(_serial(users[0])) if alike else None
        if specialized is not None:
            output = BoundInputs(specialized, {}, output=self._output).run(inputs)
        else:
            with self._binding(bucket, users[:1] if alike else users) as (binding, indices):
                output = binding.run({**inputs, ADAPTER_INDICES: indices})
        check_output(output, len(users))
        widths = [self._label_count(user) for user in users]
        return [row if width is None else row[..., :width] for row, width in zip(output, widths, strict=True)]

    @contextmanager
    def _binding(
        self, bucket: RankBucket | None, users: Sequence[CachedAdapter | None]
    ) -> Iterator[tuple[BoundInputs, npt.NDArray[np.int64]]]:
        """Borrow a binding for one run, with the index of each user's arrays in it; after an error it is not used again.

        Args:
            bucket: where the users' arrays are; None for the base alone.
            users: one for all rows, or one per row.
        """
        indices = np.array([user.index if user is not None else BASE_INDEX for user in users], np.int64)
        if bucket is not None and not self._zero_copy and self._device == "cpu":
            yield self._bind({name: array[indices] for name, array in bucket.arrays.items()}), np.arange(len(users))
            return
        idle, arrays = self._bindings_of(bucket)
        try:
            binding = idle.pop()
        except IndexError:  # other threads are using all of them
            binding = self._bind(arrays)
        yield binding, indices
        idle.append(binding)

    def _bindings_of(self, bucket: RankBucket | None) -> tuple[list[BoundInputs], Mapping[str, Any]]:
        """Return the idle bindings of a bucket, and the arrays to make more of them for."""
        if bucket is None:
            return self._idle_base_bindings, self._base_arrays
        if self._zero_copy:
            return bucket.idle_bindings, bucket.arrays
        with self._device_lock:
            if bucket not in self._device_buckets:
                self._device_buckets[bucket] = DeviceBucket(bucket, self._device)
        copy = self._device_buckets[bucket].current()
        return copy.idle_bindings, copy.arrays

    def _bind(self, arrays: Mapping[str, Any]) -> BoundInputs:
        return BoundInputs(self._session, arrays, output=self._output)

    def _group_by_bucket(self, users: Sequence[CachedAdapter | None]) -> dict[RankBucket | None, list[int]]:
        """Return bucket → its rows. Base rows join the first bucket; they are under None if there is none to join."""
        groups: dict[RankBucket | None, list[int]] = {}
        joined = next((user.bucket for user in users if user is not None), None) if self._base_mixes else None
        for row, user in enumerate(users):
            groups.setdefault(user.bucket if user is not None else joined, []).append(row)
        return groups

    def _label_count(self, user: CachedAdapter | None) -> int | None:
        """Return the outputs of a row's own last head; None if the base's own head gave them, which needs no cutting."""
        if self._last_head is None:
            return None
        own = user.labels.get(self._last_head) if user is not None else None
        return own or self._defaults[f"{self._last_head}.bias"].shape[-1] or None

    def _count_rows(self, inputs: Mapping[str, AnyArray]) -> int:
        missing = [name for name in self._inputs if name not in inputs]
        extra = [name for name in inputs if name not in self._inputs]
        if missing or extra:
            wrong = f"lack '{missing[0]}'" if missing else f"have '{extra[0]}', which it does not take"
            raise InputError(f"The inputs {wrong}: the graph takes {', '.join(self._inputs)}.")
        return int(np.asarray(inputs[self._inputs[0]]).shape[0])

    def _read_defaults(self, graph: ir.Model, model: Path) -> dict[str, AnyArray]:
        """Return what a base row is fed in a batch with adapters: LoRA input → ``[1, …]``."""
        initializers = graph.graph.initializers
        defaults: dict[str, AnyArray] = {}
        for name in self.lora_inputs.names:
            value = initializers.get(name)
            if value is None or value.const_value is None:
                raise InputError(f"{model} lacks the LoRA input '{name}', which it lists: export it again.")
            defaults[name] = np.array(value.const_value.numpy())
        for head in self.lora_inputs.heads:
            own = base_head(graph, head)
            defaults.update(own or {})
            self._base_mixes &= own is not None
        return defaults


def _serial(user: CachedAdapter | None) -> int:
    return user.serial if user is not None else _BASE_SERIAL
