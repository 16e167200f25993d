"""One results file as Markdown: the rows with medians, ranges and ratios, and what was measured on which machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.markdown import markdown_table
from benchmarks.speed_page.verdicts import judge, sentences

__all__ = ["machine_line", "render_result", "render_table", "versions_line"]

BUSY = 0.1
"""Share of the cores that other programs may use before a row is marked."""
ANSWERS = {
    "accuracy": ("accuracy", ".4f"),
    "logit_error": ("rms logit error", ".1e"),
    "mean_cosine": ("mean cosine", ".4f"),
    "worst_cosine": ("smallest cosine", ".4f"),
    "worst_probability": ("largest error of a probability", ".1e"),
    "errors": ("failed requests", "d"),
}
"""What a row says of its answers: key of the report → column and format."""


def render_result(result: Mapping[str, Any]) -> str:
    """Return the table, the verdicts computed from it, its note and its machine."""
    parts = [render_table(result), *sentences(judge(result)), result["table"]["note"], versions_line(result)]
    if any(row.get("others_share") and row["others_share"] > BUSY for row in result["rows"]):
        parts.append(f"† Other programs used more than {BUSY:.0%} of the cores: measured on a busy machine.")
    return "\n\n".join(part for part in [*parts, machine_line(result)] if part)


def render_table(result: Mapping[str, Any]) -> str:
    """Return the Markdown table: median, range and ratio of each figure; the fastest of ours and of the peers is bold."""
    about = result["table"]
    more = [key for key in ANSWERS if any(key in row for row in result["rows"])]
    head = [f"{about['unit']} (× {about['reference']})", *about["columns"], *(ANSWERS[key][0] for key in more)]
    lines: list[list[str]] = []
    best = dict(_best(result))
    for row in result["rows"]:
        name = f"*{row['name']}*" if row["kind"] == "floor" else row["name"]
        if "not_measured" in row:
            lines.append([name, f"not measured: {_escape(row['not_measured'])}", *[""] * (len(head) - 2)])
            continue
        busy = "†" if row.get("others_share") and row["others_share"] > BUSY else ""
        cells = [_cell(row["figures"].get(column), bold=best.get(column) == row["name"]) for column in about["columns"]]
        answers = [f"{row[key]:{ANSWERS[key][1]}}" if key in row else "" for key in more]
        lines.append([name + busy, *cells, *answers])
    return markdown_table(head, lines)


def machine_line(result: Mapping[str, Any]) -> str:
    """Return the command, settings and machine in one sentence."""
    machine, settings = result["environment"], result["settings"]
    gpus = f", {', '.join(machine['gpus'])}" if machine.get("gpus") else ""
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    rounds = f"; medians of {settings['rounds']} alternating rounds, ranges in brackets" if "rounds" in settings else ""
    quick = ", with `--quick`: rough figures" if settings.get("quick") else ""
    return f"`{machine['command']}` on {machine['processor']}, {cores}{gpus}{rounds}{quick}."


def versions_line(result: Mapping[str, Any]) -> str:
    """Return the versions of every package that a row was measured with."""
    versions: dict[str, set[str]] = {}
    for row in result["rows"]:
        for package, version in row.get("versions", {}).items():
            versions.setdefault(package, set()).add(version)
    if not versions:
        return ""
    return (
        "Versions: "
        + ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))
        + "."
    )


def _best(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield column → the contestant, floors apart, with the best median."""
    pick = min if result["table"]["better"] == "lower" else max
    for column in result["table"].get("judged") or result["table"]["columns"]:
        able = [row for row in result["rows"] if row["kind"] != "floor" and column in row.get("figures", {})]
        if able:
            yield column, pick(able, key=lambda row: row["figures"][column]["median"])["name"]


def _cell(figure: Mapping[str, Any] | None, *, bold: bool) -> str:
    if figure is None:
        return "–"
    median = f"**{_number(figure['median'])}**" if bold else _number(figure["median"])
    between = " [{}, {}]".format(*map(_number, figure["range"])) if "range" in figure else ""
    ratio = f" × {figure['ratio']:.2f}" if "ratio" in figure else ""
    return f"{median}{between}{ratio}"


def _number(value: float) -> str:
    """Return three significant digits, and whole numbers above 1,000."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
