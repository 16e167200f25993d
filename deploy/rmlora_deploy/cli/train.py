"""``rmlora-deploy train``: train an RM-LoRA adapter."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from rmlora.config import PRESETS, RMLoRAConfig
from rmlora.errors import ConfigError
from rmlora.pooling import POOLING_MODES
from rmlora.scoring import ProblemType
from rmlora.tasks import TASKS
from rmlora.training.first_process import is_first_process
from rmlora.training.hub_repository import HubRepository
from rmlora.training.json_numbers import json_numbers
from rmlora.training.settings import BestMetric, Metric
from rmlora_deploy import api
from rmlora_deploy.cli.console import json_option, make_console, print_json
from rmlora_deploy.cli.train_output import next_command, show_result
from rmlora_deploy.cli.yaml_settings import load_yaml

__all__ = ["command"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Threshold(click.ParamType[float | str]):
    """``best`` or a number."""

    name = "best|float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Return ``best`` as it is, anything else as a number."""
        return "best" if value == "best" else float(click.FLOAT.convert(value, param, ctx))


def _pattern(_: click.Context, parameter: click.Parameter, values: Any) -> dict[str, float]:
    """Read ``NAME=NUMBER`` pairs."""
    result = {}
    for value in values:
        name, _sign, number = str(value).rpartition("=")
        try:
            result[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise click.BadParameter(
                f"'{value}' is not NAME=NUMBER, such as {'spam' if parameter.name == 'class_weights' else 'query'}=16",
                param=parameter,
            )
    return result


def _weights(context: click.Context, parameter: click.Parameter, values: Any) -> str | dict[str, float] | None:
    """Read ``balanced``, or ``LABEL=WEIGHT`` pairs."""
    if not values:
        return None
    return "balanced" if tuple(values) == ("balanced",) else _pattern(context, parameter, values)


def _method_options(function: _Function) -> _Function:
    """The flags of :class:`RMLoRAConfig`."""
    default = RMLoRAConfig()
    options = [
        click.option("--method", type=click.Choice(["rmlora", "lora"]), default="rmlora", show_default=True,
                     help="lora is plain LoRA: no regularizer, no masks."),
        click.option("--preset", type=click.Choice([name for name in PRESETS if name != "lora"]), default="default", show_default=True,
                     help="default is ours (docs/method.md), paper the published method; flags win."),
        click.option("--rank", type=int, default=default.rank, show_default=True, help="Rank r of each update: its number of directions."),
        click.option("--active-rank", type=int, help="Directions that are trained in a step; the others are masked.  [default: all, half with --preset paper]"),
        click.option("--alpha", type=float, default=default.alpha, show_default=True,
                     help="Updates are scaled by alpha/rank. With --orth-weight this is an update's real size, because the "
                          "penalty pulls the singular values of BA to 1."),
        click.option("--init", type=click.Choice(["gradient", "peft"]), default=default.init, show_default=True,
                     help="How A starts: along the gradient of 64 examples, or at PEFT's random values."),
        click.option("--decorrelation", type=float, default=default.decorrelation, show_default=True,
                     help="Turns the directions away from each other after each step, by this times the learning rate; 0 does not."),
        click.option("--orth-weight", type=float, default=default.orth_weight, show_default=True,
                     help="Weight of the paper's orthogonality penalty; published values lie in (0, 0.1]."),
        click.option("--squared", is_flag=True, help="Penalize squared norms."),
        click.option("--mask-sharing", type=click.Choice(["shared", "independent"]), default=default.mask_sharing,
                     show_default=True, help="Train the same directions of A and B in a step, or draw each anew."),
        click.option("--mask-mode", type=click.Choice(["gradient", "update"]), default=default.mask_mode, show_default=True,
                     help="gradient is the paper's; update also keeps the optimizer's momentum from moving masked directions."),
        click.option("--mask-interval", type=int, default=default.mask_interval, show_default=True, help="Steps for which a mask is kept."),
        click.option("--compensate/--no-compensate", default=default.compensate, show_default=True,
                     help="Lengthen the steps of masked training: Adam moves a direction that is masked half of the time 0.7 times as far."),
        click.option("--mask-seed", type=int, default=default.seed, show_default=True, help="Seed of the masks."),
        click.option("--target-modules", multiple=True, default=["all-linear"], show_default=True,
                     help="End of the names of modules to adapt, repeatable; or one regular expression for whole names."),
        click.option("--exclude-modules", multiple=True, help="End of the names of modules to leave out; repeatable."),
        click.option("--modules-to-save", multiple=True,
                     help="Module to train in full and save; the head, and modules the base lacks, are added automatically."),
        click.option("--dropout", type=float, default=default.dropout, show_default=True, help="Dropout on the input of A."),
        click.option("--rslora", is_flag=True, help="Scale by alpha/√rank."),
        click.option("--rank-pattern", multiple=True, callback=_pattern, metavar="NAME=RANK", help="Rank for modules of this name; repeatable."),
        click.option("--alpha-pattern", multiple=True, callback=_pattern, metavar="NAME=ALPHA", help="Alpha for modules of this name; repeatable."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _run_options(function: _Function) -> _Function:
    """The flags of :class:`TrainSettings`."""
    options = [
        click.option("--base", required=True, help="Checkpoint directory, .gguf file or hub name."),
        click.option("--train", "train_data", required=True, help="csv, tsv, jsonl or parquet file, image folder, or hub name[:split]."),
        click.option("--validation", help="Validation data, in the same forms.  [default: a share of --train]"),
        click.option("--test", help="Test data, in the same forms; its metrics are written into the package."),
        click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="Package directory to write."),
        click.option("--task", type=click.Choice(list(TASKS)), default="text-classification", show_default=True, help="What the adapter is for."),
        click.option("--text-column", help="Column of the texts, of words for token-classification, or of questions.  [default: text, sentence, …; tokens, words, text; question]"),
        click.option("--pair-column", help="Column of the second text of a pair, or of the contexts of questions.  [default: recognized, as in premise and hypothesis, query and answer]"),
        click.option("--label-column", help="Column of the labels, tags, answers or scores of pairs; of a CoNLL file its number.  [default: label, class, …; ner_tags, tags, entities, …; answers; score, similarity, …]"),
        click.option("--labels", metavar="A,B,C|FILE", help="Label names in the order of the outputs, or a file of them; data may name labels or number them from 0.  [default: those in --train]"),
        click.option("--problem-type", type=click.Choice(get_args(ProblemType)),
                     help="What the label column holds: one label per row, several (a list, or a|b), or a number to predict.  [default: what its cells can only mean; else asks]"),
        click.option("--skip-empty", is_flag=True, help="Leave out rows without text or label; without it they are an error."),
        click.option("--encoding", help="Encoding of csv, tsv and json files, such as cp1252.  [default: UTF-8, or what a byte order mark says]"),
        click.option("--image-column", help="Column of the images.  [default: image, path, …]"),
        click.option("--validation-fraction", type=float, default=0.1, show_default=True, help="Share of --train used for validation."),
        click.option("--epochs", type=float, default=5.0, show_default=True, help="Passes over the data."),
        click.option("--batch-size", type=int, default=32, show_default=True, help="Examples per batch and process."),
        click.option("--gradient-accumulation", type=int, default=1, show_default=True, help="Batches per optimizer step."),
        click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Peak learning rate."),
        click.option("--warmup-ratio", type=float, default=0.06, show_default=True, help="Share of steps in which the learning rate rises to its peak."),
        click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Weight decay of AdamW."),
        click.option("--max-grad-norm", type=float, default=1.0, show_default=True, help="Clip the task's gradient to this norm; 0 does not clip."),
        click.option("--max-length", type=int, help="Tokens that longer texts are cut to, at their end, or of a window of a context.  [default: 128; 256 for token-classification; 384 for question-answering; 1024 for generation]"),
        click.option("--group-by-length/--no-group-by-length", default=None,
                     help="Batch texts of similar length: less padding, up to twice as fast.  [default: for generation without --packing]"),
        click.option("--gradient-checkpointing", is_flag=True, help="Compute activations twice: much less memory, about a third more time."),
        click.option("--image-size", type=int, help="Height and width of images in pixels.  [default: the base's]"),
        click.option("--eval-steps", "--save-steps", "eval_steps", type=int, help="Steps between evaluations, each with a checkpoint.  [default: after every epoch]"),
        click.option("--patience", type=int, help="Stop after so many evaluations in a row without a better --best-metric.  [default: train all epochs]"),
        click.option("--class-weights", multiple=True, callback=_weights, metavar="balanced|LABEL=WEIGHT",
                     help="Let rare labels count more in the loss: balanced counts all labels alike; LABEL=WEIGHT, repeatable, multiplies one."),
        click.option("--label-smoothing", type=float, default=0.0, show_default=True,
                     help="Share of each target that is spread over all labels, e.g. 0.1: less confident answers."),
        click.option("--threshold", type=_Threshold(), default="0.5", show_default=True,
                     help="Several labels: probability from which a label applies, or best for the one with the best micro F1 on the validation data; it is recorded."),
        click.option("--best-metric", type=click.Choice(get_args(BestMetric)),
                     help="Validation metric that chooses the checkpoint to keep.  [default: accuracy; micro_f1 for several labels, pearson for numbers, f1 for token-classification and question-answering, loss for generation; spearman, ndcg_at_10 or accuracy for feature-extraction, recall_at_1 for image-feature-extraction]"),
        click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True,
                     help="Number format that training computes in."),
        click.option("--seed", type=int, default=42, show_default=True, help="Seed of the new head, data order and dropout."),
        click.option("--seeds", type=int, default=1, show_default=True,
                     help="Runs to train one after another, with --seed, --seed + 1, …: shows mean and spread, keeps the best by validation."),
        click.option("--run-dir", type=click.Path(path_type=Path), help="Checkpoints and TensorBoard logs.  [default: OUTPUT.run]"),
        click.option("--revision", help="Branch, tag or commit of a hub base."),
        click.option("--trust-remote-code", is_flag=True, help="Run code that comes with the base. Only for sources you trust."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _text_generation_options(function: _Function) -> _Function:
    """The flags of :class:`TrainSettings` for ``--task text-generation``."""
    options = [
        click.option("--messages-column", help="text-generation: column of chats, lists of {role, content}.  [default: messages, …]"),
        click.option("--prompt-column", help="text-generation, text2text-generation: column of prompts.  [default: prompt, instruction, …]"),
        click.option("--completion-column", help="text-generation, text2text-generation: column of their answers.  [default: completion, response, …]"),
        click.option("--raw", is_flag=True, help="text-generation: join prompt and completion as they stand, without the base's chat template."),
        click.option("--skip-long", is_flag=True, help="text-generation, text2text-generation: leave out rows whose answer lies beyond --max-length; without it they are an error."),
        click.option("--packing", is_flag=True,
                     help="text-generation: put short examples of a batch end to end, where they do not see each other: the same loss, less padding."),
        click.option("--load-in-4bit", is_flag=True,
                     help="text-generation: round the frozen base to 4 bits (NF4) while training, as QLoRA does; needs the extra qlora."),
        click.option("--metric", type=click.Choice(get_args(Metric)),
                     help="text-generation, text2text-generation: what to measure on generated answers; rougeL needs the extra metrics.  [default: only loss and perplexity]"),
        click.option("--max-new-tokens", type=int, default=128, show_default=True, help="text-generation, text2text-generation: longest answer that is generated for --metric."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def _embedding_options(function: _Function) -> _Function:
    """The flags of :class:`TrainSettings` for embeddings of texts and images."""
    options = [
        click.option("--negative-column", help="feature-extraction: column of texts that do not belong to the first.  [default: negative, if there is one]"),
        click.option("--pooling", type=click.Choice(POOLING_MODES),
                     help="Embeddings: what makes a vector: all tokens, the first or the last, or (images) what the base pools itself.  [default: as the base's files say, else mean for texts and the best that the base has for images]"),
        click.option("--normalize/--no-normalize", default=None,
                     help="Embeddings: divide a vector by its length.  [default: as the base's files say, else do]"),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


@click.command("train")
@click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False, readable=False),
              is_eager=True, expose_value=False,
              callback=load_yaml, help="YAML file of settings named like the flags; flags win.")  # fmt: skip
@_run_options
@_embedding_options
@_text_generation_options
@_method_options
@click.option(
    "--resume/--no-resume", default=True, show_default=True, help="Continue an interrupted run with the same settings."
)
@click.option("--overwrite", is_flag=True, help="Replace the output directory if it exists.")
@click.option(
    "--push-to-hub",
    metavar="NAME",
    help="Send the adapter to this repository of the Hugging Face hub, which is made before training if it is new.",
)
@click.option("--hub-private", is_flag=True, help="A new repository of --push-to-hub is for its owner only.")
@json_option
def command(
    resume: bool, overwrite: bool, push_to_hub: str | None, hub_private: bool, as_json: bool, **flags: Any
) -> None:
    """Train an RM-LoRA adapter and write it as a package that PEFT loads.

    The rank directions of each update are kept apart (--decorrelation), so that all of them are used; --preset paper is the
    published method, which also masks half of them in every step. docs/method.md explains both. The checkpoint with the best validation metric is kept. To
    continue a run that was killed, give the same command again. To train in several processes:
    `torchrun --no-python --nproc-per-node 2 rmlora-deploy train …`, or `accelerate launch --no_python rmlora-deploy train …`.

    \b
    Examples:
      rmlora-deploy train --base MiniLM --train data/sms/train.jsonl --output spam
      rmlora-deploy train --config run.yaml --rank 4 --active-rank 2
      rmlora-deploy train --task image-classification --base dinov2 --train photos --output photos-adapter
      rmlora-deploy train --task token-classification --base MiniLM --train slots.jsonl --output slots
      rmlora-deploy train --task question-answering --base deberta-v3-base --train train-v2.0.json --output squad
      rmlora-deploy train --task feature-extraction --base MiniLM --train questions.jsonl --output search
      rmlora-deploy train --task image-feature-extraction --base dinov2 --train photos --output look-alikes
      rmlora-deploy train --task text-generation --base SmolLM2-135M-Instruct --train chats.jsonl --metric exact_match -o chats

    Data for token-classification has lists of words (tokens) and of tags (ner_tags), or texts with entities ({start, end, label}),
    or is a CoNLL file. Data for question-answering is a file of SQuAD, or has its columns question, context and answers.

    Data for feature-extraction (embeddings) has two texts in a row: with a score (sentence1, sentence2, score), or texts that
    belong together (query/answer, anchor/positive, …), perhaps with a third that does not (negative). That for
    image-feature-extraction is a folder of images with a subfolder for all that belong together, or images with labels.

    Data for text-generation (causal language models) has a column `messages` (chats, for a base with a chat template), or a
    prompt and what answers it (prompt/completion, prompt/response, instruction/input/output, question/answer), or a column
    `text`. Only answers are learned; all of a text is. text2text-generation (models with encoder and decoder, such as T5)
    takes prompts and answers.
    """
    console = make_console(as_json=as_json)
    config = _method(flags)
    words = {name: flags[name] for name in ("base", "revision", "task")}
    if hub_private and push_to_hub is None:
        raise ConfigError("--hub-private is for a new repository: name it with --push-to-hub.")
    repository = None
    if push_to_hub is not None and is_first_process():
        repository = HubRepository.make(push_to_hub, private=hub_private)
    result = api.train(
        flags.pop("base"), flags.pop("train_data"), flags.pop("output"), config=config, console=console, resume=resume,
        overwrite=overwrite, **flags,
    )  # fmt: skip
    if not result.main_process:
        return
    if as_json:
        address = {"hub": repository.upload(result.output)} if repository is not None else {}
        print_json(json_numbers({**dataclasses.asdict(result), "output": str(result.output), **address}))
        return
    show_result(console, result, next_command(result.output, words))
    if repository is not None:
        console.print(f"Sent to {repository.upload(result.output)}")


def _method(flags: dict[str, Any]) -> RMLoRAConfig:
    """Take the flags of :class:`RMLoRAConfig` out of ``flags`` and return the configuration.

    Raises:
        ConfigError: ``--method lora`` with a flag that plain LoRA has no use for.
    """
    preset = flags["preset"]
    _apply_preset(flags)
    method, rank = flags.pop("method"), flags["rank"]
    if flags["active_rank"] is None:
        flags["active_rank"] = max(1, rank // 2) if preset == "paper" else rank
    if method == "lora" and flags["active_rank"] != rank:
        raise ConfigError(
            "--method lora trains every direction in every step: leave --active-rank out, or use --method rmlora."
        )
    flags["target_modules"] = _targets(flags["target_modules"])
    for name, rank in flags["rank_pattern"].items():
        if not float(rank).is_integer():
            raise ConfigError(f"The rank of '{name}' must be a whole number, not {rank}: change --rank-pattern.")
    flags["rank_pattern"] = {name: int(rank) for name, rank in flags["rank_pattern"].items()}
    names = [item.name for item in dataclasses.fields(RMLoRAConfig) if item.name != "seed"]
    return RMLoRAConfig(seed=flags.pop("mask_seed"), **{name: flags.pop(name) for name in names if name in flags})


def _apply_preset(flags: dict[str, Any]) -> None:
    """Take ``preset`` out of ``flags`` and set what it says, where neither a flag nor the YAML file does.

    Raises:
        ConfigError: a setting that plain LoRA does not have, with ``--method lora``.
    """
    preset, context = flags.pop("preset"), click.get_current_context()
    plain = flags["method"] == "lora"
    if plain and preset != "default":
        raise ConfigError(f"--method lora is plain LoRA and --preset {preset} is not: leave one of them out.")
    for name, value in PRESETS["lora" if plain else preset].items():
        if name == "active_rank":  # a share of the rank, see _method
            continue
        if context.get_parameter_source(name) == ParameterSource.DEFAULT:
            flags[name] = value
        elif plain and flags[name] != value:
            given = "" if flags[name] is True else f" {flags[name]}"
            flag = f"--{name.replace('_', '-')}{given}"
            raise ConfigError(f"--method lora is plain LoRA, without masks and regularizer: leave {flag} out.")


def _targets(values: Sequence[str]) -> str | tuple[str, ...]:
    """Return the target modules as PEFT takes them: ``all-linear``, a regular expression, or endings of names.

    Raises:
        ConfigError: an expression among several values, or an invalid one.
    """
    expressions = [value for value in values if not re.fullmatch(r"[\w.-]+", value)]
    if tuple(values) == ("all-linear",):
        return "all-linear"
    if not expressions:
        return tuple(values)
    if len(values) > 1:
        raise ConfigError(
            f"--target-modules has {len(values)} values, of which '{expressions[0]}' is a regular expression: give endings of "
            "names, or a single expression with | between the alternatives."
        )
    try:
        re.compile(expressions[0])
    except re.error as error:
        raise ConfigError(f"--target-modules '{expressions[0]}' is not a regular expression: {error}.") from None
    return expressions[0]
