"""What ``rmlora-deploy inspect`` prints: tables of an adapter, its spectra, its fit to a base, or a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from rich.console import Console
from rich.table import Table

from rmlora.adapter import Adapter
from rmlora.spectrum import AdapterSpectrum
from rmlora.wording import counted
from rmlora_deploy.bundles.asking import prompt_format
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.cli.adapter_table import show_adapters
from rmlora_deploy.cli.console import colored
from rmlora_deploy.cli.report_table import show_earlier, show_report
from rmlora_deploy.inspection.base_fit import Fit
from rmlora_deploy.inspection.bundle_report import describe_bundle
from rmlora_deploy.inspection.input_forms import FORMS, describe_forms
from rmlora_deploy.inspection.thresholds import describe_thresholds

__all__ = ["SHOWN", "show_adapter", "show_bundle", "show_fit", "show_spectra"]

SHOWN = 12
"""Modules, labels or operators listed before the rest is left out."""
_ANSWERS = {
    "softmax": "one label, with its probability (softmax)",
    "sigmoid": "a score for each label (sigmoid)",
    "none": "numbers (regression)",
}
"""Function that turns scores into answers → what the answers are."""
_KEY_VALUES = ("past_key_values.", "present.")
"""How the names of a language model's cache begin."""
_MEASURES = ("numerical", "stable", "effective")


def show_adapter(console: Console, adapter: Adapter, facts: Mapping[str, Any], *, show_all: bool) -> None:
    """Print the figures of an adapter (:func:`rmlora_deploy.inspection.adapter_report.describe_adapter`) and its modules."""
    grid = _facts(
        {
            "task": facts["task"] or "not recorded",
            "labels": _list(facts["labels"]),
            **_problem(facts),
            **({"reads": FORMS[adapter.input_form]} if adapter.input_form is not None else {}),
            "base": facts["base"]["model"] or "not recorded",
            "size": f"{facts['bytes'] / 1e6:.2f} MB: {facts['parameters']['factors']:,} parameters in "
            f"{counted(len(facts['modules']), 'module')}, {facts['parameters']['modules_to_save']:,} in modules_to_save",
            "modules_to_save": _list(sorted(facts["modules_to_save"])),
            "settings": _settings(facts["settings"]),
            **{f"{split} metrics": _metrics(scores) for split, scores in _scores(facts["metrics"])},
        }
    )
    console.print(colored(f"Adapter {adapter.source}", "bold"))
    console.print(grid)
    _show_modules(console, facts, show_all=show_all)


def _problem(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the row about what the adapter was trained to answer; none if it does not say."""
    kind = facts["problem_type"]
    if kind is None:
        return {}
    ranges = zip(facts["labels"] or (), facts["target_range"] or (), strict=False)
    learned = [f"{name} from {low:g} to {high:g} in training" for name, (low, high) in ranges]
    applies = [] if facts["threshold"] is None else [f"a label applies from a probability of {facts['threshold']:g}"]
    return {"problem type": "; ".join([str(kind), *applies, *learned[:SHOWN]])}


def _show_modules(console: Console, facts: Mapping[str, Any], *, show_all: bool) -> None:
    shown = facts["modules"] if show_all else facts["modules"][:SHOWN]
    prefix = _common_prefix([item["module"] for item in facts["modules"]])
    table = Table(f"module of {prefix}" if prefix else "module", "in → out", "rank", "alpha", "scale", *_MEASURES)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    for item in shown:
        rank = item["rank"] if item["active_rank"] == item["rank"] else f"{item['active_rank']} of {item['rank']}"
        table.add_row(
            item["module"].removeprefix(f"{prefix}."), f"{item['in']} → {item['out']}", str(rank), f"{item['alpha']:g}",
            f"{item['scale']:g}", f"{item['numerical_rank']}", f"{item['stable_rank']:.2f}", f"{item['effective_rank']:.2f}",
        )  # fmt: skip
    console.print(table)
    if len(shown) < len(facts["modules"]):
        more = counted(len(facts["modules"]) - len(shown), "more module")
        console.print(colored(f"… and {more}: see --all.", "dim"))


def _common_prefix(paths: list[str]) -> str:
    """Return the leading part of the module paths that all share; every path keeps at least its last part."""
    parts = [path.split(".")[:-1] for path in paths]
    shared = [step[0] for step in takewhile(lambda step: len(set(step)) == 1, zip(*parts, strict=False))]
    return ".".join(shared)


def show_spectra(console: Console, spectra: Mapping[str, AdapterSpectrum]) -> None:
    """Print the measures of rank of every adapter, by name."""
    table = Table("mean over modules", *(f"{name} rank" for name in _MEASURES), "largest σ", "smallest σ")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spectrum in spectra.items():
        values = spectrum.joint.singular_values
        table.add_row(
            name, f"{spectrum.numerical_rank:.2f}", f"{spectrum.stable_rank:.2f}", f"{spectrum.effective_rank:.2f}",
            f"{values[0]:.3g}", f"{values[-1]:.3g}",
        )  # fmt: skip
    console.print(table)


def show_fit(console: Console, fit: Fit) -> None:
    """Print whether an adapter fits a base, and the first modules that do not."""
    found = len(fit.modules) - len(fit.misfits)
    weights = {True: "the weights it was trained on", False: "other weights", None: "base not recorded"}
    verdict = "modules missing" if fit.fingerprint is None and fit.misfits else weights[fit.same_base]
    found_of = f"Fit to {fit.base}: {found} of {len(fit.modules)} modules found with the right shape; "
    console.print(colored(verdict, "red" if verdict == weights[False] else "", ".", before=found_of))
    for item in fit.misfits[:SHOWN]:
        console.print(colored("  ✗", "red", f" {item.module}: {item.problem}"))


def _merged_adapter(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the row about the adapter of a merged bundle; none if it does not say, as one with branches."""
    adapter = facts.get("adapter")
    if adapter is None:
        return {}
    return {
        "adapter": f"{adapter['source']} ({counted(adapter['modules'], 'module')}, {counted(adapter['parameters'], 'parameter')})"
    }


def show_bundle(console: Console, bundle: Bundle) -> None:
    """Print graph, inputs and outputs, adapters, files and verification of a bundle."""
    facts, function = describe_bundle(bundle), bundle.manifest.function_to_apply
    model = facts["model"]
    operators = ", ".join(f"{name} {count}" for name, count in list(model["operators"].items())[:SHOWN])
    console.print(colored(f"Bundle {facts['source']}", "bold"))
    console.print(
        _facts(
            {
                "task": facts["task"],
                **({"reads": forms} if (forms := describe_forms(bundle)) is not None else {}),
                "labels": _list(facts["labels"]),
                **({"answers": _ANSWERS[function]} if function is not None else {}),
                **({"labels apply": found} if (found := describe_thresholds(bundle)) is not None else {}),
                **({"pooling": str(bundle.pooling)} if bundle.pooling is not None else {}),
                "precision": f"{facts['precision']}, {facts['mode']}",
                **_decoder(bundle),
                "graph": f"{facts['nodes']} nodes, opset {model['opset']}, {model['bytes'] / 1e6:.1f} MB",
                "operators": operators,
                "base": facts["base"]["source"],
                **_merged_adapter(facts),
                "made by": facts["created_by"],
            }
        )
    )
    values = Table("", "name", "type", "shape")
    for role in ("inputs", "outputs"):
        kept = [item for item in model[role] if not item["name"].startswith(_KEY_VALUES)]
        for item in kept:
            shape = " × ".join(str(side) for side in item["shape"])
            values.add_row(role.removesuffix("s"), item["name"], item["dtype"], shape)
        if hidden := len(model[role]) - len(kept):
            values.add_row(role.removesuffix("s"), f"keys and values of {hidden // 2} layers", "", "")
    console.print(values)
    if bundle.mode == "branches":
        show_adapters(console, bundle)
    console.print(_files(facts["files"]))
    if bundle.manifest.verification is not None:
        show_report(console, bundle.manifest.verification)
        show_earlier(console, bundle.manifest.earlier_verifications)
    else:
        console.print(colored("Not verified:", "yellow", " run  rmlora-deploy verify  before you rely on this bundle."))


def _decoder(bundle: Bundle) -> dict[str, str]:
    """Return the rows about a language model; none for other bundles."""
    entry = bundle.manifest.decoder
    if entry is None:
        return {}
    maker = "ONNX Runtime GenAI's builder" if bundle.manifest.exporter == "genai" else "torch.onnx"
    recipe = f", recipe {entry.recipe}" if entry.recipe is not None else ""
    return {
        "built": f"by {maker} for {entry.built_for}{recipe}; loads in onnxruntime_genai as it is",
        "texts": f"of at most {entry.context_length} tokens, prompt and answer together",
        "prompts": _prompts(bundle),
    }


def _prompts(bundle: Bundle) -> str:
    """Return what becomes of prompts: as the adapters were trained, and else as the base takes them."""
    said = {"chat": "become the user's message of a chat", "raw": "are continued as they are"}
    usual = prompt_format(bundle.manifest, bundle.manifest.adapter)
    found = {name: prompt_format(bundle.manifest, entry) for name, entry in bundle.adapters.items()}
    others = [name for name, form in found.items() if form != usual]
    if not others:
        return said[usual]
    return f"{said[usual]}; with {', '.join(others)} they {said[found[others[0]]]}"


def _files(sizes: Mapping[str, int]) -> Table:
    table = Table("file", "MB")
    table.columns[1].justify = "right"
    for name, size in sizes.items():
        table.add_row(name, f"{size / 1e6:.2f}")
    return table


def _facts(facts: Mapping[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(colored(name, "dim"), value)
    return grid


def _settings(settings: Mapping[str, Any] | None) -> str:
    if settings is None:
        return "not recorded: a PEFT adapter from another program"
    rank, active = settings["rank"], settings["active_rank"]
    regularizers = {name: settings[name] for name in ("decorrelation", "orth_weight") if settings.get(name)}
    kind = "RM-LoRA" if active < rank or regularizers else "plain LoRA"
    masked = [f"{active} active in a step"] if active < rank else []
    parts = [f"{kind}: rank {rank}", *masked, f"alpha {settings['alpha']:g}"]
    parts += [f"{name} {value:g}" for name, value in regularizers.items()]
    if active < rank:
        parts += [f"{settings['mask_sharing']} masks", f"mode {settings['mask_mode']}"]
    return ", ".join(parts)


def _scores(metrics: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    found = [(split, (metrics or {}).get(split)) for split in ("validation", "test")]
    return [(split, scores) for split, scores in found if isinstance(scores, dict)]


def _metrics(scores: Mapping[str, Any]) -> str:
    numbers = {name: value for name, value in scores.items() if isinstance(value, float)}
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in numbers.items())


def _list(names: list[str] | None) -> str:
    if not names:
        return "none"
    return ", ".join(names[:SHOWN]) + (f" … ({len(names)} in all)" if len(names) > SHOWN else "")
