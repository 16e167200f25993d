"""The model card of a trained adapter: what it is, what was measured, and how to use it, with the header that the hub reads."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rmlora.markdown_text import escaped, facts, front_matter, one_line, table
from rmlora.pooling import Pooling
from rmlora.tasks import Task
from rmlora.training.result import metric_name
from rmlora.training.source_name import on_hub, source_name
from rmlora.wording import counted

__all__ = ["adapter_card"]

_SPLITS = ("validation", "test")
_SENTENCE_TRANSFORMERS = """\
With sentence-transformers, which pools as in training:

```python
from sentence_transformers import SentenceTransformer

encoder = SentenceTransformer({name})
```

"""
_SHOWN = 20
"""Labels listed before the rest is left out."""
_HUB_METRICS = {
    "macro_f1": "f1",
    "micro_f1": "f1",
    "samples_f1": "f1",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "rougeL": "rouge",
}
"""Metric of training → what the hub calls it, where that differs."""


def adapter_card(
    name: str,
    task: Task,
    metadata: Mapping[str, Any],
    *,
    choice: str,
    warnings: Sequence[str],
    license: Mapping[str, str] | None = None,
) -> str:
    """Return the page as Markdown, with a header in YAML; no path of this machine is in it.

    Args:
        name: of the package's directory.
        task: of the adapter.
        metadata: content of ``rmlora.json``, with base and data as they were given.
        choice: sentence that says which checkpoint was kept and why.
        warnings: of the run.
        license: of the base, as the hub has it in a header (:mod:`rmlora.training.base_license`).
    """
    settings = metadata["training"]["settings"]
    base = source_name(settings["base"])
    parts = [
        [f"# {escaped(name)}", "", _summary(task, metadata, base), ""],
        ["## What it is", "", *_about(task, metadata, base, license or {})],
        ["## Evaluation", "", escaped(choice), "", *_figures(metadata["metrics"]), "![Training](training.png)", ""],
        ["## Limits", "", "Training warned:", "", *(f"* {escaped(line)}" for line in warnings), ""] if warnings else [],
        ["## Use", "", *_use(name, task, metadata, base)],
    ]
    body = "\n".join(line for part in parts for line in part).rstrip() + "\n"
    return front_matter({**_header(name, task, metadata), **(license or {})}) + "\n" + body


def _header(name: str, task: Task, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the hub reads; the base is named only if it is there too."""
    source, tags = str(metadata["training"]["settings"]["base"]), ["lora", "rmlora"]
    header: dict[str, Any] = {"library_name": "peft", "pipeline_tag": task.name, "tags": tags}
    if on_hub(source):
        header["base_model"] = source
        tags.append(f"base_model:adapter:{source}")
    results = list(_results(task, metadata))
    if results:
        header["metrics"] = sorted({metric["type"] for result in results for metric in result["metrics"]})
        header["model-index"] = [{"name": one_line(name), "results": results}]
    return header


def _results(task: Task, metadata: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the figures of each split as the hub's ``model-index`` has them; what is no number for YAML is left out."""
    settings = metadata["training"]["settings"]
    for split in _SPLITS:
        metrics = [
            {"type": _HUB_METRICS.get(key, key), "name": metric_name(key), "value": round(value, 4)}
            for key, value in metadata["metrics"].get(split, {}).items()
            if math.isfinite(value) and abs(value) < 1e15 and key != "confidence"  # JSON's 1e+16 is a text in YAML
        ]
        if metrics:
            data = one_line(source_name(settings[split] or settings["train"]))
            kind = data.partition(":")[0] if on_hub(settings[split] or settings["train"]) else "unknown"
            yield {
                "task": {"type": task.name},
                "dataset": {"name": data, "type": kind, "split": split},
                "metrics": metrics,
            }


def _summary(task: Task, metadata: Mapping[str, Any], base: str) -> str:
    method = metadata["rmlora"]
    kind = "an RM-LoRA adapter" if method["decorrelation"] or _is_masked(method) else "a LoRA adapter"
    return f"This is {kind} for {escaped(task.name)}, trained on {escaped(base)} with rmlora-deploy and stored in PEFT's format."


def _is_masked(method: Mapping[str, Any]) -> bool:
    return bool(method["orth_weight"]) or method["active_rank"] != method["rank"]


def _about(task: Task, metadata: Mapping[str, Any], base: str, license: Mapping[str, str]) -> list[str]:
    training, method = metadata["training"], metadata["rmlora"]
    settings, labels = training["settings"], metadata.get("labels") or []
    shown = ", ".join(escaped(label) for label in labels[:_SHOWN])
    more = f" … ({len(labels)} in all)" if len(labels) > _SHOWN else ""
    return facts(
        {
            "base": escaped(base) + (f", revision {escaped(settings['revision'])}" if settings["revision"] else ""),
            "task": escaped(task.name),
            "license of the base": escaped(license.get("license_name") or license.get("license") or ""),
            "labels": shown + more,
            "kind of answer": escaped(metadata.get("problem_type") or "").replace("\\_", " "),
            "a label applies": _applies(metadata.get("threshold")),
            "input": escaped(metadata.get("input_form") or metadata.get("prompt_format") or ""),
            "vectors": _vectors(metadata),
            "training data": escaped(source_name(settings["train"])),
            "kind of rows": escaped(metadata.get("trained_on") or ""),
            "rows": ", ".join(f"{split} {count:,}" for split, count in metadata["metrics"]["examples"].items()),
            "rank": f"{method['rank']}, {method['active_rank']} active in a step, alpha {method['alpha']:g}",
            "trained parameters": f"{metadata['metrics']['trainable_parameters']:,}",
            "learning rate": f"{settings['learning_rate']:g}",
            "batch size": f"{settings['batch_size'] * settings['gradient_accumulation']} per process",
            "length": f"{counted(training['steps'], 'step')} of at most {settings['epochs']:g} epochs",
            "precision": escaped(settings["precision"]),
            "seed": str(settings["seed"]),
            "made with": ", ".join(f"{tool} {escaped(found)}" for tool, found in training["versions"].items()),
        }
    )


def _applies(threshold: float | None) -> str:
    return f"from a probability of {threshold:g}" if threshold is not None else ""


def _vectors(metadata: Mapping[str, Any]) -> str:
    pooling = metadata.get("pooling")
    if pooling is None:
        return ""
    return f"{metadata['dimensions']} dimensions, {Pooling(pooling['mode'], pooling['normalize'])}"


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    splits = [split for split in _SPLITS if split in metrics]
    names = dict.fromkeys(key for split in splits for key in metrics[split])
    rows = [
        [
            escaped(metric_name(key)),
            *(f"{metrics[split][key]:.4f}" if key in metrics[split] else "" for split in splits),
        ]
        for key in names
    ]
    return table(["metric", *splits], rows)


def _use(name: str, task: Task, metadata: Mapping[str, Any], base: str) -> list[str]:
    """Return a program that loads the adapter with PEFT, and the commands that merge and export it."""
    settings, labels = metadata["training"]["settings"], metadata.get("labels")
    revision = f", revision={json.dumps(settings['revision'])}" if settings["revision"] else ""
    head = f", num_labels={len(labels)}, ignore_mismatched_sizes=True" if labels else ""
    flags = ["--revision", settings["revision"]] if settings["revision"] else []
    trusted = settings["trust_remote_code"]
    commands = [["merge", base, name, *flags, "--output", f"{name}-merged"]]
    if task.not_exported is None:
        commands.append(
            [
                "export",
                base,
                "--adapter",
                name,
                *flags,
                *(["--trust-remote-code"] if trusted else []),
                "--output",
                f"{name}-bundle",
            ]
        )
    pools_texts = bool(metadata.get("pooling")) and task.inputs.modality == "text"
    # AutoModel builds both halves of a model of images and texts
    kind = str(metadata["architecture"]) if metadata.get("pooling") and not pools_texts else task.auto_class
    return [
        "```python", "from peft import PeftModel", f"from transformers import {kind}", "",
        f"base = {kind}.from_pretrained({json.dumps(base)}{revision}{head}{', trust_remote_code=True' if trusted else ''})",
        f"model = PeftModel.from_pretrained(base, {json.dumps(name)}).eval()", "```", "",
        *(_SENTENCE_TRANSFORMERS.format(name=json.dumps(name)).splitlines() if pools_texts else []),
        "Merged into the base, or exported to ONNX:" if len(commands) > 1 else "Merged into the base:", "",
        "```console", *(f"$ {one_line(shlex.join(['rmlora-deploy', *words]))}" for words in commands), "```", "",
    ]  # fmt: skip
