"""``rmlora-deploy compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from rmlora.errors import ConfigError, InputError
from rmlora.training.answer_metrics import ANSWER_METRICS, AnswerMetric, check_metric
from rmlora.training.conversations import TextColumns
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.text_codec import with_system
from rmlora_deploy.cli.comparison_output import comparison_as_json, show_comparison, show_standings
from rmlora_deploy.cli.console import (
    colored,
    json_option,
    make_console,
    print_json,
    refuse_raw_system,
    system_option,
    unique_names,
)
from rmlora_deploy.inference.generator import Generator
from rmlora_deploy.inference.questions import Question, read_questions
from rmlora_deploy.inference.text_comparison import Contestant, compare_texts

__all__ = ["command"]

_Choice = tuple[str, Path, str | None]
"""Name of a contestant, its bundle, and the adapter asked; None for a merged bundle and for the base."""

_OF_DATA = ("metric", "rows", "show", "messages_column", "prompt_column", "completion_column")
"""Options that mean nothing for prompts on the command line."""


@click.command("compare")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", nargs=-1)
@click.option(
    "--adapter", "-a", "adapters", multiple=True, metavar="NAME",
    help="Ask this adapter of a bundle with branches; repeatable.  [default: all of them]",
)  # fmt: skip
@click.option("--base", "ask_base", is_flag=True, help="Ask the base of a bundle with branches too, first.")
@click.option(
    "--with", "others", multiple=True, type=click.Path(path_type=Path), help="Ask this bundle too; repeatable."
)
@click.option(
    "--data", help="Ask what this file asks, and count the right answers: chats, or prompts with completions."
)
@click.option(
    "--metric", type=click.Choice(list(ANSWER_METRICS)), default="exact_match", show_default=True,
    help="With --data: the same text, the same JSON value, or ROUGE-L (extra metrics).",
)  # fmt: skip
@click.option("--rows", type=click.IntRange(1), help="With --data: ask only its first rows.  [default: all]")
@click.option(
    "--show", type=click.IntRange(0), default=3, show_default=True,
    help="With --data: rows shown side by side, the first whose texts differ.",
)  # fmt: skip
@click.option("--messages-column", help="Column of chats, lists of {role, content}.  [default: messages, …]")
@click.option("--prompt-column", help="Column of prompts.  [default: prompt, instruction, …]")
@click.option("--completion-column", help="Column of their answers.  [default: completion, response, …]")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Tokens of the longest answer."
)
@click.option(
    "--raw/--chat", default=None,
    help="Continue prompts as they are, or make them messages of a chat.  [default: as each adapter was trained]",
)  # fmt: skip
@system_option
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Prompts answered at once.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: ONNX Runtime's choice]")
@json_option
def command(
    bundle: Path, prompts: tuple[str, ...], adapters: tuple[str, ...], ask_base: bool, others: tuple[Path, ...],
    data: str | None, metric: AnswerMetric, rows: int | None, show: int, messages_column: str | None,
    prompt_column: str | None, completion_column: str | None, max_new_tokens: int, raw: bool | None, system: str | None,
    batch_size: int, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Ask adapters of a language model's BUNDLE, or several bundles, the same PROMPTS, and show their texts side by side.

    Use it to see what an adapter, a precision or another training has changed. The first column is what the others are
    compared with: where a text parts from it is marked, and counted over all prompts. Every token is the likeliest one, so the
    texts can be repeated. With --data the answers are also compared with the right ones. Needs no torch.

    Adapters of labels are compared by  rmlora-deploy predict --adapter … --adapter …, and the updates themselves by
    rmlora-deploy inspect --compare.

    \b
    Examples:
      rmlora-deploy compare home "Turn on the light" --adapter intents --adapter replies
      rmlora-deploy compare home --base --adapter intents --data test.jsonl --metric json
      rmlora-deploy compare home-fp32 --with home-int8 --adapter intents --data test.jsonl --json
    """
    console, notes = make_console(as_json=as_json), make_console(as_json=True)
    check_metric(metric)
    refuse_raw_system(system, raw=raw)
    choices = _choices(unique_names((bundle, *others)), adapters, ask_base=ask_base)
    columns = TextColumns(messages=messages_column, prompt=prompt_column, completion=completion_column)
    questions = _questions(prompts, system, data, columns, rows)
    opened = {path: Generator(Bundle.open(path), threads=threads) for _, path, _ in choices}
    comparison = compare_texts(
        [Contestant(name, opened[path], adapter) for name, path, adapter in choices], questions, metric=metric,
        batch_size=batch_size, max_new_tokens=max_new_tokens, raw=raw,
        on_progress=lambda name: notes.print(colored(f"Asking {name} …", "dim")),
    )  # fmt: skip
    if as_json:
        print_json(comparison_as_json(comparison))
        return
    shown = list(range(len(questions)))
    if data is not None:
        shown = [row for row in shown if not comparison.agrees(row)][:show]
    for row in shown:
        show_comparison(console, comparison, row)
    if len(questions) > 1:
        show_standings(console, comparison)


def _choices(paths: Mapping[str, Path], adapters: Sequence[str], *, ask_base: bool) -> list[_Choice]:
    """Return who is asked, in order: of every bundle the base if it is wanted, and then its adapters."""
    found: list[_Choice] = []
    bundles = {name: Bundle.open(path, check_files=False) for name, path in paths.items()}
    for name, bundle in bundles.items():
        if bundle.task.outputs.kind != "text":
            raise ConfigError(
                f"{bundle.path} is for {bundle.task.name} and generates no text: see its answers with  rmlora-deploy predict."
            )
        if bundle.mode == "merged":
            found.append((name, bundle.path, None))
            continue
        for adapter in adapters:
            bundle.adapter(adapter)
        label = "{}" if len(bundles) == 1 else f"{name} · {{}}"
        asked: list[str | None] = [*([None] if ask_base else []), *dict.fromkeys(adapters or bundle.adapters)]
        found += [(label.format(adapter or "base"), bundle.path, adapter) for adapter in asked]
    _refuse_idle(bundles, adapters, ask_base=ask_base)
    if len({name for name, _, _ in found}) < len(found):
        raise ConfigError("--base asks the base, and an adapter is called 'base' too: leave one of them out.")
    if len(found) < 2:
        raise ConfigError(
            f"There is nothing to compare {found[0][0] if found else 'with'} with: name another --adapter, the --base, or another bundle "
            "--with."
        )
    return found


def _refuse_idle(bundles: Mapping[str, Bundle], adapters: Sequence[str], *, ask_base: bool) -> None:
    """Raise :class:`ConfigError` for a choice of adapters where none can be chosen."""
    if (adapters or ask_base) and all(bundle.mode == "merged" for bundle in bundles.values()):
        flag = "--adapter" if adapters else "--base"
        raise ConfigError(
            f"{flag} is for bundles made with --mode branches; {', '.join(bundles)} has its adapter merged."
        )


def _questions(
    prompts: Sequence[str], system: str | None, data: str | None, columns: TextColumns, rows: int | None
) -> list[Question]:
    """Return what is asked, of the command line or of data."""
    if prompts and data is not None:
        raise ConfigError("Give either PROMPTS or --data: the right answers of the data go with its own prompts.")
    if system is not None and data is not None:
        raise ConfigError("--system goes with PROMPTS: chats in --data have system messages of their own.")
    if data is not None:
        return read_questions(data, columns)[:rows]
    if not prompts:
        raise InputError("There is nothing to ask: give prompts as arguments, or a file with --data.")
    _refuse_options_of_data()
    return [Question(with_system(prompt, system)) for prompt in prompts]


def _refuse_options_of_data() -> None:
    """Raise :class:`ConfigError` if an option was given that says how data is read or judged."""
    context = click.get_current_context()
    for name in _OF_DATA:
        if context.get_parameter_source(name) != ParameterSource.DEFAULT:
            raise ConfigError(f"--{name.replace('_', '-')} goes with --data, not with PROMPTS: leave it out.")
