"""Measuring generated answers on a user's data: those of the graph beside those of PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rmlora.errors import ConfigError, InputError
from rmlora.tasks import Task
from rmlora.training.answer_metrics import AnswerMetric, check_metric, score_answers
from rmlora.training.data import Columns
from rmlora_deploy.bundles.report import Evaluation
from rmlora_deploy.bundles.text_codec import TextCodec
from rmlora_deploy.runtime import AdapterRef
from rmlora_deploy.runtime.decoder.decoder_session import DecoderSession
from rmlora_deploy.verification.continued import continued
from rmlora_deploy.verification.exchanges import Exchange, read_exchanges

__all__ = ["ANSWER_TOKENS", "AnswerData", "AnswerMeasure", "graph_answers", "measure_answers", "read_answers"]

ANSWER_TOKENS = 128
"""Tokens of the longest answer, unless the caller says otherwise."""

_BATCH = 16
"""Prompts that are answered at a time."""


@dataclass(frozen=True)
class AnswerMeasure:
    """How generated answers are judged."""

    metric: AnswerMetric
    max_new_tokens: int = ANSWER_TOKENS

    @classmethod
    def of(cls, metric: AnswerMetric | None, max_new_tokens: int | None, *, task: Task, data: bool) -> Self | None:
        """Return what the caller asked for; None for nothing.

        Args:
            metric: on the command line ``--metric``.
            max_new_tokens: on the command line ``--max-new-tokens``; None takes :data:`ANSWER_TOKENS`.
            task: of the model.
            data: there is data to measure on.

        Raises:
            ConfigError: it does not go with the rest.
            DependencyError: the metric needs a package that is not installed.
        """
        if metric is None:
            if max_new_tokens is not None:
                raise ConfigError("--max-new-tokens bounds the answers that --metric compares: give both, or neither.")
            return None
        if task.outputs.kind != "text":
            raise ConfigError(f"--metric compares generated answers, and {task.name} generates none: leave it out.")
        if not data:
            raise ConfigError(f"--metric {metric} needs prompts with their answers: give them with --data.")
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is at least 1, not {max_new_tokens}.")
        check_metric(metric)
        return cls(metric, max_new_tokens or ANSWER_TOKENS)


@dataclass(frozen=True)
class AnswerData:
    """Prompts with their right answers."""

    source: str
    rows: list[Exchange]
    measure: AnswerMeasure


def read_answers(
    codec: TextCodec,
    source: str,
    columns: Columns,
    measure: AnswerMeasure,
    *,
    context_length: int | None,
    raw: bool = False,
) -> AnswerData:
    """Read instruction data whose answers are compared.

    Args:
        codec: tokenizer of the model.
        source: chats or prompts with completions.
        columns: names of its columns.
        measure: how answers are judged.
        context_length: tokens that the model holds; None if it is not known yet.
        raw: prompts are continued as they are, even if the model has a chat template.

    Raises:
        ConfigError: the data have no answers.
        InputError: the data cannot be used, or no new tokens fit behind a prompt.
    """
    rows = read_exchanges(codec, source, columns, raw=raw)
    if not any(row.text for row in rows):
        raise ConfigError(
            f"--metric {measure.metric} compares answers, and {source} holds plain texts without any: leave it out, or give "
            "prompts with completions."
        )
    longest = max(len(row.asked) for row in rows)
    if context_length is not None and longest + measure.max_new_tokens > context_length:
        raise InputError(
            f"A prompt of {source} has {longest} tokens, and with {measure.max_new_tokens} new ones it exceeds the "
            f"{context_length} that the model can hold: shorten it, or lower --max-new-tokens."
        )
    return AnswerData(source, rows, measure)


def measure_answers(data: AnswerData, onnx: Sequence[str], pytorch: Sequence[str] | None) -> Evaluation:
    """Return the metric of the graph's answers, and of PyTorch's.

    Args:
        data: prompts with their right answers.
        onnx: the graph's answers.
        pytorch: PyTorch's; None if there is none to compare with.
    """
    metric, wanted = data.measure.metric, [row.text for row in data.rows]
    fields: dict[str, float | int] = {"onnx": score_answers(metric, onnx, wanted)[metric]}
    if pytorch is not None:
        fields["pytorch"] = score_answers(metric, pytorch, wanted)[metric]
        fields["identical"] = sum(one == other for one, other in zip(onnx, pytorch, strict=True))
    return Evaluation.model_validate(
        {"data": Path(data.source).name, "examples": len(data.rows), "metric": metric, **fields}
    )


def graph_answers(
    session: DecoderSession,
    codec: TextCodec,
    ref: AdapterRef | None,
    prompts: Sequence[Sequence[int]],
    count: int,
    ends: frozenset[int],
) -> list[str]:
    """Return the graph's likeliest answer to every prompt, prompts of similar length together.

    Args:
        session: the opened decoder.
        codec: tokenizer of the model.
        ref: adapter; None for what the graph computes without.
        prompts: tokens of each.
        count: most tokens of an answer.
        ends: tokens that end an answer.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        found = continued(session, [prompts[row] for row in chosen], [ref] * len(chosen), count, ends)
        for row, tokens in zip(chosen, found, strict=True):
            if tokens[-1] in ends:
                tokens = tokens[:-1]
            answers[row] = codec.decode(tokens)
    return answers
