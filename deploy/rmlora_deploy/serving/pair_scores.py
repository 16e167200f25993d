"""Scores of pairs of texts, for all interfaces that rerank and score."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from rmlora.errors import ConfigError, some_of
from rmlora.text_pair import TextPair
from rmlora_deploy.inference.pair_score import score_index
from rmlora_deploy.inference.prediction import to_results
from rmlora_deploy.serving.models import ServedModel
from rmlora_deploy.serving.service import Service

__all__ = ["chosen_model", "score_pairs"]


def chosen_model(service: Service, name: str | None) -> ServedModel:
    """Return the model called ``name``, or the only one of the server if a client names none.

    Raises:
        UnknownModelError: there is none of that name.
        UnreachableError: it is not known what is served now.
        ConfigError: none is named, and the server has several.
    """
    if name is not None:
        return service.registry.model(name)
    models = service.registry.models
    if len(models) != 1:
        raise ConfigError(
            f"This server has {len(models)} models ({some_of([model.id for model in models])}): name one with 'model'."
        )
    return service.registry.model(models[0].id)  # which a replica without contact to the coordinator refuses


async def score_pairs(
    service: Service,
    model: ServedModel,
    pairs: Sequence[TextPair],
    state: MutableMapping[str, Any],
    *,
    label: str | None = None,
    raw: bool = False,
) -> tuple[list[float], int]:
    """Return the score of every pair, and the number of tokens read.

    Args:
        service: of the server.
        model: to ask.
        pairs: to score.
        state: of the request.
        label: whose probability is the score, see :func:`rmlora_deploy.inference.pair_score.score_index`.
        raw: return the model's outputs as they are.

    Raises:
        ConfigError: the model scores no pairs.
        InputError: a text cannot be used.
        ServingError: see :meth:`Service.ask`.
    """
    if not model.task.inputs.takes_pairs or model.task.outputs.kind != "scores":
        raise ConfigError(f"'{model.id}' is for {model.task.name} and scores no pairs of texts.")
    if model.input_form == "text":
        raise ConfigError(
            f"'{model.id}' was trained on single texts and scores no pairs: name a model that reads pairs."
        )
    index = score_index(model.labels, label, name=model.id)
    answers, tokens = await service.ask(model, pairs, state)
    results = [to_results(logits, model.labels, model.runner.bundle, model.function_to_apply)[0] for logits in answers]
    return [float((logits if raw else row)[index]) for logits, row in zip(answers, results, strict=True)], tokens
