"""Verifying a language model: logits of whole texts, continuations, and perplexity, against PyTorch with PEFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from rmlora.errors import ParityError
from rmlora.training.data import Columns
from rmlora_deploy.bundles.asking import end_tokens, prompt_format
from rmlora_deploy.bundles.bundle import REFERENCE_FILE, Bundle
from rmlora_deploy.bundles.describe import tool_versions
from rmlora_deploy.bundles.manifest import AdapterSource
from rmlora_deploy.bundles.reference import load_reference
from rmlora_deploy.bundles.report import (
    AdapterReport,
    BaseReport,
    Comparison,
    Evaluation,
    MixedReport,
    Perplexity,
    TextReport,
    Tolerance,
    VerificationReport,
)
from rmlora_deploy.bundles.text_codec import TextCodec
from rmlora_deploy.runtime import AdapterRef
from rmlora_deploy.runtime.decoder.decoder_batch import DecoderBatch
from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession
from rmlora_deploy.verification.answer_quality import (
    AnswerData,
    AnswerMeasure,
    graph_answers,
    measure_answers,
    read_answers,
)
from rmlora_deploy.verification.compare import TEXT_TOLERANCES, mismatch, within
from rmlora_deploy.verification.continued import continued
from rmlora_deploy.verification.decoder_prompts import DecoderSamples, decoder_samples
from rmlora_deploy.verification.evaluation import keeps_metric, lost_metric
from rmlora_deploy.verification.logit_errors import LogitErrors
from rmlora_deploy.verification.perplexity import perplexity
from rmlora_deploy.verification.torch_decoder import TorchDecoder
from rmlora_deploy.verification.torch_pair import source_of_outputs

__all__ = [
    "NEW_TOKENS",
    "TAIL",
    "DecoderData",
    "last_logits",
    "raise_on_text_mismatch",
    "reference_case",
    "verify_decoder",
]

NEW_TOKENS = 24
"""Tokens that prompts are continued by."""
TAIL = 4
"""Positions at the end of a prompt whose logits are stored in the bundle."""

_STEPS = 3
"""Tokens that rows with different adapters are continued by, together and alone."""

Tokens = Sequence[int]
Expected = dict[str | None, list[np.ndarray]]
"""Name of an adapter, None for the merged one → PyTorch's last logits for the reference prompts."""


@dataclass(frozen=True)
class DecoderData:
    """The user's data to compare on."""

    source: str | None = None
    columns: Columns = field(default_factory=Columns)
    measure: AnswerMeasure | None = None
    """How the answers to the data are judged; None generates none."""


@dataclass(frozen=True)
class _Adapter:
    """One adapter of a bundle, or what is merged into it."""

    ref: AdapterRef | None
    torch: TorchDecoder | None
    """None compares with the stored logits."""
    stored: list[np.ndarray]
    """Logits ``[1, TAIL, vocabulary]`` of the reference prompts; empty if none are stored."""
    answers: AnswerData | None
    """What it is asked, and the right answers."""
    ends: frozenset[int]
    """Tokens that end an answer."""


def verify_decoder(
    bundle: Bundle,
    torch_of: Callable[[str | None], TorchDecoder] | None,
    data: Mapping[str | None, DecoderData],
    *,
    provider: str = "cpu",
) -> tuple[VerificationReport, Expected]:
    """Compare a bundle for text-generation with PyTorch; a failed comparison is in the report, not raised.

    Args:
        bundle: merged or with branches.
        torch_of: PyTorch's model with the adapter of that name, None for the merged one; None compares with what is stored in
            the bundle.
        data: name of an adapter, None for the merged one → data of the user's.
        provider: execution provider; ``cpu``.

    Returns:
        the report, and PyTorch's last logits by adapter, to store in the bundle.

    Raises:
        InputError: the data cannot be used, or PyTorch itself gives NaN.
    """
    session, codec = bundle.decoder_session(provider), TextCodec.open(bundle.path)
    tolerance = TEXT_TOLERANCES[bundle.precision]
    batches, base_logits = load_reference(bundle.path / REFERENCE_FILE)
    prompts = [batch["input_ids"][0].tolist() for batch in batches]
    answers = {
        name: _answers(
            codec,
            session,
            given,
            raw=_raw(bundle, bundle.adapter(name) if name is not None else bundle.manifest.adapter),
        )
        for name, given in data.items()
    }
    expected: Expected = {}
    parts: dict[str, Any] = {}
    if bundle.mode == "merged":
        torch = torch_of(None) if torch_of is not None else None
        raw = _raw(bundle, bundle.manifest.adapter)
        samples = _samples(codec, session, data.get(None), raw=raw, built_in=torch is not None)
        merged = _Adapter(
            None, torch, base_logits, answers.get(None), end_tokens(session.layout, bundle.manifest.adapter)
        )
        measured = _compare(session, codec, merged, samples, prompts, tolerance)
        parts = {name: value for name, value in measured.items() if value is not None}
        passed = parts.pop("passed")
        if torch is not None:
            expected[None] = last_logits(torch, prompts)
    else:
        parts["base"] = base = _base(session, prompts, base_logits, tolerance)
        parts["adapters"], unverified = {}, []
        for name, entry in bundle.adapters.items():
            torch = torch_of(name) if torch_of is not None else None
            stored = load_reference(bundle.file(entry.reference))[1] if torch is None and entry.reference else []
            if torch is None and not stored:
                unverified.append(name)
                continue
            raw = _raw(bundle, entry)
            samples = _samples(codec, session, data.get(name), raw=raw, built_in=torch is not None)
            adapter = _Adapter(AdapterRef(name), torch, stored, answers.get(name), end_tokens(session.layout, entry))
            measured = _compare(session, codec, adapter, samples, prompts, tolerance)
            parts["adapters"][name] = AdapterReport(
                **{key: value for key, value in measured.items() if value is not None}
            )
            if torch is not None:
                expected[name] = last_logits(torch, prompts)
        if unverified:
            parts["unverified"] = unverified
        if bundle.adapters:
            parts["mixed"] = mixed = _mixed(session, prompts, [AdapterRef(name) for name in bundle.adapters])
        passed = base.passed and all(row.passed for row in parts["adapters"].values())
        passed &= not bundle.adapters or mixed.passed
    report = VerificationReport(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        tools=tool_versions(),
        provider="cpu",
        tolerance=tolerance,
        against=source_of_outputs(torch_of),
        shapes=[[1, len(prompt)] for prompt in prompts],
        passed=passed,
        **parts,
    )
    return report, expected


def reference_case(tokens: Tokens, logits: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return a prompt and its last logits as they are stored in a bundle."""
    return {"input_ids": np.array([tokens], np.int64)}, logits[None, -TAIL:].astype(np.float32)


def last_logits(torch: TorchDecoder, prompts: Sequence[Tokens]) -> list[np.ndarray]:
    """Return the logits ``[1, TAIL, vocabulary]`` at the end of every prompt, as they are stored in a bundle."""
    return [torch.logits(prompt)[None, -TAIL:] for prompt in prompts]


def _raw(bundle: Bundle, adapter: AdapterSource | None) -> bool:
    """Return True if prompts are continued as they are."""
    return prompt_format(bundle.manifest, adapter) == "raw"


def _samples(
    codec: TextCodec, session: DecoderSession, data: DecoderData | None, *, raw: bool, built_in: bool
) -> DecoderSamples | None:
    """Return what to compare on: the user's data, or else what is built in; None if that is not wanted."""
    data = data or DecoderData()
    if data.source is None and not built_in:
        return None
    return decoder_samples(
        codec,
        data.source,
        data.columns,
        context_length=session.layout.context_length,
        new_tokens=NEW_TOKENS,
        raw=raw,
    )


def _answers(codec: TextCodec, session: DecoderSession, data: DecoderData, *, raw: bool) -> AnswerData | None:
    """Return the prompts whose answers are judged, if any are."""
    if data.measure is None or data.source is None:
        return None
    return read_answers(
        codec,
        data.source,
        data.columns,
        data.measure,
        context_length=session.layout.context_length,
        raw=raw,
    )


def _compare(
    session: DecoderSession,
    codec: TextCodec,
    adapter: _Adapter,
    samples: DecoderSamples | None,
    prompts: Sequence[Tokens],
    tolerance: Tolerance,
) -> dict[str, Any]:
    """Return the fields of a report on one adapter: ``onnx``, ``evaluation``, ``texts``, ``perplexity`` and ``passed``."""
    errors, torch = LogitErrors(), adapter.torch
    scores = _evaluation(session, codec, adapter, adapter.answers) if adapter.answers is not None else None
    kept = scores is None or keeps_metric(scores, tolerance)
    surprise = _perplexity(session, adapter.ref, torch, samples) if samples is not None else None
    if torch is None or samples is None:
        for prompt, stored in zip(prompts, adapter.stored, strict=True):
            errors.add(stored[0], session.logits(prompt, adapter.ref, start=-stored.shape[1]))
        onnx = errors.comparison()
        return {"onnx": onnx, "evaluation": scores, "perplexity": surprise, "passed": within(onnx, tolerance)}
    for prompt in samples.prompts:
        errors.add(torch.logits(prompt), session.logits(prompt, adapter.ref))
    onnx = errors.comparison()
    texts = _texts(session, adapter.ref, torch, samples.prompts, tolerance)
    passed = within(onnx, tolerance) and keeps_perplexity(surprise, tolerance) and kept
    if tolerance.absolute_error is not None:  # rounded weights give other texts
        passed &= texts.agree
    return {"onnx": onnx, "evaluation": scores, "texts": texts, "perplexity": surprise, "passed": passed}


def _evaluation(session: DecoderSession, codec: TextCodec, adapter: _Adapter, data: AnswerData) -> Evaluation:
    """Return how good the answers to the user's prompts are, the graph's and PyTorch's."""
    prompts, count = [row.asked for row in data.rows], data.measure.max_new_tokens
    onnx = graph_answers(session, codec, adapter.ref, prompts, count, adapter.ends)
    if adapter.torch is None:
        return measure_answers(data, onnx, None)
    pytorch = adapter.torch.answers(prompts, count, adapter.ends, codec.decode)
    return measure_answers(data, onnx, pytorch)


def _texts(
    session: DecoderSession,
    ref: AdapterRef | None,
    torch: TorchDecoder,
    prompts: Sequence[Tokens],
    tolerance: Tolerance,
) -> TextReport:
    got = continued(session, prompts, [ref] * len(prompts), NEW_TOKENS, session.layout.end_tokens)
    identical = ties = tokens = 0
    for prompt, answer in zip(prompts, got, strict=True):
        expected = torch.continued(prompt, NEW_TOKENS, session.layout.end_tokens)
        tokens += len(expected.tokens)
        differs = next(
            (at for at, pair in enumerate(zip(expected.tokens, answer, strict=False)) if pair[0] != pair[1]), None
        )
        if differs is None:
            identical += 1
        elif expected.margins[differs] <= 2 * (tolerance.absolute_error or 0.0):
            ties += 1
    return TextReport(prompts=len(prompts), identical=identical, ties=ties, tokens=tokens)


def _perplexity(
    session: DecoderSession, ref: AdapterRef | None, torch: TorchDecoder | None, samples: DecoderSamples
) -> Perplexity | None:
    if not samples.windows:
        return None
    onnx, count = perplexity(lambda tokens: session.logits(tokens, ref), samples.windows)
    if torch is None:
        return Perplexity(data=samples.source, tokens=count, onnx=onnx)
    expected, _ = perplexity(torch.logits, samples.windows)
    return Perplexity(data=samples.source, tokens=count, onnx=onnx, pytorch=expected)


def keeps_perplexity(measured: Perplexity | None, tolerance: Tolerance) -> bool:
    """Return False if the graph is more surprised by the text than is allowed."""
    if measured is None or measured.pytorch is None or tolerance.perplexity is None:
        return True
    return measured.onnx <= measured.pytorch * tolerance.perplexity


def _base(
    session: DecoderSession, prompts: Sequence[Tokens], expected: Sequence[np.ndarray], tolerance: Tolerance
) -> BaseReport:
    """Compare the graph with nothing fed with the graph before branches were inserted."""
    errors, equal = LogitErrors(), True
    for prompt, want in zip(prompts, expected, strict=True):
        got = session.logits(prompt)[-want.shape[1] :]
        equal &= np.array_equal(got, want[0])
        errors.add(want[0], got)
    found = errors.comparison()
    return BaseReport(**dict(found), bit_equal=equal, passed=within(found, tolerance))


def _mixed(session: DecoderSession, prompts: Sequence[Tokens], refs: Sequence[AdapterRef]) -> MixedReport:
    """Compare rows that advance together, with all adapters and the base in turn, with the same rows alone."""
    everyone: list[AdapterRef | None] = [*refs, None]
    chosen = [everyone[row % len(everyone)] for row in range(len(prompts))]
    errors = LogitErrors()
    together = DecoderBatch(session, prompts, chosen, new_tokens=_STEPS)
    steps = [[together.read(row)[-1] for row in range(len(prompts))]]
    for _ in range(_STEPS - 1):
        steps.append(list(together.advance([int(logits.argmax()) for logits in steps[-1]])))
    for row, prompt in enumerate(prompts):
        alone = DecoderBatch(session, [prompt], [chosen[row]], new_tokens=_STEPS)
        logits = alone.read(0)[-1]
        for number, step in enumerate(steps):
            if number:
                logits = alone.advance([int(steps[number - 1][row].argmax())])[0]
            errors.add(logits[None], step[row][None])
    found = errors.comparison()
    return MixedReport(**dict(found), passed=within(found, TEXT_TOLERANCES["fp32"]))


def raise_on_text_mismatch(report: VerificationReport, precision: str) -> None:
    """Raise :class:`ParityError` saying what differs, if the report says that a bundle differs from PyTorch."""
    if report.passed:
        return
    if report.base is not None and not report.base.passed:
        raise ParityError(
            f"Without an adapter the {precision} graph with branches is not the base's: {mismatch(report.base, report.tolerance)}."
        )
    rows: dict[str, Any] = {"": report} if report.onnx is not None else dict(report.adapters or {})
    for name, row in rows.items():
        where = f" with the adapter '{name}'" if name else ""
        if row.evaluation is not None and not keeps_metric(row.evaluation, report.tolerance):
            raise ParityError(lost_metric(row.evaluation, precision, report.tolerance))
        _raise_for(row.onnx, row.texts, row.perplexity, f"The {precision} graph{where}", report.tolerance)
    raise ParityError(
        "Rows of several adapters in one batch do not get what they get alone: please report this as a bug."
    )


def _raise_for(
    onnx: Comparison, texts: TextReport | None, surprise: Perplexity | None, graph: str, tolerance: Tolerance
) -> None:
    if (what := mismatch(onnx, tolerance)) is not None:
        raise ParityError(f"{graph} {what}.")
    if surprise is not None and not keeps_perplexity(surprise, tolerance):
        raise ParityError(
            f"{graph} has perplexity {surprise.onnx:.2f} on {surprise.data} where PyTorch has {surprise.pytorch:.2f} (allowed is "
            f"{tolerance.perplexity:g} times as much): choose a higher --precision."
        )
    if texts is not None and tolerance.absolute_error is not None and not texts.agree:
        raise ParityError(
            f"{graph} continues {texts.prompts - texts.identical - texts.ties} of {texts.prompts} prompts otherwise than PyTorch."
        )
