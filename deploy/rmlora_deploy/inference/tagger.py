"""Finding entities in texts with a bundle, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from rmlora.errors import ConfigError
from rmlora.words import Sentence
from rmlora_deploy.bundles.bundle import Bundle
from rmlora_deploy.inference.entity_spans import Aggregation, Tagging, to_tagging
from rmlora_deploy.inference.opened_bundle import OpenedBundle
from rmlora_deploy.runtime import AdapterChoice

__all__ = ["Tagger"]


class Tagger(OpenedBundle):
    """A bundle for token-classification opened on one execution provider; with branches every text may use another adapter.

    >>> tagger = Tagger.open("slots-bundle")  # doctest: +SKIP
    >>> [(found.label, found.text) for found in tagger.tag(["Turn on the desk lamp"])[0].entities]  # doctest: +SKIP
    [('name', 'desk lamp')]
    """

    @staticmethod
    def _check_task(bundle: Bundle) -> None:
        if bundle.task.outputs.kind != "tokens":
            raise ConfigError(f"{bundle.path} is for {bundle.task.name} and tags no words: open it with load().")

    def tag(
        self,
        texts: Sequence[str | Sequence[str]],
        adapters: AdapterChoice | Sequence[AdapterChoice] = None,
        *,
        aggregation: Aggregation = "first",
        batch_size: int = 32,
    ) -> list[Tagging]:
        """Return the entities of every text, in order, with the labels of its own adapter.

        Args:
            texts: texts, or lists of words; of these, entities also say which words they are.
            adapters: with branches, one choice for all texts or one for each: a name, ``{name: strength}``, or None for the
                base.
            aggregation: ``first`` labels words by their first token, ``simple`` labels every token by itself.
            batch_size: texts computed at once.

        Raises:
            InputError: a text or an adapter cannot be used, or the graph gives no usable scores.
            ConfigError: the choices do not fit the texts, the bundle is merged and there is nothing to choose, or there is no such
                aggregation.
        """
        if aggregation not in ("first", "simple"):
            raise ConfigError(f"There is no aggregation '{aggregation}': choose first or simple.")
        if isinstance(texts, str):
            raise ConfigError("tag() takes a list of texts, not one text: put it into brackets.")
        sentences = [Sentence.of(text) for text in texts]
        return [
            to_tagging(scores, row, sentence, entry.labels, self.bundle, aggregation)
            for sentence, (entry, row, scores) in zip(
                sentences, self._run(sentences, adapters, batch_size), strict=True
            )
        ]
