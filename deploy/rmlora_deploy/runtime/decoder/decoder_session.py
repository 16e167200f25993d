"""A language model opened with plain ONNX Runtime: logits of texts, and batches of rows that advance token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError
from rmlora_converters.graph.contract.lora_inputs import LoraInputs, read_lora_inputs
from rmlora_converters.graph.files.model_file import load_model, to_bytes
from rmlora_converters.graph.passes.logits_start import LOGITS_START
from rmlora_converters.graph.passes.pack_factors import pack_factors
from rmlora_deploy.runtime.adapters.adapter_ref import AdapterName, AdapterRef
from rmlora_deploy.runtime.adapters.loaders import Loader
from rmlora_deploy.runtime.decoder.decoder_adapters import DecoderAdapters
from rmlora_deploy.runtime.decoder.decoder_layout import DecoderLayout
from rmlora_deploy.runtime.decoder.key_values import KeyValues
from rmlora_deploy.runtime.providers import create_session, get_provider
from rmlora_deploy.runtime.specialized import Specializer

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["DecoderSession"]

AnyArray = npt.NDArray[Any]

_TYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


class DecoderSession:
    """A decoder's graph, opened, with its adapters.

    Args:
        model: graph of the GenAI builder, or a traced one with the same inputs and outputs, with or without branches.
        layout: names and sizes of its inputs and outputs.
        provider: execution provider; ``cpu``.
        threads: intra-op threads; None lets ONNX Runtime choose.
        max_active_adapters: adapters kept in memory.
        rank: of the adapters that are expected, for which the graph is made fast; every other one works too.

    Raises:
        InputError: the graph cannot be read, or does not have the inputs that ``layout`` names.
        ConfigError: the provider is another one, or ``max_active_adapters`` is less than one.
    """

    def __init__(
        self,
        model: Path,
        layout: DecoderLayout,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        max_active_adapters: int = 64,
        rank: int = 8,
    ) -> None:
        if get_provider(provider).name != "cpu":
            raise ConfigError(
                f"Text is generated on --provider cpu, not {provider}: run the bundle there with onnxruntime_genai, which "
                "loads it as it is."
            )
        if not layout.shares_memory:
            raise InputError(f"The graph of {model} keeps past and present keys apart: run it with onnxruntime_genai.")
        graph = load_model(model)
        branches = any(name.startswith("rmlora.") for name in graph.metadata_props)
        self.lora_inputs = read_lora_inputs(graph.metadata_props, where=str(model)) if branches else LoraInputs(())
        defaults = {name: _default(graph.graph.initializers[name].const_value) for name in self.lora_inputs.names}
        self.input_types = {name: value.dtype for name, value in defaults.items()}
        self._specializer = Specializer(model, provider, threads=threads, memory_pattern=False)
        self._specialized: dict[AdapterName | None, tuple[Loader | None, ort.InferenceSession]] = {}
        """Adapter → its loader, which tells it from a later one of the same name, and the session of its graph."""
        self.path, self.layout = model, layout
        self.chooses_logits = LOGITS_START in graph.graph.initializers
        packed = pack_factors(graph, self.lora_inputs, rank=rank)
        self.adapters = DecoderAdapters(self.lora_inputs, defaults, max_active_adapters, packed)
        opened = to_bytes(graph) if packed else model
        self.session = create_session(
            opened, provider, threads=threads, memory_pattern=False, made_from=model if packed else None
        )
        types = {item.name: item.type for item in self.session.get_inputs()}
        needed = {layout.input_ids, layout.attention_mask, *layout.past}
        if needed - set(types):
            raise InputError(
                f"{model} has no input '{min(needed - set(types))}': it is not of its genai_config.json, export it again."
            )
        self.takes_positions = layout.position_ids in types
        if unknown := sorted(set(types) - needed - {layout.position_ids}):
            raise InputError(
                f"{model} takes '{unknown[0]}', which this program does not know how to feed: run it with onnxruntime_genai."
            )
        if types[layout.past[0]] not in _TYPES:
            raise InputError(
                f"{model} keeps keys and values as {types[layout.past[0]]}: run it with onnxruntime_genai."
            )
        self._dtype: np.dtype[Any] = _TYPES[types[layout.past[0]]]

    def register(self, name: AdapterName, loader: Loader) -> None:
        """Make an adapter known; arguments and errors as :meth:`DecoderAdapters.register`."""
        self.adapters.register(name, loader)

    def unload(self, name: AdapterName) -> None:
        """Forget an adapter; errors as :meth:`DecoderAdapters.unload`."""
        self.adapters.unload(name)
        self._specialized.pop(name, None)

    def specialize(self, name: AdapterName | None) -> None:
        """Open the graph once more with an adapter merged into its weights, or without branches.

        Batches whose rows all use this adapter at full strength then cost what a merged model costs. The price is the memory
        of one more model, and in int8 the weights are rounded anew, so that texts are those of a merged int8 bundle.

        Args:
            name: a registered adapter; None takes the base.

        Raises:
            InputError: the adapter is not registered or cannot be read.
            ChangedFileError: the graph's files have changed since the session was opened.
            ConfigError: there are no branches, or the weights have 4 bits, too few to merge an update into.
        """
        if not self.lora_inputs.modules:
            raise ConfigError("The adapter of this bundle is merged: there is nothing to specialize.")
        loader = self.adapters.loader(name) if name is not None else None
        arrays = self.adapters.stored(name) if name is not None else {}
        self._specialized[name] = loader, self._specializer.open(self.lora_inputs, arrays)

    def session_for(self, adapters: Sequence[AdapterRef | None]) -> tuple[ort.InferenceSession, bool]:
        """Return the session that computes rows with these adapters, and True if it takes their arrays."""
        first = adapters[0]
        if all(ref == first for ref in adapters) and (first is None or first.strength == 1.0):
            name = first.key if first is not None else None
            loader, session = self._specialized.get(name, (None, None))
            if session is not None and (name is None or loader is self.adapters.loader(name)):
                return session, False
        return self.session, True

    def key_values(self, rows: int, capacity: int) -> KeyValues:
        """Return empty memory for the keys and values of ``rows`` rows of at most ``capacity`` tokens."""
        return KeyValues(self.layout, self._dtype, rows, capacity)

    def logits(
        self, tokens: Sequence[int], adapter: AdapterRef | None = None, *, start: int = 0
    ) -> npt.NDArray[np.float32]:
        """Return the logits ``[positions, vocabulary]`` of a text, in one run.

        Args:
            tokens: of the text.
            adapter: registered adapter; None for the base model.
            start: first position whose logits are returned.

        Raises:
            InputError: the text is empty or too long, or the adapter cannot be used.
        """
        from rmlora_deploy.runtime.decoder.decoder_batch import DecoderBatch

        batch = DecoderBatch(self, [tokens], [adapter], new_tokens=0)
        return batch.read(0, start=start, chunk=len(tokens))


def _default(value: Any) -> AnyArray:
    if value is None:
        raise InputError("A LoRA input of the graph has no default: the graph is damaged, export it again.")
    return np.asarray(value.numpy())
