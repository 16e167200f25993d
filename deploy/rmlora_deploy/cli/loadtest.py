"""``rmlora-deploy loadtest``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rmlora.errors import ConfigError, InputError, ParityError, require
from rmlora.plots import check_plot_path
from rmlora.progress_display import ProgressDisplay
from rmlora.sample_data import SENTENCES
from rmlora.storage import check_writable, write_json
from rmlora.tasks import TASKS
from rmlora.wording import counted
from rmlora_deploy.cli.console import json_option, make_console, print_json

__all__ = ["command"]


@click.command("loadtest")
@click.argument("url", default="http://127.0.0.1:8000")
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Model to ask, the most popular first; repeatable.  [default: all adapters]",
)
@click.option("--seconds", type=float, default=30.0, show_default=True, help="Duration of the test.")
@click.option("--warmup", type=float, default=2.0, show_default=True, help="Seconds before counting begins.")
@click.option(
    "--clients", type=int, default=16, show_default=True, help="Closed loop: clients that wait for each answer."
)
@click.option("--rate", type=float, help="Open loop: requests per second, sent without waiting for answers.")
@click.option(
    "--zipf", type=float, default=1.0, show_default=True, help="Zipf exponent of the models' popularity; 0: all equal."
)
@click.option("--rows", type=int, default=1, show_default=True, help="Texts in a request.")
@click.option(
    "--texts", type=click.Path(path_type=Path), help="File with one text per line.  [default: a few sentences]"
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    help="JSON file with texts and expected answers, to check every answer.",
)
@click.option(
    "--retries",
    type=int,
    default=0,
    show_default=True,
    help="How often to send a request again after a 429, a 5xx or no answer; Retry-After is obeyed.",
)
@click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds to wait for an answer.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random choices.")
@click.option("--api-key", envvar="RMLORA_API_KEY", show_envvar=True, help="Key to send as a bearer token.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write the figures to this JSON file.")
@click.option("--plot", type=click.Path(path_type=Path), help="Plot latency to this .png, .svg or .pdf file.")
@json_option
def command(
    url: str, models: tuple[str, ...], texts: Path | None, reference: Path | None, api_key: str | None,
    output: Path | None, plot: Path | None, as_json: bool, **choices: Any,
) -> None:  # fmt: skip
    """Put the server at URL under load, and report latency, throughput and errors.

    Embedding models are asked for embeddings, those for token-classification for entities, those for question-answering for
    answers, the others to classify; those that read pairs get each text with the next one. Figures are of answered requests. In an open loop, latency counts from when a
    request was due, so that it shows if the server cannot keep up. The exit code is 3 if a
    request failed and 6 if an answer was wrong.

    \b
    Examples:
      rmlora-deploy loadtest http://127.0.0.1:8000 --seconds 60 --clients 32
      rmlora-deploy loadtest --rate 100 --zipf 0 --plot latency.png
      rmlora-deploy loadtest --model spam --model trec --rows 8 --json
    """
    require("httptools", "serve")
    from rmlora_deploy.loadtest.callers import check_models, list_models, run_load
    from rmlora_deploy.loadtest.load_plan import LoadPlan, Reference, read_texts
    from rmlora_deploy.loadtest.load_report import plot_load, summarize_load

    console = make_console(as_json=as_json)
    url = url.rstrip("/")
    expected = Reference.read(reference) if reference is not None else None
    given = tuple(expected.texts) if expected else tuple(read_texts(texts)) if texts else SENTENCES
    if plot is not None:
        check_plot_path(plot)
    if output is not None:
        check_writable(output)
    settings = LoadPlan(
        url=url, models=models or ("every",), texts=given, reference=expected if models else None, **choices
    )  # reports an invalid flag before the server is asked
    known = asyncio.run(list_models(url, api_key, adapters_only=not models, needed=not models))
    check_models(models, known)
    asked = models or tuple(known)
    tasks = {name: TASKS.get(known[name].task) if name in known else None for name in asked}
    embedders = frozenset(name for name, task in tasks.items() if task is not None and not task.outputs.has_labels)
    taggers = frozenset(name for name, task in tasks.items() if task is not None and task.outputs.kind == "tokens")
    answerers = frozenset(name for name, task in tasks.items() if task is not None and task.outputs.kind == "spans")
    if expected is not None and (others := taggers | answerers):
        raise ConfigError(
            f"--reference compares probabilities and vectors, and '{min(others)}' gives parts of texts: leave it out."
        )
    if answerers and settings.rows > 1:
        raise ConfigError(f"'{min(answerers)}' is asked one question in a request: leave --rows out.")
    pair_readers = frozenset(name for name in asked if name in known and known[name].reads_pairs)
    plan = replace(
        settings,
        models=asked,
        embedders=embedders,
        taggers=taggers,
        answerers=answerers,
        pair_readers=pair_readers,
        reference=expected,
    )
    with ProgressDisplay(console, "warming up", noun="s", plural="s") as display:

        def show_progress(requests: int, seconds: float) -> None:
            if seconds >= 0:
                display.update(seconds, total=plan.seconds, title="load", detail=f"{requests:,} answered")

        load = asyncio.run(run_load(plan, api_key, progress=show_progress))
    result = summarize_load(plan, load)
    if output is not None:
        write_json(output, result)
    if plot is not None:
        plot_load(plan, load, plot)
    if as_json:
        print_json(result)
    else:
        _show(console, result)
        for path in filter(None, (output, plot)):
            console.print(f"Written: {path}")
    _raise_failures(result)


def _show(console: Console, result: Mapping[str, Any]) -> None:
    table = Table("requests", "requests/s", "rows/s", "p50 ms", "p90", "p99", "max", "errors", "wrong")
    for column in table.columns:
        column.justify = "right"
    latency = result["latency_ms"] or {}
    table.add_row(
        f"{result['requests']:,}",
        f"{result['requests_per_second']:,.1f}",
        f"{result['rows_per_second']:,.1f}",
        *(f"{latency[key]:,.1f}" if latency else "–" for key in ("p50", "p90", "p99", "max")),
        ", ".join(f"{count} × {status}" for status, count in result["errors"].items()) or "0",
        str(result["wrong"]) if result["checked"] else "not checked",
    )
    console.print(table)
    loop = counted(result["clients"], "client") if result["loop"] == "closed" else f"{result['rate']:g} requests/s"
    console.print(
        f"{result['models_asked']} of {result['models']} models asked (Zipf {result['zipf']:g}), {loop}, "
        f"{result['rows_per_request']} text(s) per request, {result['seconds']:g} s"
        + (f"; {result['retried']} were sent again" if result["retried"] else "")
        + (f"; {result['not_sent']} were not sent because 2,000 were in progress" if result["not_sent"] else "")
        + "."
    )


def _raise_failures(result: Mapping[str, Any]) -> None:
    if result["wrong"]:
        raise ParityError(f"{result['wrong']} answers differ from the reference.")
    if failed := sum(result["errors"].values()):
        reasons = ", ".join(f"{count} × {status}" for status, count in result["errors"].items())
        raise InputError(f"{failed} of {result['requests']} requests failed ({reasons}).")
    if not result["requests"]:
        raise InputError("No request was answered in this time: increase --seconds.")
