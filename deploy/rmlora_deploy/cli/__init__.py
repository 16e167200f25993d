"""The command line: one file per command, imported when the command is run."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
from typing import cast

import click

from rmlora._version import __version__
from rmlora.errors import RMLoRAError
from rmlora_deploy.cli.interrupts import came_from_interrupt, interrupt_message, raising_swallowed_interrupts
from rmlora_deploy.cli.output_encoding import never_fail_to_print

__all__ = ["cli", "main"]

_COMMANDS = {
    "train": "Train an RM-LoRA adapter.",
    "merge": "Merge an adapter into a checkpoint, streaming.",
    "mix": "Add up adapters, each with a weight.",
    "compress": "Keep an adapter's best directions.",
    "export": "Make an ONNX bundle from a base and adapters, and verify it.",
    "adapter": "Add, remove and list the adapters of a bundle.",
    "verify": "Compare a bundle with PyTorch and PEFT.",
    "bench": "Measure a bundle on every execution provider.",
    "predict": "Classify or embed inputs with a bundle, without torch.",
    "generate": "Continue a prompt with a language model's bundle, without torch.",
    "compare": "Show the texts of adapters side by side.",
    "serve": "Serve bundles over HTTP, batched across adapters.",
    "loadtest": "Put load on a server and measure its answers.",
    "inspect": "Show an adapter or a bundle.",
    "report": "Write a page about a bundle for its model card.",
}
"""Command → its line in ``--help``; the command is in the module of the same name, if that is free."""
_MODULES = {"compare": "compare_texts", "report": "report_file"}
"""Command → its module, where another module has its name."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"rmlora_deploy.cli.{_MODULES.get(cmd_name, cmd_name)}").command
        return cast(click.Command, command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, _COMMANDS, n=1)
            ctx.fail(
                f"No such command '{name}'. "
                + (f"Did you mean '{near[0]}'?" if near else f"The commands are {', '.join(_COMMANDS)}.")
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="rmlora-deploy")
def cli() -> None:
    """Take RM-LoRA and LoRA adapters from training to ONNX Runtime.

    \b
    A first run, from labeled data to a measured bundle:
      rmlora-deploy train   --base BASE --train train.jsonl --output adapter
      rmlora-deploy export  BASE --adapter adapter --output bundle
      rmlora-deploy predict bundle "a sentence"
      rmlora-deploy bench   bundle

    Exit codes: 0 done, 2 a wrong flag or setting, 3 unusable input, 4 a missing package, 5 a missing
    execution provider, 6 outputs that differ from PyTorch, 7 failed training, 8 unwritable output.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; an expected error becomes one line on stderr and an exit code."""
    never_fail_to_print()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it then misses optional kernels
    code: object = 0
    with raising_swallowed_interrupts():
        try:
            code = cli.main(arguments, prog_name="rmlora-deploy", standalone_mode=False)
        except RMLoRAError as error:
            _fail(str(error), error.exit_code)
        except (click.exceptions.Abort, KeyboardInterrupt) as error:
            _fail(interrupt_message(error, arguments), 130)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except BrokenPipeError:
            # The program that read our output has closed it: also drop what is still buffered.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            _fail(f"{error.filename or 'Reading or writing failed'}: {error.strerror or error}.", 8)
        except Exception as error:
            if not came_from_interrupt(error):
                raise
            _fail(interrupt_message(error, arguments), 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> None:
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)
