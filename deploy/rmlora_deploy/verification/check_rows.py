"""Checks a graph with branches by itself: every row of a batch gets what it gets alone, whichever adapters the others use.

This needs no PyTorch and no trained adapter. The bundle's adapters are replaced by random ones of the same shapes, because a
small update would hide that it reaches the wrong row. Graphs of 8 and 4 bits are tried with the adapters themselves: what random
updates leave of a trained model can be mostly rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from rmlora.errors import ConfigError, InputError, ParityError
from rmlora.inputs import Arrays
from rmlora_converters.graph.files.onnx_adapter import read_onnx_adapter
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.runtime import AdapterKey, AdapterRef, AdapterSession
from rmlora_deploy.runtime.graph_logits import graph_logits
from rmlora_deploy.verification.compare import TOLERANCES

__all__ = ["check_rows"]

AnyArray = npt.NDArray[Any]
_Choice: TypeAlias = AdapterKey | AdapterRef

_COUNTS = (1, 2, 3, 5)
"""Rows of the batches that are tried."""
_UPDATE = 1.0
"""Size of the random updates: about that of what the modules give, so that none is lost in a softmax that is nearly even."""
_HALF = 0.5
"""Strength of an only adapter where two choices are needed."""
_BOTH_ROUNDED = 2**0.5
"""Two outputs that are both rounded differ by this much more than each from the exact one."""
_QUANTIZED = ("int8", "int4")
"""Precisions whose activations are rounded together, so that the rows of a batch are not independent."""


def check_rows(bundle: Bundle, *, compare_merged: bool) -> None:
    """Run base rows, single rows and mixed rows of several counts, and compare every row with a batch of its own.

    Args:
        bundle: with branches, complete but for its manifest.
        compare_merged: also compare with a graph that has the update in its weights. Comparing with PyTorch covers this.

    Raises:
        ParityError: a row depends on the others, the graph does not run, or without adapters it is not the base's graph.
    """
    session = bundle.adapter_session()
    batches, expected = load_reference(bundle.path / REFERENCE_FILE)
    try:
        _check_base(bundle, batches, expected)
        keys = _probes(bundle, session)
        rows = max(batches, key=_rows)
        checked = _Rows(bundle, session, rows)
        heads = session.lora_inputs.heads
        everyone: list[_Choice | None] = [*keys, *([None] if all(head.in_base for head in heads) else [])]
        for count in (count for count in _COUNTS if count <= _rows(rows)):
            for shift in range(len(everyone)):
                checked.compare(count, [everyone[shift]] * count)
            checked.compare(count, [everyone[(row + count) % len(everyone)] for row in range(count)])
        if compare_merged:
            checked.compare_merged(keys[0])
    except InputError as error:
        raise ParityError(f"The graph with branches does not run with rows of several adapters: {error}") from None


class _Rows:
    """The outputs of single rows, computed once each."""

    def __init__(self, bundle: Bundle, session: AdapterSession, batch: Arrays) -> None:
        self._session, self._batch, self._alone = session, batch, dict[tuple[int, _Choice | None], AnyArray]()
        self._precision, self._outputs = bundle.precision, bundle.task.outputs

    def compare(self, count: int, chosen: list[_Choice | None]) -> None:
        """Raise :class:`ParityError` if ``count`` rows with these adapters differ from the same rows alone."""
        got = self._run(0, count, chosen)
        alone = [self._one(row, key) for row, key in enumerate(chosen)]
        what = f"in a batch of {count} rows is not what it is alone"
        if self._precision in _QUANTIZED:  # rounding differs from row to row, so all of them are judged together
            self._check(got, alone, what)
        else:
            for one, other in zip(got, alone, strict=True):
                self._check([one], [other], what)

    def compare_merged(self, key: _Choice) -> None:
        """Raise :class:`ParityError` if a row differs from that of a graph with the update in its weights."""
        want = self._one(0, key)
        try:
            self._session.specialize(key.name if isinstance(key, AdapterRef) else key)
        except ConfigError:  # quantized weights, into which nothing can be merged
            return
        got = self._run(0, 1, [key])[0]
        self._check([want], [got], "with branches is not what it is with the update in the weights")

    def _one(self, row: int, key: _Choice | None) -> AnyArray:
        if (row, key) not in self._alone:
            self._alone[row, key] = self._run(row, row + 1, [key])[0]
        return self._alone[row, key]

    def _run(self, start: int, stop: int, chosen: list[_Choice | None]) -> list[AnyArray]:
        part = _part(self._batch, start, stop)
        return [
            self._outputs.padding_zeroed(output[None], _part(part, row, row + 1))[0]
            for row, output in enumerate(self._session.run(part, chosen))
        ]

    def _check(self, got: Sequence[AnyArray], want: Sequence[AnyArray], what: str) -> None:
        limit, quantized = TOLERANCES[self._precision], self._precision in _QUANTIZED
        joined = [np.concatenate([output.ravel() for output in outputs]) for outputs in (got, want)]
        same = [output.shape for output in got] == [output.shape for output in want]
        error = _difference(*joined, quantized=quantized) if same else float("inf")
        allowed = _BOTH_ROUNDED * limit.rms_error if quantized else limit.relative_error
        if not error <= allowed:
            raise ParityError(
                f"The output of a row {what}: it differs by {error:.1e} (allowed {allowed:.2g}). Branches do not fit this graph: "
                "merge the adapters (--mode merged), and please report this as a bug."
            )


def _difference(got: AnyArray, want: AnyArray, *, quantized: bool) -> float:
    """Return the largest difference relative to the largest output; in the root mean square for quantized graphs."""
    if got.shape != want.shape:
        return float("inf")
    apart = np.abs(got.astype(np.float64) - want)
    if quantized:
        return float(np.sqrt((apart**2).mean()) / (np.sqrt((want.astype(np.float64) ** 2).mean()) or 1.0))
    return float(apart.max() / (np.abs(want).max() or 1.0))


def _check_base(bundle: Bundle, batches: list[Arrays], expected: list[AnyArray]) -> None:
    """Raise :class:`ParityError` if the graph without an adapter is not the base's graph."""
    outputs = graph_logits(bundle.session())
    limit = TOLERANCES[bundle.precision]
    for batch, want in zip(batches, expected, strict=True):
        quantized = bundle.precision in _QUANTIZED
        error = _difference(bundle.task.outputs.padding_zeroed(outputs(batch), batch), want, quantized=quantized)
        if not error <= (limit.rms_error if quantized else limit.relative_error):
            raise ParityError(
                f"Without an adapter the graph with branches differs from the base's by {error:.1e} in {_rows(batch)} rows: "
                "merge the adapters (--mode merged), and please report this as a bug."
            )


def _probes(bundle: Bundle, session: AdapterSession) -> list[_Choice]:
    """Return two different choices for a row: random adapters of the shapes of the bundle's, or in few bits its own."""
    entries, names = list(bundle.adapters.values()), list(bundle.adapters)
    if bundle.precision in _QUANTIZED:
        return [AdapterRef(names[0]), AdapterRef(names[-1], 1.0 if len(names) > 1 else _HALF)]
    keys: list[_Choice] = []
    for number, entry in enumerate((entries[0], entries[-1])):
        arrays = _random(read_onnx_adapter(bundle.file(entry.file)), np.random.default_rng(number))
        key = AdapterKey(f"probe{number}", -1 - number)
        session.register(key, lambda arrays=arrays: arrays)  # type: ignore[misc]
        keys.append(key)
    return keys


def _random(arrays: Mapping[str, AnyArray], rng: np.random.Generator) -> dict[str, AnyArray]:
    """Return arrays with random factors of the same shapes; heads keep their numbers."""
    made = dict(arrays)
    for name, array in arrays.items():
        if name.endswith(".lora_A"):
            made[name] = (rng.normal(size=array.shape) / np.sqrt(array.shape[1])).astype(array.dtype)
        elif name.endswith(".lora_B"):
            made[name] = (_UPDATE * rng.normal(size=array.shape)).astype(array.dtype)
    return made


def _rows(batch: Arrays) -> int:
    return len(next(iter(batch.values())))


def _part(batch: Arrays, start: int, stop: int) -> Arrays:
    return {name: array[start:stop] for name, array in batch.items()}
