"""``rmlora-deploy generate``."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rmlora.errors import ConfigError, InputError, some_of
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.bundles.manifest import PromptFormat
from rmlora_deploy.bundles.text_codec import with_system
from rmlora_deploy.cli.console import (
    colored,
    json_option,
    make_console,
    print_json,
    refuse_raw_system,
    system_option,
    write_text,
)
from rmlora_deploy.inference.generator import Generated, Generator, Piece
from rmlora_deploy.inference.sampling import Sampling
from rmlora_deploy.runtime import AdapterRef

__all__ = ["command"]


@click.command("generate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option(
    "--adapter", "-a", metavar="NAME", help="Adapter of a bundle with branches.  [default: none, the base answers]"
)
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=128, show_default=True, help="Tokens of the longest answer."
)
@click.option(
    "--raw/--chat",
    default=None,
    help="Continue PROMPT as it is, or make it the user's message of a chat.  [default: as the adapter was trained; if that "
    "is not recorded, and for the base, a chat if the model has a chat template]",
)
@system_option
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="Draw tokens at random; 0 takes the likeliest."
)
@click.option(
    "--top-p",
    type=float,
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens of this total probability.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random numbers.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: ONNX Runtime's choice]")
@json_option
def command(
    bundle: Path, prompt: str, adapter: str | None, max_new_tokens: int, raw: bool | None, system: str | None, temperature: float, top_p: float,
    seed: int, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Continue PROMPT with a language model's BUNDLE, without torch.

    The answer appears word by word. Each token is the likeliest one, so the same prompt gives the same answer, unless
    --temperature is given. PROMPT is put to the model as in the adapter's training: as the user's message of a chat, or,
    if it was trained with --raw or on plain texts, as it is; - reads it from stdin. Put a PROMPT that starts with a dash after "--".

    \b
    Examples:
      rmlora-deploy generate home-bundle "Turn on the light in the kitchen"
      rmlora-deploy generate both --adapter home "Is the front door locked ?" --max-new-tokens 64
      rmlora-deploy generate home "Turn on the light" --adapter intents --system "Answer with the command as JSON."
      rmlora-deploy generate story-bundle --raw "Once upon a time" --temperature 0.8 --json
    """
    console, notes = make_console(as_json=as_json), make_console(as_json=True)
    refuse_raw_system(system, raw=raw)
    sampling = Sampling(temperature, top_p, seed)
    opened = Bundle.open(bundle, check_files=False)
    if opened.task.outputs.kind != "text":
        raise ConfigError(
            f"{bundle} is for {opened.task.name} and generates no text: ask it with  rmlora-deploy predict."
        )
    text = _from_stdin() if prompt == "-" else prompt
    if os.path.isfile(text):
        notes.print(
            colored(
                "Note:", "yellow", f" this asks the name of a file; its text is asked with  … - < {shlex.quote(text)}"
            )
        )
    generator = Generator(Bundle.open(bundle), threads=threads)
    if adapter is None and opened.adapters:
        notes.print(
            colored("Note:", "yellow", f" the base answers; --adapter names one of {some_of(opened.adapters)}.")
        )
    began = time.perf_counter()
    asked = with_system(text, system)
    pieces = generator.stream(asked, adapter, max_new_tokens=max_new_tokens, raw=raw, sampling=sampling)
    as_it_is = generator.takes_raw(AdapterRef(adapter) if adapter is not None else None) if raw is None else raw
    if as_it_is and system is not None and generator.codec.chat is not None:
        who = f"'{adapter}'" if adapter is not None else "this model"
        notes.print(
            colored(
                "Note:",
                "yellow",
                f" {who} was trained to continue prompts as they are; --system makes a chat of this one.",
            )
        )
    prompt_tokens = generator.codec.encode(asked, raw=as_it_is)
    answer = _collect(generator, pieces, None if as_json else console, began, len(prompt_tokens))
    if as_json:
        print_json(_as_json(answer, text, adapter, "raw" if as_it_is and system is None else "chat"))
    else:
        notes.print(colored(_figures(answer), "dim"))


def _collect(
    generator: Generator, pieces: Iterator[Piece], console: Console | None, began: float, prompt_tokens: int
) -> Generated:
    """Print the pieces of an answer as they come, unless ``console`` is None, and return the whole."""
    tokens: list[int] = []
    first = 0.0
    finish = None
    for piece in pieces:
        first = first or time.perf_counter() - began
        finish = piece.finish
        if finish != "end":
            tokens.append(piece.token)
        if console is not None and piece.text:
            write_text(console, piece.text)
    if console is not None:
        console.print()
    text = generator.codec.decode(tokens)
    return Generated(text, tuple(tokens), finish or "length", prompt_tokens, time.perf_counter() - began, first)


def _as_json(answer: Generated, prompt: str, adapter: str | None, prompt_format: PromptFormat) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "prompt_format": prompt_format,
        "adapter": adapter,
        "text": answer.text,
        "tokens": list(answer.tokens),
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "first_token_seconds": round(answer.first_token_seconds, 4),
        "seconds": round(answer.seconds, 4),
    }


def _figures(answer: Generated) -> str:
    """Return a line on the speed of an answer."""
    ended = "ended by the model" if answer.finish == "end" else "cut at --max-new-tokens"
    count, after = len(answer.tokens), answer.seconds - answer.first_token_seconds
    speed = f", {(count - 1) / after:.0f} tokens/s after the first" if count > 1 and after > 0 else ""
    return f"{answer.prompt_tokens} + {count} tokens, {ended}; first token after {answer.first_token_seconds:.2f} s{speed}."


def _from_stdin() -> str:
    """Return what stdin holds, without the ends of its last lines, as ``$(…)`` gives it: spaces are part of a prompt."""
    try:
        return sys.stdin.read().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"Standard input is not {error.encoding} text: give it as UTF-8.") from None
