"""A page about a bundle, fit for a model card: what it is, how it is run, what was verified, and what its adapters are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmlora.markdown_text import bars, code, escaped, facts, front_matter, table
from rmlora.spectrum import AdapterSpectrum
from rmlora.wording import counted
from rmlora_deploy.bundles.asking import prompt_format
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import AdapterSource
from rmlora_deploy.inspection.input_forms import describe_forms
from rmlora_deploy.inspection.mistakes_section import mistakes_section
from rmlora_deploy.inspection.other_programs import other_programs
from rmlora_deploy.inspection.thresholds import describe_thresholds
from rmlora_deploy.inspection.verification_section import verification_section

__all__ = ["SPECTRA_HEADING", "bundle_header", "model_card"]

SPECTRA_HEADING = "## Updates"
_SHOWN = 12
"""Labels, operators or singular values listed before the rest is left out."""
_ANSWERS = {
    "softmax": "one of the labels, with its probability",
    "sigmoid": "a score from 0 to 1 for each label by itself",
    "none": "a number for each label (regression)",
}
"""Function that turns scores into answers → what the answers are."""
_PROMPTS = {"chat": "the user's message of a chat", "raw": "a text to continue as it is"}


def bundle_header(bundle: Bundle) -> str:
    """Return the block of YAML with which the Hugging Face hub finds models."""
    manifest = bundle.manifest
    values: dict[str, Any] = {
        "library_name": "onnx",
        "pipeline_tag": manifest.task,
        "tags": ["onnx", "lora", "rmlora-deploy", manifest.precision],
    }
    if manifest.base is not None and manifest.base.hub:
        values["base_model"] = manifest.base.source
    return front_matter(values)


def model_card(
    bundle: Bundle,
    spectra: Mapping[str, AdapterSpectrum],
    sizes: Mapping[str, int],
    latency: Sequence[str] = (),
    *,
    name: str | None = None,
) -> str:
    """Return the page as Markdown, without front matter.

    Args:
        bundle: opened.
        spectra: adapter → spectrum of its updates; empty for a merged bundle.
        sizes: file of the bundle → bytes.
        latency: lines about it (:func:`rmlora_deploy.bench.latency_section.latency_section`); none if it was not measured.
        name: of the bundle; None for that of its directory.
    """
    name = name or Path(bundle.path).resolve().name
    parts = [
        [f"# {escaped(name)}", "", _summary(bundle), ""],
        ["## What it is", "", *_about(bundle, sum(sizes.values()))],
        ["## Use", "", *_use(bundle, name)],
        ["## Adapters", "", *_adapters(bundle)],
        ["## Verification", "", *verification_section(bundle.manifest)],
        mistakes_section(bundle.manifest.verification),
        ["## Speed", "", *latency] if latency else [],
        [SPECTRA_HEADING, "", *_updates(spectra)] if spectra else [],
        ["## Files", "", *_files(bundle, sizes)],
    ]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _summary(bundle: Bundle) -> str:
    manifest = bundle.manifest
    base = f" of {escaped(manifest.base.source)}" if manifest.base is not None else ""
    what = (
        f"with {counted(len(bundle.adapters), 'adapter')} that every row of a batch may choose from"
        if bundle.mode == "branches"
        else "with one adapter merged into its weights"
    )
    report = manifest.verification
    verdict = (
        "It was not verified."
        if report is None
        else f"It {'agrees' if report.passed else 'does NOT agree'} with {escaped(report.against)} ({escaped(report.date)})."
    )
    return f"An ONNX model{base} for {escaped(manifest.task)} in {manifest.precision}, {what}. {verdict}"


def _about(bundle: Bundle, size: int) -> list[str]:
    manifest, base, decoder = bundle.manifest, bundle.manifest.base, bundle.manifest.decoder
    graph = manifest.model
    built = manifest.optimization
    rounding = manifest.quantization
    operators = ", ".join(f"{escaped(kind)} {count}" for kind, count in list(graph.operators.items())[:_SHOWN])
    revision = f", revision {code(base.revision)}" if base is not None and base.revision else ""
    return facts(
        {
            "base": f"{escaped(base.source)}{revision}, fingerprint {code(base.fingerprint)}" if base is not None else None,
            "task": escaped(manifest.task),
            "precision": manifest.precision
            + (f", {rounding.activations} activations, {counted(rounding.products, 'product')} in 8 bits" if rounding else "")
            + (f", recipe {escaped(decoder.recipe)}" if decoder is not None and decoder.recipe else ""),
            "built for": escaped(decoder.built_for) if decoder is not None else None,
            "longest text": counted(decoder.context_length, "token") + ", prompt and answer together" if decoder is not None
            else counted(manifest.max_length, "token") if manifest.max_length else None,
            "a prompt is": _PROMPTS[prompt_format(manifest, manifest.adapter)] if decoder is not None else None,
            "reads": escaped(forms) if (forms := describe_forms(bundle)) is not None else None,
            "labels": _list(manifest.labels),
            "answers": _ANSWERS.get(str(manifest.function_to_apply)),
            "a label applies": escaped(found) if (found := describe_thresholds(bundle)) is not None else None,
            "vectors": escaped(bundle.pooling) if bundle.pooling is not None else None,
            "graph": f"opset {graph.opset}, {graph.bytes / 1e6:.1f} MB, "
            + f"{sum(graph.operators.values())} nodes ({operators})"
            + (f", {escaped(built.level)}" if built is not None else ""),
            "size": f"{size / 1e6:.1f} MB in all",
            "made by": escaped(manifest.created_by) + (f", exporter {escaped(manifest.exporter)}" if manifest.exporter else ""),
            "with": ", ".join(f"{escaped(tool)} {escaped(version)}" for tool, version in manifest.tools.items() if version),
        }
    )  # fmt: skip


def _use(bundle: Bundle, name: str) -> list[str]:
    """Return a command and a program, with the first adapter."""
    kind, adapter = bundle.task.outputs.kind, next(iter(bundle.adapters), None)
    method = {"text": "generate", "vector": "embed", "tokens": "tag", "spans": "answer"}.get(kind, "predict")
    command = "generate" if kind == "text" else "predict"
    flag = f" --adapter {adapter}" if adapter else ""
    asked = '"photo.jpg"' if bundle.task.inputs.modality == "image" else '"A text"'
    given = asked
    if bundle.input_form(adapter) == "pair":
        first, second = ("A question", "Its context") if kind == "spans" else ("A text", "Another text")
        asked, given = f'--pair "{first}" "{second}"', f'("{first}", "{second}")'
    chosen = f", {json.dumps(adapter)}" if adapter else ""
    return [
        "```console", "$ pip install 'rmlora-deploy[predict,cpu]'",
        f'$ rmlora-deploy {command} {_safe(name)} {asked}{flag}', "```", "",
        "```python", "from rmlora_deploy import load", "",
        f'print(load({json.dumps(name)}).{method}([{given}]{chosen})[0])', "```", "",
        *(["The directory also loads in `onnxruntime_genai` as it is.", ""] if bundle.manifest.decoder is not None
          and bundle.manifest.exporter == "genai" else []),
        *other_programs(bundle, _safe(name), adapter),
    ]  # fmt: skip


def _adapters(bundle: Bundle) -> list[str]:
    entries: dict[str, AdapterSource] = dict(bundle.adapters)
    if bundle.manifest.adapter is not None:
        entries = {bundle.manifest.adapter.source: bundle.manifest.adapter}
    if not entries:
        return ["None: add one with `rmlora-deploy adapter add`.", ""]
    rows = [
        [
            escaped(name), _list(getattr(entry, "labels", []), most=6),
            str(entry.rank) if hasattr(entry, "rank") else "", str(entry.modules), f"{entry.parameters:,}", _method(entry),
            _PROMPTS[prompt_format(bundle.manifest, entry)] if bundle.manifest.decoder is not None else "",
            "; ".join(_metrics(entry)), code(entry.sha256[:12]),
        ]
        for name, entry in entries.items()
    ]  # fmt: skip
    head = [
        "adapter",
        "labels",
        "rank",
        "modules",
        "parameters",
        "trained by",
        "a prompt is",
        "figures of its training",
        "sha256",
    ]
    return table(head, rows)


def _method(entry: AdapterSource) -> str:
    settings = entry.rmlora
    if not settings:
        return "another program (PEFT)"
    rank, active = settings.get("rank"), settings.get("active_rank")
    return escaped(f"RM-LoRA, {active} of {rank} directions active" if active != rank else f"RM-LoRA, rank {rank}")


def _metrics(entry: AdapterSource) -> Iterator[str]:
    for split, scores in (entry.metrics or {}).items():
        numbers = (
            {key: value for key, value in scores.items() if isinstance(value, float)}
            if isinstance(scores, dict)
            else {}
        )
        if numbers:
            shown = ", ".join(f"{escaped(key)} {value:.4g}" for key, value in numbers.items())
            yield f"{escaped(split)}: {shown}"


def _updates(spectra: Mapping[str, AdapterSpectrum]) -> list[str]:
    """Return how many dimensions the updates of every adapter use, with a picture of their singular values."""
    rows = [
        [
            escaped(name), f"{spectrum.numerical_rank:.1f}", f"{spectrum.stable_rank:.2f}", f"{spectrum.effective_rank:.2f}",
            f"{float(spectrum.joint.singular_values[0]):.3g}", bars(_mean_curve(spectrum)[: 2 * _SHOWN]),
        ]
        for name, spectrum in spectra.items()
    ]  # fmt: skip
    head = ["adapter", "numerical rank", "stable rank", "effective rank", "largest σ", "singular values"]
    return [
        "How many dimensions an update really uses, as means over its modules: the numerical rank counts the singular values "
        "that are not zero, the stable rank weighs them by energy, and the effective rank is the exponential of their "
        "entropy. The bars are the singular values, largest first, as geometric means over the modules.",
        "",
        *table(head, rows),
    ]


def _mean_curve(spectrum: AdapterSpectrum) -> list[float]:
    """Return the geometric mean over the modules of the first, second, … singular value."""
    curves = [item.singular_values[: item.numerical_rank] for item in spectrum.modules.values()]
    longest = max((len(curve) for curve in curves), default=0)
    return [float(np.exp(np.mean([np.log(curve[at]) for curve in curves if len(curve) > at]))) for at in range(longest)]


def _files(bundle: Bundle, sizes: Mapping[str, int]) -> list[str]:
    hashes = bundle.files
    rows = [
        [code(name), f"{size / 1e6:.2f}", code(hashes[name]) if hashes.get(name) else ""]
        for name, size in sizes.items()
    ]
    return table(["file", "MB", "SHA-256"], rows)


def _list(names: list[str], most: int = _SHOWN) -> str:
    shown = ", ".join(escaped(name) for name in names[:most])
    return shown + (f" … ({len(names)} in all)" if len(names) > most else "")


def _safe(name: str) -> str:
    """Return a name of a directory for a line of code: what could end the block or the command is left out."""
    return "".join(char if char.isalnum() or char in "._-" else "?" for char in name)
